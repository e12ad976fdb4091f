"""Shipping a log to a ledger elsewhere: what goes next, whether what came back is true, and both receipts.

The ledger's word is never taken. Its reply names where it put the entries and how its tree was before; from these and
the entries themselves the sender works out the root that the ledger must have signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Insert, Row, func, select
from sqlalchemy.dialects import postgresql, sqlite

from ledger_client.batches import MAX_BATCH_ENTRIES, Accepted, Batch, fitting
from ledger_client.checkpoint import Checkpoint, CheckpointError, Note, Verifier
from ledger_client.draft import NotInLog
from ledger_client.entries import Entry, EntryError
from ledger_client.log import Log
from ledger_client.merkle import (
    EMPTY_ROOT,
    Frontier,
    ProofError,
    hashes_after,
    inclusion_path,
    leaf_hash,
    verify_consistency,
)
from ledger_client.receipt import Receipt
from ledger_client.received import Received
from ledger_client.tables import log_entry, log_shipment

# A batch that two processes shipped was held once, and both were told the same of it.
ADD_SHIPMENT: dict[str, Insert] = {
    "sqlite": sqlite.insert(log_shipment).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(log_shipment).on_conflict_do_nothing(),
}
"""Database dialect → the statement that keeps a `Shipment.row`."""

_CURSOR = func.coalesce(func.max(log_shipment.c.log_end), 0)


class LedgerInconsistent(Exception):  # noqa: N818 - errors here say what is so
    """A ledger said what its own signatures contradict, or does not hold what was sent to it."""


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """Entries [start, end) of a log as the log named `ledger` holds them, from ledger_start on; verified.

    time: of receipt. frontier: of the ledger's tree before them. note: its checkpoint right behind them.
    """

    ledger: str
    start: int
    end: int
    ledger_start: int
    time: str
    frontier: Frontier
    note: str

    def row(self) -> dict[str, object]:
        """Return the row of log_shipment."""
        return {
            "ledger": self.ledger,
            "log_start": self.start,
            "log_end": self.end,
            "ledger_start": self.ledger_start,
            "time": self.time,
            "frontier": self.frontier.encode(),
            "note": self.note,
        }


def shipped(connection: Connection, ledger: str) -> int:
    """Return how many entries of the log this ledger holds; the log index of the next to go."""
    return connection.scalar(select(_CURSOR).where(log_shipment.c.ledger == ledger)) or 0


def seen_checkpoint(connection: Connection, ledger: str) -> Checkpoint:
    """Return the ledger's checkpoint that was verified last; that of an empty log where there is none."""
    query = select(log_shipment.c.note).where(log_shipment.c.ledger == ledger)
    note = connection.scalar(query.order_by(log_shipment.c.log_end.desc()).limit(1))
    if note is None:
        return Checkpoint(origin=ledger, size=0, root=EMPTY_ROOT)
    return Checkpoint.parse(Note.parse(note).text)  # verified when it was kept, maybe under an older key


def next_batch(connection: Connection, log: Log, ledger: str) -> tuple[Batch, Checkpoint] | None:
    """Return the next batch to ship, and the ledger's checkpoint seen last; None when all is shipped.

    Wants one snapshot. As many entries go as fit, to the newest sealed one, and in the order of the log.
    """
    start = shipped(connection, ledger)
    sealed = Checkpoint.parse(Note.parse(log.checkpoint(connection)).text).size
    entries = fitting(_entries(connection, start, min(sealed, start + MAX_BATCH_ENTRIES)))
    if not entries:
        return None
    seen = seen_checkpoint(connection, ledger)
    note = log.checkpoint_at(connection, start + len(entries))
    return Batch(start=start, entries=entries, note=note, seen=seen.size), seen


def entries_of(connection: Connection, accepted: Accepted) -> tuple[bytes, ...]:
    """Return the log's own entries that an acceptance is about. Raises LedgerInconsistent when it has fewer."""
    entries = tuple(_entries(connection, accepted.start, accepted.end))
    if len(entries) != accepted.end - accepted.start:
        raise LedgerInconsistent(f"it holds entries up to {accepted.end}, which this log does not have")
    return entries


