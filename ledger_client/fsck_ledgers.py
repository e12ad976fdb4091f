"""The checker of what went from log to log: the rows beside the entries, which alone are believed.

What is wrong with the entries themselves is for `ledger_client.fsck` to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from sqlalchemy import Connection, Row, select

from ledger_client.amounts import Amounts
from ledger_client.checkpoint import Checkpoint, CheckpointError, Note, Verifier
from ledger_client.entries import RECEIVED, EntryError
from ledger_client.laws import Fault, Finding, Logged
from ledger_client.ledger import received_batches
from ledger_client.log import Log
from ledger_client.merkle import GrowingTree, leaf_hash
from ledger_client.received import Received
from ledger_client.shipping import held_root
from ledger_client.tables import log_received, log_shipment


class StoredReceived:
    """A law for `fsck`: what a log holds of others, and the rows beside it.

    I5: the entries of each other log are held once each, in order, from 0. I8: after each batch they have the root of
    the checkpoint that came with it, which the log's key signed. I1 and I2: their amounts agree.

    verifiers: the keys of the other logs; the signatures of a log without one are not checked.
    """

    types: ClassVar[frozenset[str] | None] = frozenset({RECEIVED})

    def __init__(self, connection: Connection, verifiers: Iterable[Verifier] = ()) -> None:
        self._connection = connection
        self._keys: defaultdict[str, list[Verifier]] = defaultdict(list)
        for verifier in verifiers:
            self._keys[verifier.name].append(verifier)
        self._held: dict[str, _Held] = {}

    def entry(self, logged: Logged, /) -> Iterator[Fault]:
        """Take the entry apart, and put what is inside behind what is held of its log."""
        if logged.entry is None:
            return
        try:
            received = Received.of(logged.entry)
        except EntryError as error:
            yield "I8", f"this is not how an entry is held: {error}"
            return
        yield from self._held_of(received.origin).entry(logged.log_index, received)

    def end(self) -> Iterator[Finding]:
        """Name the batches of which entries are missing."""
        for origin in self._connection.scalars(select(log_received.c.origin).distinct()).all():
            self._held_of(origin)
        for origin, held in self._held.items():
            if fault := held.missing():
                yield Finding(invariant="I5", log_index=None, message=f"{origin}: {fault}")

    def _held_of(self, origin: str) -> _Held:
        if origin not in self._held:
            self._held[origin] = _Held(received_batches(self._connection, origin), self._keys[origin])
        return self._held[origin]


class _Held:
    """What is held of one log, shown in order. batches: its rows of log_received, in order."""

    def __init__(self, batches: Iterator[Row[Any]], verifiers: list[Verifier]) -> None:
        self._batches = batches
        self._verifiers = verifiers
        self._batch = next(batches, None)
        self._tree = GrowingTree()
        self._comparable = True

    def entry(self, log_index: int, received: Received) -> Iterator[Fault]:
        """Yield what is wrong with the next entry that is held."""
        where = f"entry {received.log_index} of {received.origin}"
        if received.log_index != self._tree.size and self._comparable:
            yield "I5", f"{where} is held where entry {self._tree.size} should be"
            self._comparable = False  # every root differs from here on
        try:
            for invariant, fault in Amounts.of(received.entry).faults():
                yield invariant, f"{where}: {fault}"
        except EntryError as error:
            yield "I1", f"{where}: {error}"
        if self._batch is None:
            if self._comparable:
                yield "I5", f"{where} came with no batch"
            self._comparable = False
            return
        place = self._batch.log_start + self._tree.size - self._batch.source_start
        if self._comparable and (place != log_index or received.time != self._batch.time):
            yield "I5", f"{where} came, by the batch's row, at log index {place} and at {self._batch.time}"
        self._tree.append(leaf_hash(received.entry.encode()))
        if self._tree.size >= self._batch.source_end:
            if self._comparable:
                yield from self._compare(self._batch, where)
            self._batch = next(self._batches, None)

    def missing(self) -> str | None:
        """Say what should have followed."""
        if self._batch is None:
            return None
        return f"a batch ends at {self._batch.source_end}, but {self._tree.size} entries are held"

    def _compare(self, batch: Row[Any], where: str) -> Iterator[Fault]:
        if batch.frontier != self._tree.frontier().encode():
            yield "I8", f"the frontier kept after {where} does not follow from the entries held"
        try:
            note = Note.parse(batch.note)
            for verifier in self._verifiers:
                if verifier.signatures_of(note):
                    verifier.verify(note)
            checkpoint = Checkpoint.parse(note.text)
        except CheckpointError as error:
            yield "I8", f"the checkpoint that came with {where} cannot be believed: {error}"
            return
        if self._verifiers and not any(verifier.signatures_of(note) for verifier in self._verifiers):
            yield "I8", f"no key that is trusted signed the checkpoint that came with {where}"
        if (checkpoint.size, checkpoint.root) != (self._tree.size, self._tree.root()):
            yield "I8", f"the entries held up to {where} are not what its log signed"


def fsck_shipments(connection: Connection, log: Log) -> list[Finding]:
    """Check a log against what ledgers elsewhere acknowledged of it. Returns what is broken.

    I5: each ledger has acknowledged every entry up to some, once. I8: what it signed for is what the log holds.
    """
    findings: list[Finding] = []
    ends: defaultdict[str, int] = defaultdict(int)
    query = select(log_shipment.c.ledger, log_shipment.c.log_end)
    for ledger, log_end in connection.execute(query.order_by(*query.selected_columns)).all():
        row = connection.execute(
            select(log_shipment).where(log_shipment.c.ledger == ledger, log_shipment.c.log_end == log_end)
        ).one()
        if row.log_start != ends[ledger]:
            message = f"{ledger} acknowledged entries from {row.log_start} on, behind those up to {ends[ledger]}"
            findings.append(Finding(invariant="I5", log_index=row.log_start, message=message))
        ends[ledger] = log_end
        try:
            checkpoint = Checkpoint.parse(Note.parse(row.note).text)
            same = held_root(connection, log.origin, row) == checkpoint.root
        except ValueError as error:
            findings.append(Finding(invariant="I8", log_index=row.log_start, message=f"{ledger}: {error}"))
            continue
        if not same:
            message = f"entries {row.log_start} to {log_end - 1} are not those that {ledger} signed for"
            findings.append(Finding(invariant="I8", log_index=row.log_start, message=message))
    return findings
