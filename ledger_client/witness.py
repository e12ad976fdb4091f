"""What a witness decides (c2sp.org/tlog-witness): what came in and what it remembers, and whether it cosigns.

Nothing here reads or writes anything: `witness_state.py` remembers, `witness_app.py` listens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ledger_client.checkpoint import Checkpoint, CheckpointError, Note, NoteSignature, Verifier
from ledger_client.forms import from_base64, from_decimal, to_base64
from ledger_client.merkle import EMPTY_ROOT, HASH_BYTES, ProofError, verify_consistency

MAX_SUBMISSION_BYTES = 2**17  # the longest note that is read, in ASCII, and the longest proof, twice over

_FORM = re.compile(r"old (\S+)\n((?:\S+\n){0,63})\n(.+)", re.DOTALL)


class Refusal(Enum):
    """Why a witness does not cosign. The HTTP status of each stands in `witness_app.py`."""

    MALFORMED = "the submission cannot be read, or its sizes contradict each other"
    UNKNOWN_LOG = "the checkpoint is of a log that is not witnessed here"
    UNTRUSTED = "no key that is trusted for this log signed the checkpoint"
    STALE = "the old size is not that of the checkpoint cosigned last"
    INCONSISTENT = "the checkpoint is not shown to extend the one cosigned last"


class WitnessRefused(ValueError):  # noqa: N818 - errors here say what is so
    """A submission that is not cosigned. size: of the checkpoint cosigned last, where the refusal is STALE."""

    def __init__(self, refusal: Refusal, detail: str, size: int | None = None) -> None:
        super().__init__(f"{refusal.value}: {detail}")
        self.refusal = refusal
        self.size = size


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The body of add-checkpoint. proof: from the tree of old_size, unchecked. note: the signed checkpoint, verbatim.

    Raises ValueError when a hash of the proof is none.
    """

    old_size: int
    proof: tuple[bytes, ...]
    note: str

    def __post_init__(self) -> None:
        if any(len(node) != HASH_BYTES for node in self.proof):
            raise ValueError(f"every hash of the proof has {HASH_BYTES} bytes")

    def format(self) -> str:
        """Return the text to post."""
        return "\n".join([f"old {self.old_size}", *map(to_base64, self.proof)]) + "\n\n" + self.note

    @classmethod
    def parse(cls, body: bytes) -> Submission:
        """Read what `format` writes; the note is left as it is. Raises WitnessRefused on any other bytes."""
        if len(body) > MAX_SUBMISSION_BYTES:
            raise WitnessRefused(Refusal.MALFORMED, f"it has at most {MAX_SUBMISSION_BYTES} bytes")
        try:
            match = _FORM.fullmatch(body.decode("utf-8"))
            if match:
                old_size, proof, note = match.groups()
                hashes = tuple(map(from_base64, proof.splitlines()))
                return cls(old_size=from_decimal(old_size), proof=hashes, note=note)
        except ValueError as error:
            raise WitnessRefused(Refusal.MALFORMED, str(error)) from error
        raise WitnessRefused(Refusal.MALFORMED, "it has an old size, at most 63 hashes, a blank line and a checkpoint")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A checkpoint that a known log signed, said to extend the tree of old_size.

    text: what was signed, extension lines included. signatures: the log's own, each of which holds.
    """

    head: Checkpoint
    text: str
    signatures: tuple[NoteSignature, ...]
    old_size: int
    proof: tuple[bytes, ...]


Logs = Mapping[str, Sequence[Verifier]]
"""Origin → the keys that are trusted to sign for it."""


def trusted(verifiers: Iterable[Verifier]) -> Logs:
    """Order keys by the log that each signs for."""
    logs: dict[str, list[Verifier]] = {}
    for verifier in verifiers:
        logs.setdefault(verifier.name, []).append(verifier)
    return logs


def examine(submission: Submission, logs: Logs) -> Candidate:
    """Check all that can be checked without memory. Raises WitnessRefused: MALFORMED, UNKNOWN_LOG or UNTRUSTED."""
    try:
        note = Note.parse(submission.note)
        head = _head(note.text)
    except CheckpointError as error:
        raise WitnessRefused(Refusal.MALFORMED, str(error)) from error
    if head.origin not in logs:
        raise WitnessRefused(Refusal.UNKNOWN_LOG, repr(head.origin))
    signatures: list[NoteSignature] = []
    for verifier in logs[head.origin]:
        if own := note.signatures_by(verifier.name, verifier.key_id):
            try:
                verifier.verify(note)
            except CheckpointError as error:
                raise WitnessRefused(Refusal.UNTRUSTED, str(error)) from error
            signatures += own
    if not signatures:
        raise WitnessRefused(Refusal.UNTRUSTED, repr(head.origin))
    if submission.old_size > head.size:
        raise WitnessRefused(Refusal.MALFORMED, f"a tree of {head.size} cannot extend one of {submission.old_size}")
    return Candidate(
        head=head,
        text=note.text,
        signatures=tuple(signatures),
        old_size=submission.old_size,
        proof=submission.proof,
    )


def decide(candidate: Candidate, last: Checkpoint | None) -> None:
    """Return when the candidate is to be cosigned; else raise WitnessRefused: STALE or INCONSISTENT.

    last: the checkpoint of this log that was cosigned last, None where none was. The candidate's head then takes its
    place, and the two steps, deciding and remembering, must not come apart.
    """
    size, root = (last.size, last.root) if last else (0, EMPTY_ROOT)
    if candidate.old_size != size:
        raise WitnessRefused(Refusal.STALE, f"{candidate.old_size}, not {size}", size)
    try:
        verify_consistency(size, root, candidate.head.size, candidate.head.root, candidate.proof)
    except ProofError as error:
        raise WitnessRefused(Refusal.INCONSISTENT, str(error)) from error


def _head(text: str) -> Checkpoint:
    """Read a checkpoint's first three lines; the rest are the log's own affair, so long as they are not empty."""
    lines = text.removesuffix("\n").split("\n")
    if not all(lines[3:]):
        raise CheckpointError("an extension line is not empty")
    return Checkpoint.parse("".join(f"{line}\n" for line in lines[:3]))
