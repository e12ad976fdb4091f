"""Logs that ship, ledgers that receive, and a loopback address between them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import sqlalchemy as sa
from starlette.types import ASGIApp

from gateway.database import Database
from gateway.ledger_server import create_ledger_app
from gateway.published import DatabaseReads, Published
from ledger_client import (
    Accepted,
    Batch,
    Checkpoint,
    Entry,
    Finding,
    LocalLedger,
    Log,
    Shipment,
    Signer,
    StoredLog,
    StoredReceived,
    Verifier,
    entries_of,
    fsck,
    fsck_shipments,
    metadata,
    next_batch,
    verify_accepted,
)
from ledger_client.shipping import ADD_SHIPMENT

Due = tuple[Batch, Checkpoint]


def make_tables(database: Database) -> None:
    with database.write() as connection:
        metadata.create_all(connection)


class Source:
    """A log in a database, as a gateway has it."""

    def __init__(self, database: Database, signer: Signer) -> None:
        self.database = database
        self.signer = signer
        self.log = Log(signer)
        make_tables(database)

    def commit(self, entries: Iterable[Entry]) -> None:
        with self.database.write() as connection:
            draft = self.log.draft(connection)
            for entry in entries:
                draft.append(entry)
            draft.seal()

    @property
    def entries(self) -> list[bytes]:
        with self.database.read() as connection:
            return [raw for _, raw in self.log.entries(connection)]

    def next(self, ledger: str) -> Due | None:
        with self.database.read() as connection:
            return next_batch(connection, self.log, ledger)

    def batch(self, start: int, end: int, seen: int = 0) -> Batch:
        with self.database.read() as connection:
            note = self.log.checkpoint_at(connection, end)
        return Batch(start=start, entries=tuple(self.entries[start:end]), note=note, seen=seen)

    def verify(self, accepted: Accepted, ledger: Verifier, due: Due | None = None) -> Shipment:
        """Verify an acceptance of the batch that is due, or was, and do not keep it."""
        with self.database.read() as connection:
            due = due or next_batch(connection, self.log, ledger.name)
            assert due is not None
            return verify_accepted(accepted, due[0], entries_of(connection, accepted), due[1], ledger)

    def keep(self, shipment: Shipment) -> None:
        with self.database.write() as connection:
            connection.execute(ADD_SHIPMENT[connection.dialect.name], shipment.row())

    def fsck(self) -> list[Finding]:
        with self.database.read() as connection:
            return fsck_shipments(connection, self.log)


class Elsewhere:
    """A ledger in a database of its own."""

    def __init__(self, database: Database, signer: Signer, sources: Iterable[Verifier]) -> None:
        self.database = database
        self.signer = signer
        self.log = Log(signer)
        self.sources = list(sources)
        self.now = datetime(2025, 2, 1, tzinfo=UTC)
        make_tables(database)

    @property
    def ledger(self) -> LocalLedger:
        return LocalLedger(self.log, self.database.write, self.database.read, self.sources, lambda: self.now)

    @property
    def app(self) -> ASGIApp:
        reads = DatabaseReads(self.database)
        published = Published(log=self.log, verifier_key=self.signer.verifier_key, reads=reads)
        return create_ledger_app(self.ledger, published)

    @property
    def entries(self) -> list[bytes]:
        with self.database.read() as connection:
            return [raw for _, raw in self.log.entries(connection)]

    def fsck(self) -> list[Finding]:
        with self.database.read() as connection:
            return self.check(connection)

    def check(self, connection: sa.Connection) -> list[Finding]:
        stored = StoredLog(connection)
        laws = (stored, StoredReceived(connection, self.sources))
        return fsck(stored.entries(), self.log.checkpoints(connection), None, self.signer.verifier, laws=laws)
