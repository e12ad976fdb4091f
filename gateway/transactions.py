"""The database, off the event loop: reads in threads, writes through the one committer."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog

from gateway.database import Database, DatabaseError
from gateway.metrics import Metrics
from gateway.published import DatabaseReads
from ledger_client import Log, Signer
from metering import Committer, Expected, Transaction

T = TypeVar("T")
log = structlog.get_logger(__name__)


class DatabaseUnavailableError(RuntimeError):
    """The database does not answer now; asking again later is worth it."""


def require_signer(database: Database, ledger: Log, signer: Signer, origin: str) -> None:
    """Raise DatabaseError or CheckpointError unless the key is of this origin and signed the log so far."""
    if signer.name != origin:
        raise DatabaseError(f"log.origin is {origin!r}, but the signing key is of {signer.name!r}")
    with database.read() as connection:
        signer.verifier.open(ledger.checkpoint(connection))


@contextmanager
def ledger_write(database: Database, ledger: Log) -> Iterator[Transaction]:
    """A transaction on the books, sealed and committed on a clean exit."""
    with database.write() as connection:
        transaction = Transaction(connection, ledger)
        yield transaction
        transaction.seal()


class Transactions(DatabaseReads):
    """How asynchronous code reads and writes."""

    def __init__(self, database: Database, committer: Committer, metrics: Metrics) -> None:
        super().__init__(database)
        self.dialect = database.engine.dialect.name
        self._committer = committer
        self._metrics = metrics
        self._acknowledged: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._reading: set[asyncio.Task[Any]] = set()

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run a query in a read transaction of its own. Raises DatabaseUnavailableError."""
        reading = asyncio.create_task(super().read(query))
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)
        try:
            return await asyncio.shield(reading)
        except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
            log.warning("database_unavailable", error=str(getattr(error, "orig", error)))
            raise DatabaseUnavailableError("the database does not answer; try again later") from None

    async def close(self) -> None:
        """Return when every query has ended; one whose caller has gone would outlive the database otherwise."""
        while self._reading:
            await asyncio.wait(self._reading)

    async def commit(self, record: str, work: Callable[[Transaction], T], *expected: Expected) -> T:
        """Run work in a transaction; returns when it is durable. record: what is written, a label of the metric.

        The work may be run more than once and must have no effect but through the transaction.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[T] = loop.create_future()
        started_s = time.perf_counter()
        try:
            self._committer.call(work, partial(self._acknowledge, loop, waiter), *expected)
            return await waiter
        finally:
            self._metrics.commit_seconds.labels(record).observe(time.perf_counter() - started_s)

    def _acknowledge(
        self, loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[T], result: T, error: BaseException | None
    ) -> None:
        """Have the loop wake a caller. What one database transaction acknowledges wakes it once."""
        self._acknowledged.append((waiter, result, error))
        if len(self._acknowledged) == 1:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        while self._acknowledged:
            waiter, result, error = self._acknowledged.popleft()
            if waiter.cancelled():
                continue
            if error is None:
                waiter.set_result(result)
            else:
                waiter.set_exception(error)
