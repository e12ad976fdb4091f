"""A ledger that logs ship to: what it does for them, and the one that keeps it all in a database here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Protocol

from sqlalchemy import Connection, Row, insert, select

from ledger_client.batches import Accepted, Batch, BatchFault, BatchRefused
from ledger_client.checkpoint import CheckpointError, Note, Verifier
from ledger_client.draft import LogError, NotInLog
from ledger_client.entries import Entry, EntryError
from ledger_client.log import Log, entry_rows
from ledger_client.merkle import Frontier, leaf_hash
from ledger_client.received import Received
from ledger_client.tables import log_entry, log_fork, log_received

_BATCHES = select(log_received).order_by(log_received.c.source_end)
_FIRST_FORK = select(log_fork).limit(1)


class Ledger(Protocol):
    """Where entries of other logs are kept."""

    async def accept(self, batch: Batch) -> Accepted:
        """Hold a batch for ever, or find that it is held; returns only when that is durable.

        The reply is about the batch that begins at batch.start as it is held, which may have another end. Raises
        BatchRefused when it never will be accepted as it is, LedgerUnavailable when it may be later.
        """
        ...

    async def size(self, origin: str) -> int:
        """Return how many entries of this log are held. Raises LedgerUnavailable."""
        ...

    async def receipt(self, origin: str, log_index: int) -> str:
        """Return the proof that an entry of this log is held. Raises NotInLog, or LedgerUnavailable."""
        ...


class LedgerUnavailable(Exception):  # noqa: N818 - errors here say what is so
    """A ledger that cannot be asked now. retry_after_s: when it said that it might be, None where it said nothing."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LocalLedger:
    """The ledger in a log of this process's own.

    write: opens a transaction that commits on a clean exit; on SQLite it must have begun IMMEDIATE. read: opens one
    that sees one snapshot. sources: the keys that are trusted, each for the log of its name. clock: returns the time,
    with its zone.
    """

    def __init__(
        self,
        log: Log,
        write: Callable[[], AbstractContextManager[Connection]],
        read: Callable[[], AbstractContextManager[Connection]],
        sources: Iterable[Verifier],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._log = log
        self._write = write
        self._read = read
        self._clock = clock
        self._sources: dict[str, list[Verifier]] = {}
        for verifier in sources:
            self._sources.setdefault(verifier.name, []).append(verifier)

    async def accept(self, batch: Batch) -> Accepted:
        """See `Ledger`. Work that was begun is ended, even where nobody waits for it any more."""
        return await asyncio.to_thread(self._accept, batch)

    async def size(self, origin: str) -> int:
        """See `Ledger`."""
        return await asyncio.to_thread(self._size, origin)

    async def receipt(self, origin: str, log_index: int) -> str:
        """See `Ledger`."""
        return await asyncio.to_thread(self._receipt, origin, log_index)

    def _accept(self, batch: Batch) -> Accepted:
        """Accept a batch whose parts agree.

        1. A key that is trusted for the log signed the checkpoint.
        2. Each entry is one, and can be held.
        3. The batch begins no later than what is held of the log ends.
        4. Its checkpoint has the root of the tree that is held, with the batch's new entries behind it.
        Then it is held from its first entry on, or was already, and nothing is written.
        """
        self._check_signature(batch)
        time = f"{self._clock().astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
        wrapped = _wrapped(batch, time)
        try:
            with self._write() as connection:
                return self._hold(connection, batch, wrapped, time)
        except BatchRefused as refused:
            if refused.fault is BatchFault.FORKED:
                self._keep_evidence(batch, time)
            raise

    def _hold(self, connection: Connection, batch: Batch, wrapped: list[Entry], time: str) -> Accepted:
        draft = self._log.draft(connection)  # the fence: from here on nobody else receives
        origin = batch.checkpoint.origin
        tree = _tree(connection, origin)
        if batch.start > tree.size:
            raise BatchRefused(BatchFault.AHEAD, f"it begins at {batch.start}, behind {tree.size} here", tree.size)
        if batch.seen > draft.size:
            raise BatchRefused(
                BatchFault.AHEAD,
                f"the sender has seen {batch.seen} entries here, of {draft.size}",
                tree.size,
            )
        if _root_with(connection, tree, batch) != batch.checkpoint.root:
            # Of entries that came along, anyone may have changed one; of those here the key signed the root before.
            fault = BatchFault.FORKED if batch.end <= tree.size else BatchFault.INCONSISTENT
            raise BatchRefused(fault, f"another root of {batch.end} entries follows")
        if batch.start == tree.size:
            log_start = draft.size
            for entry in wrapped:
                draft.append(entry, new=True)
            draft.seal()
            grown = tree.extend(map(leaf_hash, batch.entries))
            row = {"origin": origin, "source_start": batch.start, "source_end": batch.end, "log_start": log_start}
            connection.execute(
                insert(log_received), row | {"time": time, "frontier": grown.encode(), "note": batch.note}
            )
        return self._held_from(connection, origin, batch.start, batch.seen)

    def _held_from(self, connection: Connection, origin: str, start: int, seen: int) -> Accepted:
        """Say what is held from the batch on that has entry `start`."""
        row = _batch_of(connection, origin, start)
        end = row.log_start + row.source_end - row.source_start
        if seen > end:
            raise BatchRefused(
                BatchFault.MALFORMED,
                f"the sender has seen {seen} entries here, but its own lie before {end}",
            )
        return Accepted(
            start=row.source_start,
            end=row.source_end,
            log_start=row.log_start,
            time=row.time,
            frontier=self._log.frontier(connection, row.log_start),
            proof=tuple(self._log.consistency(connection, seen, end)),
            note=self._log.checkpoint_at(connection, end),
        )

    def _check_signature(self, batch: Batch) -> None:
        origin = batch.checkpoint.origin
        if origin not in self._sources:
            raise BatchRefused(BatchFault.UNKNOWN_LOG, repr(origin))
        note = Note.parse(batch.note)
        named = [verifier for verifier in self._sources[origin] if verifier.signatures_of(note)]
        if not named:
            raise BatchRefused(BatchFault.UNTRUSTED, repr(origin))
        try:
            for verifier in named:
                verifier.verify(note)
        except CheckpointError as error:
            raise BatchRefused(BatchFault.UNTRUSTED, str(error)) from error

    def _keep_evidence(self, batch: Batch, time: str) -> None:
        """Keep the first checkpoint by which a log's key contradicted itself."""
        row = {"origin": batch.checkpoint.origin, "note": batch.note, "time": time}
        with self._write() as connection:
            self._log.draft(connection)  # the fence, against another who keeps the same
            if connection.execute(_FIRST_FORK.where(log_fork.c.origin == row["origin"])).one_or_none() is None:
                connection.execute(insert(log_fork), row)

    def _size(self, origin: str) -> int:
        with self._read() as connection:
            return _tree(connection, origin).size

    def _receipt(self, origin: str, log_index: int) -> str:
        with self._read() as connection:
            row = _batch_of(connection, origin, log_index)
            return self._log.receipt(connection, row.log_start + log_index - row.source_start)


def sources(connection: Connection) -> dict[str, int]:
    """Return the logs that entries were received from, and how many."""
    query = select(log_received.c.origin).distinct().order_by(log_received.c.origin)
    return {origin: _tree(connection, origin).size for origin in connection.scalars(query)}


def forks(connection: Connection) -> dict[str, str]:
    """Return the logs whose key signed two histories, and for each the checkpoint that was refused."""
    return {row.origin: row.note for row in connection.execute(select(log_fork).order_by(log_fork.c.origin))}


def received_batches(connection: Connection, origin: str) -> Iterator[Row[Any]]:
    """Yield the rows of log_received of one log, in the order of its entries."""
    end = -1
    query = _BATCHES.where(log_received.c.origin == origin).limit(100)
    while page := connection.execute(query.where(log_received.c.source_end > end)).all():
        yield from page
        end = page[-1].source_end


def _wrapped(batch: Batch, time: str) -> list[Entry]:
    origin = batch.checkpoint.origin
    try:
        return [
            Received(origin=origin, log_index=log_index, entry=Entry.decode(raw), time=time).wrapped()
            for log_index, raw in enumerate(batch.entries, start=batch.start)
        ]
    except EntryError as error:
        raise BatchRefused(BatchFault.MALFORMED, str(error)) from error


def _tree(connection: Connection, origin: str) -> Frontier:
    """Return the tree of what is held of a log."""
    query = select(log_received).where(log_received.c.origin == origin)
    last = connection.execute(query.order_by(log_received.c.source_end.desc()).limit(1)).one_or_none()
    return Frontier.decode(last.source_end, last.frontier) if last else Frontier()


def _batch_of(connection: Connection, origin: str, log_index: int) -> Row[Any]:
    """Return the row of the batch with an entry. Raises NotInLog."""
    query = _BATCHES.where(log_received.c.origin == origin, log_received.c.source_end > log_index).limit(1)
    row = connection.execute(query).one_or_none() if log_index >= 0 else None
    if row is None:
        raise NotInLog(f"entry {log_index} of {origin} is not here")
    return row


def _root_with(connection: Connection, tree: Frontier, batch: Batch) -> bytes:
    """Return the root that the log has at the batch's end: of what is held, and of what is new behind it."""
    if batch.end >= tree.size:
        return tree.extend(map(leaf_hash, batch.entries[tree.size - batch.start :])).root()
    row = _batch_of(connection, batch.checkpoint.origin, batch.end)
    return _tree_before(connection, row).extend(_leaves(connection, row, batch.end)).root()


def _tree_before(connection: Connection, row: Row[Any]) -> Frontier:
    """Return the tree of a log as it was before a batch of it."""
    if row.source_start == 0:
        return Frontier()
    query = select(log_received).where(
        log_received.c.origin == row.origin, log_received.c.source_end == row.source_start
    )
    before = connection.execute(query).one_or_none()
    if before is None:
        raise LogError(f"no batch of {row.origin} ends where one begins, at {row.source_start}")
    return Frontier.decode(before.source_end, before.frontier)


def _leaves(connection: Connection, row: Row[Any], end: int) -> Iterator[bytes]:
    """Yield the leaf hashes, in their own log's tree, of the entries of a batch up to source index `end`."""
    count = end - row.source_start
    for stored in islice(entry_rows(connection, row.log_start, log_entry.c.entry), count):
        yield leaf_hash(Received.of(Entry.decode(stored.entry)).entry.encode())
