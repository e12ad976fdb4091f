"""Durable records a second: through the gateway's own path, and through the bare driver beside it.

A record is one acknowledged write of the books: an admission, a usage or an attribution, in equal parts. Callers are
coroutines of one event loop, each of which waits for its record before it writes the next.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias, TypeVar

import sqlalchemy as sa

from benchmarks.ledger import workload
from benchmarks.ledger.workload import Request
from gateway.database import Database
from gateway.metrics import LedgerState, Metrics
from gateway.transactions import Transactions, ledger_write
from ledger_client import Log, Signer
from metering import Books, Committer, Expected, Transaction

T = TypeVar("T")
NewDatabase: TypeAlias = Callable[[], AbstractContextManager[str]]
"""Gives the URL of an empty database, gone after the block."""

WRITES_A_REQUEST = 3
_CREDIT_NANO = 10**15

_Statement: TypeAlias = tuple[str, Any, bool]
"""As a driver takes it: text, parameters, and whether these are a list, of which each is run by itself."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a run comes to. ack_ms: from a caller's call to its return, of every record, the shortest first.

    cpu_us: processor time of this process for a record, which on PostgreSQL is without the server's.
    """

    records_s: float
    cpu_us: float
    ack_ms: Sequence[float]

    def ack_ms_at(self, part: float) -> float:
        """The acknowledgement time that this part of the records did not pass."""
        return self.ack_ms[min(int(part * len(self.ack_ms)), len(self.ack_ms) - 1)]


def through_the_books(
    new_database: NewDatabase, callers: int, records: int, *, max_batch: int | None = None
) -> Figures:
    """Write records as a gateway does, through the committer, after a tenth as many that are not counted.

    max_batch: the most records that share a database transaction; None for what a gateway sets.
    """
    rounds = max(records // (WRITES_A_REQUEST * callers), 1)
    uncounted = rounds // 10 + 1
    requests = [
        [workload.request(caller * (uncounted + rounds) + turn, caller) for turn in range(uncounted + rounds)]
        for caller in range(callers)
    ]
    with new_database() as url, _opened(url) as database:
        ledger, books = _books(database, callers)
        limits = {} if max_batch is None else {"max_batch": max_batch}
        with Committer(database.write, ledger, **limits) as committer:
            transactions = Transactions(database, committer, Metrics(_no_state))
            asyncio.run(_run(transactions, books, [own[:uncounted] for own in requests]))
            settled(database)
            return asyncio.run(_run(transactions, books, [own[uncounted:] for own in requests]))


async def _run(transactions: Transactions, books: Books, requests: Sequence[Sequence[Request]]) -> Figures:
    """Let every caller write its requests, one record after the other."""
    ack_ms: list[float] = []

    async def write(record: str, work: Callable[[Transaction], T], expected: Expected) -> T:
        began_s = time.perf_counter()
        result = await transactions.commit(record, work, expected)
        ack_ms.append((time.perf_counter() - began_s) * 1000)
        return result

    async def caller(own: Sequence[Request]) -> None:
        for request in own:
            admission, usage, attribution = request.expected
            intent = await write("intent", partial(request.admit, books), admission)
            await write("usage", partial(request.charge, books, intent), usage)
            await write("attribution", partial(request.attribute, books), attribution)

    gc.collect()
    gc.freeze()  # a gateway does not hold thousands of requests for the collector to walk over
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller(own) for own in requests))
    figures = _figures(time.perf_counter() - began_s, time.process_time() - began_cpu_s, ack_ms)
    gc.unfreeze()
    return figures


def settled(database: Database) -> None:
    """Do at once what a PostgreSQL server does by itself within a minute, and plans queries by."""
    if database.engine.dialect.name == "postgresql":
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("VACUUM ANALYZE"))


def through_the_driver(new_database: NewDatabase, records: int) -> Figures:
    """Write with the bare driver what the books would store for these records: one durable transaction a record.

    The statements are those that the books ran, one record a transaction, without their queries. Entries, hashes and
    signatures are made before the clock starts.
    """
    with new_database() as url:
        opening, *transactions = _recorded(url, records)
    ack_ms: list[float] = []
    with new_database() as url, _opened(url) as database:
        connection: Any = database.engine.raw_connection()
        begin = "BEGIN IMMEDIATE" if database.engine.dialect.name == "sqlite" else None  # psycopg begins by itself
        cursor = connection.cursor()
        _replay(cursor, begin, opening)
        connection.commit()
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        for statements in transactions:
            start_s = time.perf_counter()
            _replay(cursor, begin, statements)
            connection.commit()
            ack_ms.append((time.perf_counter() - start_s) * 1000)
        figures = _figures(time.perf_counter() - began_s, time.process_time() - began_cpu_s, ack_ms)
        connection.close()
        return figures


def _recorded(url: str, records: int) -> list[list[_Statement]]:
    """Run the books, and return what each of their transactions wrote: first the opening, then record after record."""
    transactions: list[list[_Statement]] = [[]]

    def record(_c: object, _cursor: object, statement: str, parameters: Any, _context: object, many: bool) -> None:
        if statement.startswith(("INSERT", "UPDATE")):
            transactions[-1].append((statement, parameters, many))

    with _opened(url) as database:
        sa.event.listen(database.engine, "before_cursor_execute", record)
        sa.event.listen(database.engine, "commit", lambda _connection: transactions.append([]))
        ledger, books = _books(database, 1)
        for number in range(max(records // WRITES_A_REQUEST, 1)):
            request = workload.request(number, 0)
            with ledger_write(database, ledger) as transaction:
                intent = request.admit(books, transaction)
            with ledger_write(database, ledger) as transaction:
                request.charge(books, intent, transaction)
            with ledger_write(database, ledger) as transaction:
                request.attribute(books, transaction)
    return transactions[:-1]


def _replay(cursor: Any, begin: str | None, statements: Sequence[_Statement]) -> None:
    if begin:
        cursor.execute(begin)
    for statement, parameters, many in statements:
        (cursor.executemany if many else cursor.execute)(statement, parameters)


@contextmanager
def _opened(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        database.migrate()
        yield database
    finally:
        database.close()


def _books(database: Database, callers: int) -> tuple[Log, Books]:
    """A new log and its books, in which each caller has credit."""
    ledger, books = Log(Signer.generate("bench.example/log")), Books("gw-1", lambda: datetime.now(UTC))
    with ledger_write(database, ledger) as transaction:
        for caller in range(callers):
            books.grant_credit(transaction, workload.account(caller), _CREDIT_NANO, "prepaid", f"grant-{caller}")
    return ledger, books


def _figures(elapsed_s: float, cpu_s: float, ack_ms: list[float]) -> Figures:
    return Figures(records_s=len(ack_ms) / elapsed_s, cpu_us=cpu_s / len(ack_ms) * 1e6, ack_ms=sorted(ack_ms))


def _no_state() -> LedgerState:
    return LedgerState(log_entries=0, open_intents=0, attribution_backlog=0, adapters_resident=0)
