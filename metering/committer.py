"""One writer, many callers: what waits together commits together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from sqlalchemy import Connection

from metering.errors import CommitError

T = TypeVar("T")


@dataclass(eq=False)
class _Job:
    work: Callable[[Connection], Any]
    future: Future[Any] = field(default_factory=Future)
    result: Any = None
    error: BaseException | None = None


class Committer:
    """Run units of work in the order they came, many to a database transaction, and acknowledge none before it commits.

    begin: opens a transaction that commits on a clean exit and that no other writer can be inside of at the same time:
    BEGIN IMMEDIATE on SQLite, a lock on the log's head on PostgreSQL. seal: runs once before each commit.
    max_batch: the most units that share a transaction; nothing waits for a batch to fill.
    """

    def __init__(
        self,
        begin: Callable[[], AbstractContextManager[Connection]],
        seal: Callable[[Connection], object],
        *,
        max_batch: int = 64,
    ) -> None:
        self._begin = begin
        self._seal = seal
        self._max_batch = max_batch
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._gate = threading.Lock()  # nothing may enter the queue behind its end
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        """Queue a unit of work and return the future of its result, which resolves only after the commit.

        Work that raises is undone alone, and its future raises the same. When the transaction does not commit, or its
        reply is lost, every future in it raises CommitError. Raises RuntimeError once the committer is closed.
        """
        job = _Job(work)
        with self._gate:
            if self._closed:
                raise RuntimeError("the committer is closed")
            self._waiting.put(job)
        return job.future

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
            if job.future.set_running_or_notify_cancel():
                batch.append(job)
            if len(batch) == self._max_batch:
                return batch, False
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _commit(self, batch: list[_Job]) -> None:
        try:
            with self._begin() as connection:
                for job in batch:
                    _attempt(job, connection)
                self._seal(connection)
        except BaseException as error:
            for job in batch:
                job.future.set_exception(job.error or _commit_error(error))
            return
        for job in batch:
            if job.error is None:
                job.future.set_result(job.result)
            else:
                job.future.set_exception(job.error)


def _attempt(job: _Job, connection: Connection) -> None:
    """Run one job inside a savepoint; raise only when the transaction around it can no longer be trusted."""
    savepoint = connection.begin_nested()
    try:
        job.result = job.work(connection)
    except BaseException as error:
        # A database may have ended the whole transaction by itself, as SQLite does when the disk is full. Rolling back
        # to the savepoint fails then, and must fail the batch: what came before in it is gone.
        if not savepoint.is_active:
            raise
        savepoint.rollback()
        job.error = error
    else:
        savepoint.commit()


def _commit_error(cause: BaseException) -> CommitError:
    error = CommitError("the database transaction did not commit; nothing in it was acknowledged")
    error.__cause__ = cause
    return error
