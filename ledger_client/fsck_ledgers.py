"""The checker of what went from log to log: the rows beside the entries, which alone are believed.

What is wrong with the entries themselves is for `ledger_client.fsck` to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, Row, select

from ledger_client.amounts import Amounts
from ledger_client.checkpoint import Checkpoint, CheckpointError, Note, Verifier
from ledger_client.entries import RECEIVED, Entry, EntryError
from ledger_client.fsck import Finding
from ledger_client.ledger import received_batches
from ledger_client.log import Log
from ledger_client.merkle import GrowingTree, leaf_hash
from ledger_client.received import Received
from ledger_client.shipping import held_root
from ledger_client.tables import log_received, log_shipment

_HEAD_OF_RECEIVED = RECEIVED.encode()


def fsck_received(connection: Connection, log: Log, verifiers: Iterable[Verifier]) -> list[Finding]:
    """Check what a log holds of others. Returns what is broken.

    I5: the entries of each other log are held once each, in order, from 0. I8: after each batch they have the root of
    the checkpoint that came with it, which the log's key signed. I1 and I2: their amounts agree.

    verifiers: the keys of the other logs; the signatures of a log without one are not checked. Reads the log once.
    """
    keys: defaultdict[str, list[Verifier]] = defaultdict(list)
    for verifier in verifiers:
        keys[verifier.name].append(verifier)
    origins = connection.scalars(select(log_received.c.origin).distinct()).all()
    held = {origin: _Held(received_batches(connection, origin), keys[origin]) for origin in origins}
    findings: list[Finding] = []

    def report(log_index: int | None, faults: Iterator[tuple[str, str]]) -> None:
        findings.extend(Finding(invariant=name, log_index=log_index, message=message) for name, message in faults)

    for log_index, raw in log.entries(connection):
        if _HEAD_OF_RECEIVED not in raw:
            continue
        try:
            entry = Entry.decode(raw)
            received = Received.of(entry) if entry.type == RECEIVED else None
        except EntryError as error:
            report(log_index, iter([("I8", f"this is not how an entry is held: {error}")]))
            continue
        if received:
            kept = held.setdefault(received.origin, _Held(iter(()), keys[received.origin]))
            report(log_index, kept.entry(log_index, received))
    for origin, kept in held.items():
        report(None, kept.end(origin))
    return findings


class _Held:
    """What is held of one log, shown in order. batches: its rows of log_received, in order."""

    def __init__(self, batches: Iterator[Row[Any]], verifiers: list[Verifier]) -> None:
        self._batches = batches
        self._verifiers = verifiers
        self._batch = next(batches, None)
        self._tree = GrowingTree()
        self._comparable = True

    def entry(self, log_index: int, received: Received) -> Iterator[tuple[str, str]]:
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

    def end(self, origin: str) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the whole."""
        if self._batch is not None:
            yield "I5", f"a batch of {origin} ends at {self._batch.source_end}, but {self._tree.size} entries are held"

    def _compare(self, batch: Row[Any], where: str) -> Iterator[tuple[str, str]]:
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
