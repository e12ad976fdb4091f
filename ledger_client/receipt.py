"""Receipts (c2sp.org/tlog-proof@v1): offline proof that an entry is in the log, for whoever holds the log's key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from ledger_client.amounts import Amounts, Line, net
from ledger_client.checkpoint import Checkpoint, CheckpointError, Note, Verifier
from ledger_client.cosignature import Quorum, WitnessVerifier
from ledger_client.entries import RECEIVED, Entry, EntryError
from ledger_client.forms import from_base64, from_decimal, to_base64
from ledger_client.merkle import HASH_BYTES, leaf_hash, verify_inclusion
from ledger_client.received import Received

_HEADER = "c2sp.org/tlog-proof@v1"
_FORM = re.compile(re.escape(_HEADER) + r"\n(?:extra (\S+)\n)?index (\S+)\n((?:\S+\n){0,63})\n(.+)", re.DOTALL)
_MAX_CHARACTERS = 2**18


class ReceiptError(ValueError):
    """A text that is no receipt, or one that does not show what is asked of it."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The parts of a receipt, none of them checked against each other.

    index: the entry's log index. path: sibling hashes, the leaf's first. note: the signed checkpoint, verbatim.
    entry: the bytes of the entry, which travel as the format's extra data; None where the holder has them elsewhere.
    """

    index: int
    path: tuple[bytes, ...]
    note: str
    entry: bytes | None

    def format(self) -> str:
        """Return the text, by convention kept in a file named `*.tlog-proof`."""
        extra = [] if self.entry is None else [f"extra {to_base64(self.entry)}"]
        lines = [_HEADER, *extra, f"index {self.index}", *map(to_base64, self.path)]
        return "\n".join(lines) + "\n\n" + self.note

    @classmethod
    def parse(cls, text: str) -> Receipt:
        """Read what `format` writes; the note is left as it is. Raises ReceiptError on any other text."""
        match = _FORM.fullmatch(text) if len(text) <= _MAX_CHARACTERS else None
        if not match:
            raise ReceiptError(f"this is no receipt in the form {_HEADER}")
        extra, index, path, note = match.groups()
        try:
            receipt = cls(
                index=from_decimal(index),
                path=tuple(map(from_base64, path.splitlines())),
                note=note,
                entry=None if extra is None else from_base64(extra),
            )
        except ValueError as error:
            raise ReceiptError(f"malformed receipt: {error}") from error
        if any(len(node) != HASH_BYTES for node in receipt.path):
            raise ReceiptError(f"malformed receipt: every hash of the path has {HASH_BYTES} bytes")
        return receipt


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a verification. detail: what was found, or what is wrong."""

    number: int
    name: str
    ok: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'FAILED':6} {self.number} {self.name}: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What a verification found. It stops at the first step that fails, so only the last of `steps` can have.

    entry, checkpoint and index are None until the steps that establish them have held.
    """

    steps: tuple[Step, ...]
    entry: Entry | None
    checkpoint: Checkpoint | None
    index: int | None

    @property
    def ok(self) -> bool:
        """Whether every step that was asked for held."""
        return all(step.ok for step in self.steps)

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps))


def verify_receipt(
    text: str | bytes,
    verifier: Verifier,
    *,
    entry: bytes | None = None,
    claim: Line | None = None,
    witnesses: Sequence[WitnessVerifier] = (),
    quorum: int | None = None,
) -> Verified:
    """Verify a receipt with nothing but the log's key. Never raises for what the receipt says; see `Verified.ok`.

    entry: the bytes that the receipt must be about; needed only where the receipt does not carry them.
    claim: what the entry's split is said to give to an account, in all its lines together.
    witnesses: those whose word counts. quorum: how many of them it takes; all of them where it is None.
    Raises QuorumError when the witnesses cannot make that quorum.

    1. The receipt, its checkpoint and the note around that parse strictly.
    2. The checkpoint is of the expected log and says that the expected key signed it.
    3. The signature holds.
    4. Where witnesses are named, a quorum of them has cosigned the checkpoint.
    5. The entry is the one expected, and gives a leaf hash.
    6. The path leads from that leaf at that index to the checkpoint's root.
    7. The entry is well formed, and its amounts agree: postings sum to zero, the split to the charge. An entry that the
       log received from another is held as it should be, and 7 and 8 go on with the one inside.
    8. Where there is a claim, the split gives its account exactly its amount.
    """
    asked = None
    if witnesses or quorum is not None:
        asked = Quorum(witnesses=tuple(witnesses), count=len(witnesses) if quorum is None else quorum)
    run = _Run()
    checked: Checkpoint | None = None
    included: int | None = None
    opened: Entry | None = None
    with suppress(_StepError):
        with run.step(1, "format"):
            receipt = Receipt.parse(text if isinstance(text, str) else text.decode("utf-8"))
            note = Note.parse(receipt.note)
            checkpoint = Checkpoint.parse(note.text)
            run.found = f"entry {receipt.index} in a log of {checkpoint.size}"
        with run.step(2, "origin and key"):
            _check_origin(note, checkpoint, verifier)
            run.found = f"{verifier.name}, key {verifier.key_id.hex()}"
        with run.step(3, "checkpoint signature"):
            verifier.verify(note)
            checked = checkpoint
            run.found = f"root {checkpoint.root.hex()}"
        if asked:
            with run.step(4, "witness quorum"):
                run.found = _check_quorum(note, asked)
        with run.step(5, "entry"):
            raw = _entry_bytes(receipt, entry)
            leaf = leaf_hash(raw)
            run.found = f"{len(raw)} bytes, leaf {leaf.hex()}"
        with run.step(6, "inclusion"):
            verify_inclusion(leaf, receipt.index, checkpoint.size, receipt.path, checkpoint.root)
            included = receipt.index
            run.found = f"leaf {receipt.index} is under the root"
        with run.step(7, "amounts"):
            decoded = Entry.decode(raw)
            stated, run.found = _check_amounts(decoded)
            opened = decoded
        if claim:
            with run.step(8, "claim"):
                run.found = _check_claim(stated, claim)
    return Verified(steps=tuple(run.steps), entry=opened, checkpoint=checked, index=included)


class _StepError(Exception):
    """Ends a run; it never leaves this module."""


class _Run:
    """Collects steps. A ValueError inside a step is its verdict, and a _StepError ends the run."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.found = ""

    @contextmanager
    def step(self, number: int, name: str) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            self.steps.append(Step(number=number, name=name, ok=False, detail=str(error)))
            raise _StepError from error
        self.steps.append(Step(number=number, name=name, ok=True, detail=self.found))


