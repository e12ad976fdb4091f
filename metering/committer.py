"""One writer, many callers: what waits together commits together."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Self, TypeAlias, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, SQLAlchemyError

from ledger_client import Log
from metering.errors import CommitError
from metering.transaction import Expected, Transaction

LINGER_S = 0.008
_LINGER_S_A_CALLER = 0.0005

T = TypeVar("T")
_NOTHING = Expected()
_IN_TRANSACTION = 2  # PQTRANS_INTRANS of libpq: open, and no error met


Told: TypeAlias = Callable[[Any, BaseException | None], None]
"""Is told what became of a unit of work: its result, or what it or the commit raised."""


class _Job:
    """A unit of work. future: where there is one, and it may have been cancelled before its turn."""

    __slots__ = ("error", "expected", "future", "result", "tell", "work")

    def __init__(
        self, work: Callable[[Transaction], Any], expected: Expected, tell: Told, future: Future[Any] | None = None
    ) -> None:
        self.work = work
        self.expected = expected
        self.tell = tell
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None


class _Alone(Exception):  # noqa: N818 - no error: an order to the committer
    """The jobs of a batch must run each in a transaction of its own; nothing of the batch is kept."""


class Committer:
    """Run units of work in the order they came, many to a database transaction, and acknowledge none before it commits.

    begin: opens a transaction that commits on a clean exit. On SQLite it must have begun IMMEDIATE.
    max_batch: the most units that share a transaction. A transaction begins with what waits; only right after another
    was acknowledged it waits, so that callers who come back at once are not left for the next: for as long as that one
    took at most, half a millisecond for each caller that it had, and never longer than LINGER_S.
    """

    def __init__(
        self, begin: Callable[[], AbstractContextManager[Connection]], log: Log, *, max_batch: int = 256
    ) -> None:
        self._begin = begin
        self._log = log
        self._max_batch = max_batch
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._awaited = 0  # jobs that there are if all whom the last transaction acknowledged come back
        self._awaited_until_s = 0.0
        self._gate = threading.Lock()  # nothing may enter the queue behind its end
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, work: Callable[[Transaction], T], expected: Expected = _NOTHING) -> Future[T]:
        """Queue a unit of work and return the future of its result, which resolves only after the commit.

        Work that raises is undone alone, and its future raises the same. When the transaction does not commit, or its
        reply is lost, every future in it raises CommitError. Work may be run more than once, so it must have no effect
        but through its transaction. Raises RuntimeError once the committer is closed.
        """
        future: Future[T] = Future()
        self._enqueue(_Job(work, expected, partial(_settle, future), future))
        return future

    def call(self, work: Callable[[Transaction], Any], tell: Told, expected: Expected = _NOTHING) -> None:
        """Queue a unit of work like `submit`, at less cost; `tell` is called in the committer's own thread.

        It is called once, must be quick, and must not raise.
        """
        self._enqueue(_Job(work, expected, tell))

    def _enqueue(self, job: _Job) -> None:
        with self._gate:
            if self._closed:
                raise RuntimeError("the committer is closed")
            self._waiting.put(job)

    def close(self) -> None:
        """Refuse new work, finish what waits, and return when it is committed. May be called again."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._next_batch()
            if batch:
                self._commit(batch)

    def _next_batch(self) -> tuple[list[_Job], bool]:
        """Wait for one job, take what waits behind it, and tell whether the queue has ended."""
        batch: list[_Job] = []
        job = self._waiting.get()
        while job is not None:
            if job.future is None or job.future.set_running_or_notify_cancel():
                batch.append(job)
            if len(batch) == self._max_batch:
                return batch, False
            left_s = self._awaited_until_s - time.monotonic() if len(batch) < self._awaited else 0
            try:
                job = self._waiting.get(timeout=max(left_s, 0))
            except queue.Empty:
                return batch, False
        return batch, True

    def _commit(self, batch: list[_Job]) -> None:
        began_s = time.monotonic()
        try:
            with self._begin() as connection:
                self._fill(connection, batch)
        except _Alone:
            for job in batch:
                job.error = None
                self._commit([job])
            return
        except BaseException as error:
            for job in batch:
                # What one of many raised may rest on what those before it did, which is gone.
                own = None if len(batch) > 1 or isinstance(job.error, OperationalError | InterfaceError) else job.error
                job.tell(None, own or _commit_error(error))
            return
        self._awaited = len(batch) + self._waiting.qsize()
        now_s = time.monotonic()
        self._awaited_until_s = now_s + min(now_s - began_s, len(batch) * _LINGER_S_A_CALLER, LINGER_S)
        for job in batch:
            job.tell(job.result, job.error)

    def _fill(self, connection: Connection, batch: list[_Job]) -> None:
        """Run a batch inside a transaction and write what it comes to. Raises _Alone where one job can spoil it all."""
        transaction = Transaction(connection, self._log)
        transaction.expect(job.expected for job in batch)
        check_open = _check_of(connection)
        for job in batch:
            mark = transaction.mark()
            try:
                job.result = job.work(transaction)
                check_open()
            except BaseException as error:
                job.error = error
                if isinstance(error, SQLAlchemyError | CommitError) or not transaction.rewind(mark):
                    # What it wrote, or what the database thinks of the transaction by now, only a rollback undoes.
                    raise (_Alone if len(batch) > 1 else error) from None
        try:
            transaction.seal()
        except IntegrityError:
            if len(batch) > 1:
                raise _Alone from None
            raise


def _settle(future: Future[T], result: T, error: BaseException | None) -> None:
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _check_of(connection: Connection) -> Callable[[], None]:
    """Return what raises CommitError when the database transaction has ended or can only be rolled back.

    A commit would not say so. SQLite ends one by itself when the disk is full or fails; PostgreSQL rolls back what met
    an error, even if the work that met it went on.
    """
    driver: Any = connection.connection.dbapi_connection
    is_sqlite = connection.dialect.name == "sqlite"

    def check() -> None:
        if not (driver.in_transaction if is_sqlite else driver.pgconn.transaction_status == _IN_TRANSACTION):
            raise CommitError("the work ended the database transaction, or met an error of it and went on")

    return check


def _commit_error(cause: BaseException) -> CommitError:
    error = CommitError("the database transaction did not commit; nothing in it was acknowledged")
    error.__cause__ = cause
    return error
