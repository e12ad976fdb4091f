"""What goes between a log and a ledger elsewhere: a batch of entries one way, what became of it the other.

A batch is entries [start, end) of a log and the log's own checkpoint of exactly `end` entries. That checkpoint is the
batch's signature: a receiver that knows the tree of the first `start` entries needs nothing else to believe the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from ledger_client.checkpoint import Checkpoint, CheckpointError, Note
from ledger_client.forms import from_base64, from_decimal, to_base64
from ledger_client.merkle import HASH_BYTES, Frontier
from ledger_client.tiles import pack_bundle, unpack_bundle

MAX_BATCH_ENTRIES = 1024
MAX_BATCH_BYTES = 4 << 20  # of a batch as it is sent
MAX_ACCEPTED_BYTES = 1 << 16

_MAX_NOTE_BYTES = 1 << 14
_HEAD_BYTES = 128  # of a batch, before its note, at most
_COUNT = "(0|[1-9][0-9]{0,18})"
_BATCH = re.compile(f"tributary-batch@v1\nseen {_COUNT}\nstart {_COUNT}\nnote {_COUNT}\n\n".encode())
_ACCEPTED = re.compile(
    f"tributary-accepted@v1\nstart {_COUNT}\nend {_COUNT}\nlog_start {_COUNT}\ntime (\\S{{1,32}})\n"
    r"((?:frontier \S+\n){0,63})((?:proof \S+\n){0,64})\n(.+)",
    re.DOTALL,
)


class BatchFault(Enum):
    """What is wrong with a batch. The HTTP status of each stands in `gateway/ledger_server.py`."""

    MALFORMED = "the batch cannot be read, or its parts contradict each other"
    UNKNOWN_LOG = "the batch is of a log that is not received here"
    UNTRUSTED = "no key that is trusted for this log signed the checkpoint (I5)"
    AHEAD = "the batch follows what is not here (I5)"
    INCONSISTENT = "what is here and the batch's entries do not lead to its checkpoint (I8)"
    FORKED = "the log's key signed two histories (I8)"


class BatchRefused(ValueError):  # noqa: N818 - errors here say what is so
    """A batch of which nothing was written. size: what the ledger has of the log, where the fault is AHEAD."""

    def __init__(self, fault: BatchFault, detail: str, size: int | None = None) -> None:
        super().__init__(f"{fault.value}: {detail}")
        self.fault = fault
        self.size = size


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Entries of a log from log index start on, as bytes, and the log's checkpoint right behind them, verbatim.

    seen: the size of the ledger's own checkpoint that the sender verified last, which the reply is to be consistent
    with. Only the sizes are checked here. Raises BatchRefused.
    """

    start: int
    entries: tuple[bytes, ...]
    note: str
    seen: int = 0
    checkpoint: Checkpoint = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.entries) <= MAX_BATCH_ENTRIES:
            raise BatchRefused(
                BatchFault.MALFORMED, f"it has from 1 to {MAX_BATCH_ENTRIES} entries, not {len(self.entries)}"
            )
        if len(self.note.encode(errors="replace")) > _MAX_NOTE_BYTES:
            raise BatchRefused(BatchFault.MALFORMED, f"its checkpoint has at most {_MAX_NOTE_BYTES} bytes")
        try:
            checkpoint = Checkpoint.parse(Note.parse(self.note).text)
        except CheckpointError as error:
            raise BatchRefused(BatchFault.MALFORMED, str(error)) from error
        if checkpoint.size != self.end:
            raise BatchRefused(
                BatchFault.MALFORMED, f"its entries end at {self.end}, but its checkpoint is of {checkpoint.size}"
            )
        object.__setattr__(self, "checkpoint", checkpoint)

    @property
    def end(self) -> int:
        """The log index after the last entry's."""
        return self.start + len(self.entries)

    def encode(self) -> bytes:
        """Return the bytes to send."""
        note = self.note.encode()
        head = f"tributary-batch@v1\nseen {self.seen}\nstart {self.start}\nnote {len(note)}\n\n"
        return head.encode() + note + pack_bundle(self.entries)

    @classmethod
    def decode(cls, raw: bytes) -> Batch:
        """Read what `encode` writes. Raises BatchRefused on any other bytes."""
        if len(raw) > MAX_BATCH_BYTES:
            raise BatchRefused(BatchFault.MALFORMED, f"it has at most {MAX_BATCH_BYTES} bytes")
        match = _BATCH.match(raw)
        if not match:
            raise BatchRefused(BatchFault.MALFORMED, "it begins with its head: seen, start and the length of the note")
        try:
            seen, start, note_bytes = (from_decimal(group.decode()) for group in match.groups())
            end = match.end() + note_bytes
            note = raw[match.end() : end].decode("utf-8")
            entries = tuple(unpack_bundle(raw[end:]))
        except ValueError as error:
            raise BatchRefused(BatchFault.MALFORMED, str(error)) from error
        if end > len(raw):
            raise BatchRefused(BatchFault.MALFORMED, "it stops inside of its checkpoint")
        return cls(seen=seen, start=start, note=note, entries=entries)