def _check_origin(note: Note, checkpoint: Checkpoint, verifier: Verifier) -> None:
    if checkpoint.origin != verifier.name:
        raise CheckpointError(f"the checkpoint is of {checkpoint.origin!r}, the key of {verifier.name!r}")
    if not verifier.signatures_of(note):
        raise CheckpointError(f"no signature by {verifier.name} with key id {verifier.key_id.hex()}")


def _check_quorum(note: Note, quorum: Quorum) -> str:
    found = quorum.check(note)
    told = ", ".join(f"{witness.name} at {_rfc3339(cosignature.time_s)}" for witness, cosignature in found)
    return f"{len(found)} of {len(quorum.witnesses)} witnesses: {told}"


def _rfc3339(time_s: int) -> str:
    try:
        return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):  # beyond the year 9999
        return f"{time_s} s"


def _entry_bytes(receipt: Receipt, expected: bytes | None) -> bytes:
    raw = receipt.entry if expected is None else expected
    if raw is None:
        raise ReceiptError("the receipt does not carry its entry; give the entry's bytes beside it")
    if receipt.entry not in {None, raw}:
        raise ReceiptError("the entry that the receipt carries is not the one given")
    return raw


def _check_amounts(entry: Entry) -> tuple[Entry, str]:
    """Return the entry that states the amounts, which may be inside of the one given, and what was found."""
    if entry.type == RECEIVED:
        received = Received.of(entry)
        return received.entry, f"entry {received.log_index} of {received.origin}: {_agreeing(received.entry)}"
    return entry, _agreeing(entry)


def _agreeing(entry: Entry) -> str:
    amounts = Amounts.of(entry)
    for invariant, fault in amounts.faults():
        raise EntryError(f"{invariant}: {fault}")
    if amounts.split is not None:
        return f"{entry.type}: {len(amounts.split)} lines sum to the charge of {amounts.charge_nano} nano"
    return f"{entry.type}: {len(amounts.postings)} postings sum to 0"


def _check_claim(entry: Entry, claim: Line) -> str:
    split = Amounts.of(entry).split
    if split is None:
        raise ReceiptError(f"{entry.type} splits nothing, so it gives nothing to {claim.account}")
    given = net(split)[claim.account]
    if given != claim.amount_nano:
        raise ReceiptError(f"{claim.account} is given {given} nano, not {claim.amount_nano}")
    return f"{claim.account} is given {given} nano"
