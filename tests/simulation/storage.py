"""A database that fails as it is told, and says afterwards what it committed."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeAlias

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from gateway.database import Database
from metering import Committer, Expected, Transaction

from .load import LOG

Work: TypeAlias = Callable[[Transaction], Any]

CRASH = "crash"  # the process dies there, and nothing that it asks of the database from then on is done
STUMBLE = "stumble"  # one statement fails, as when a connection breaks
REPLY_LOST = "reply lost"  # the process dies behind the commit, before it hears of it


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to the next batch. kind: one of those below. at: before which of its statements, from 0, or else at
    its commit."""

    kind: str
    at: int = 0


class Storage:
    """One process's way to the database: a committer that is handed whole batches, so that the same seed does the same.

    ran: the works of the last batch whose transaction committed, by position.
    """

    def __init__(self, database: Database, max_batch: int) -> None:
        self._database = database
        self.ran: list[int] = []
        self._running: list[int] = []
        self._gate = False
        self._planned: Fault | None = None
        self._fault: Fault | None = None
        self._statements = 0
        self.crashed = False
        sa.event.listen(database.engine, "before_cursor_execute", self._before_statement)
        self._committer = Committer(self._begin, LOG, max_batch=max_batch)

    def commit(self, works: Sequence[Work], expected: Sequence[Expected], fault: Fault | None = None) -> list[Any]:
        """Submit works that wait together; returns what each came to, a value or an exception."""
        entered, opened = threading.Event(), threading.Event()

        def gate(_transaction: Transaction) -> None:
            entered.set()
            opened.wait()

        self._gate, self._planned = True, fault
        held = self._committer.submit(gate)
        entered.wait()
        futures = [
            self._committer.submit(partial(self._run, number, work), hint)
            for number, (work, hint) in enumerate(zip(works, expected, strict=True))
        ]
        self.ran.clear()
        opened.set()
        held.result()
        outcomes = [future.exception() or future.result() for future in futures]
        self._fault = None
        return outcomes

    def close(self) -> None:
        """End the process. What it left open the database undoes."""
        self._committer.close()
        sa.event.remove(self._database.engine, "before_cursor_execute", self._before_statement)
        self._database.close()

    def _run(self, number: int, work: Work, transaction: Transaction) -> Any:
        self._running.append(number)
        return work(transaction)

    def _before_statement(self, *_: object) -> None:
        if self.crashed:
            raise _gone()
        if self._fault is not None and self._fault.kind != REPLY_LOST:
            self._statements += 1
            if self._statements > self._fault.at:
                self._fail()

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        self._running = []
        with self._database.write() as connection:
            yield connection
            if self._fault is not None and self._fault.kind != REPLY_LOST:  # its statement never came
                self._fail()
        if self._gate:  # what was to fail is the transaction behind it
            self._gate, self._fault, self._statements = False, self._planned, 0
            return
        self.ran += self._running
        if self._fault is not None:
            self._fail()

    def _fail(self) -> NoReturn:
        assert self._fault is not None
        self.crashed = self._fault.kind != STUMBLE
        self._fault = None
        raise _gone()


def opened(url: str) -> Database:
    """Open a database as a gateway does, but without syncing, which takes most of the time; no power is cut here."""
    database = Database(url)
    sa.event.listen(database.engine, "connect", _without_syncing)
    return database


def _without_syncing(connection: Any, _record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")
    else:
        connection.execute("SET synchronous_commit = off")
        connection.commit()


def _gone() -> OperationalError:
    return OperationalError("", None, OSError("the database is gone"))