def fitting(entries: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return as many of the entries, from the first on, as one batch may hold; at least one, if there is one."""
    room = MAX_BATCH_BYTES - _MAX_NOTE_BYTES - _HEAD_BYTES
    taken: list[bytes] = []
    for entry in entries:
        room -= 2 + len(entry)
        if room < 0 or len(taken) == MAX_BATCH_ENTRIES:
            break
        taken.append(entry)
    return tuple(taken)


class AcceptedError(ValueError):
    """A text that is no acceptance."""


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """What a ledger says it holds: entries [start, end) of a log, from log_start on in its own.

    time: of receipt, RFC 3339 in UTC. frontier: of the ledger's tree of log_start entries. note: its checkpoint right
    behind the last of them. proof: that this checkpoint is consistent with the one that the sender has seen.
    Together they prove it all to who has the entries, and nothing of it is to be believed unproved.
    """

    start: int
    end: int
    log_start: int
    time: str
    frontier: Frontier
    proof: tuple[bytes, ...]
    note: str

    def __post_init__(self) -> None:
        if not 0 < self.end - self.start <= MAX_BATCH_ENTRIES:
            raise AcceptedError(f"{self.start} to {self.end} is no batch")
        if self.frontier.size != self.log_start:
            raise AcceptedError("the frontier is not that of the ledger before the batch")
        if any(len(node) != HASH_BYTES for node in self.proof):
            raise AcceptedError(f"every hash of the proof has {HASH_BYTES} bytes")

    def format(self) -> str:
        """Return the text to send."""
        lines = [
            "tributary-accepted@v1",
            f"start {self.start}",
            f"end {self.end}",
            f"log_start {self.log_start}",
            f"time {self.time}",
            *(f"frontier {to_base64(node)}" for node in self.frontier.hashes),
            *(f"proof {to_base64(node)}" for node in self.proof),
        ]
        return "\n".join(lines) + "\n\n" + self.note

    @classmethod
    def parse(cls, text: str) -> Accepted:
        """Read what `format` writes; the note is left as it is. Raises AcceptedError on any other text."""
        match = _ACCEPTED.fullmatch(text)
        if not match:
            raise AcceptedError("this is no acceptance of a batch")
        start, end, log_start, time, frontier, proof, note = match.groups()
        try:
            size = from_decimal(log_start)
            return cls(
                start=from_decimal(start),
                end=from_decimal(end),
                log_start=size,
                time=time,
                frontier=Frontier(size=size, hashes=_hashes(frontier)),
                proof=_hashes(proof),
                note=note,
            )
        except AcceptedError:
            raise
        except ValueError as error:
            raise AcceptedError(str(error)) from error


def _hashes(lines: str) -> tuple[bytes, ...]:
    return tuple(from_base64(line.split(" ", 1)[1]) for line in lines.splitlines())