def verify_accepted(
    accepted: Accepted, batch: Batch, entries: Sequence[bytes], seen: Checkpoint, verifier: Verifier
) -> Shipment:
    """Return what an acceptance proves about the batch. Raises LedgerInconsistent when it does not.

    entries: those of the log from accepted.start up to accepted.end. seen: the ledger's checkpoint verified last.

    1. It is about the batch.
    2. The ledger's key signed its checkpoint, which is of the size that the entries give it.
    3. The checkpoint is consistent with the one seen last.
    4. The ledger's tree of before, and the entries as it must hold them, have the checkpoint's root.
    """
    if accepted.start != batch.start:
        raise LedgerInconsistent(f"it was sent entries from {batch.start} on, and answers of {accepted.start}")
    try:
        checkpoint = verifier.open(accepted.note)
        if checkpoint.size != accepted.log_start + len(entries):
            raise LedgerInconsistent(f"its checkpoint is of {checkpoint.size} entries, not right behind the batch")
        verify_consistency(seen.size, seen.root, checkpoint.size, checkpoint.root, accepted.proof)
        leaves = _leaves(batch.checkpoint.origin, accepted.start, entries, accepted.time)
    except (CheckpointError, EntryError, ProofError) as error:
        raise LedgerInconsistent(str(error)) from error
    if accepted.frontier.extend(leaves).root() != checkpoint.root:
        raise LedgerInconsistent(f"entries {accepted.start} to {accepted.end - 1} are not where it says that they are")
    return Shipment(
        ledger=verifier.name,
        start=accepted.start,
        end=accepted.end,
        ledger_start=accepted.log_start,
        time=accepted.time,
        frontier=accepted.frontier,
        note=accepted.note,
    )


def held_root(connection: Connection, origin: str, row: Row[Any]) -> bytes:
    """Return the root that a ledger has if it holds the entries of a row of log_shipment. Raises EntryError."""
    leaves = _leaves(origin, row.log_start, _entries(connection, row.log_start, row.log_end), row.time)
    return Frontier.decode(row.ledger_start, row.frontier).extend(leaves).root()


def ledger_receipt(connection: Connection, log: Log, ledger: str, log_index: int) -> str:
    """Return the proof that a ledger elsewhere holds an entry, made from what it acknowledged. Asks nobody.

    Raises NotInLog when it has not acknowledged the entry.
    """
    row = _shipment_of(connection, ledger, log_index)
    entries = tuple(_entries(connection, row.log_start, row.log_end))
    held = _wrapped(log.origin, row.log_start, entries, row.time)
    before = Frontier.decode(row.ledger_start, row.frontier)
    index = row.ledger_start + log_index - row.log_start
    hash_at = hashes_after(before, [leaf_hash(entry) for entry in held])
    path = tuple(inclusion_path(index, row.ledger_start + len(held), hash_at))
    return Receipt(index=index, path=path, note=row.note, entry=held[log_index - row.log_start]).format()


def _shipment_of(connection: Connection, ledger: str, log_index: int) -> Row[Any]:
    query = select(log_shipment).where(log_shipment.c.ledger == ledger, log_shipment.c.log_end > log_index)
    row = connection.execute(query.order_by(log_shipment.c.log_end).limit(1)).one_or_none()
    if row is None or log_index < row.log_start:
        raise NotInLog(f"{ledger} has not acknowledged entry {log_index} yet")
    return row


def _entries(connection: Connection, start: int, stop: int) -> Sequence[bytes]:
    query = select(log_entry.c.entry).where(log_entry.c.log_index >= start, log_entry.c.log_index < stop)
    return connection.scalars(query.order_by(log_entry.c.log_index)).all()


def _wrapped(origin: str, start: int, entries: Sequence[bytes], time: str) -> list[bytes]:
    return [
        Received(origin=origin, log_index=log_index, entry=Entry.decode(raw), time=time).wrapped().encode()
        for log_index, raw in enumerate(entries, start=start)
    ]


def _leaves(origin: str, start: int, entries: Sequence[bytes], time: str) -> list[bytes]:
    return [leaf_hash(raw) for raw in _wrapped(origin, start, entries, time)]
