from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeAlias

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from ledger_client import Log
from metering import Books, CommitError, Committer

from .kit import CALLER, logged

Grant: TypeAlias = Callable[[int], Callable[[Connection], int]]


class Gate:
    """Holds the committer's thread inside one unit of work, so that what is submitted meanwhile waits together."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, _connection: Connection) -> None:
        self.entered.set()
        assert self.opened.wait(10)


class Transactions:
    """Begins transactions on the engine, counts those that committed, and can lose one or its reply."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.committed = 0
        self.lose_before: Exception | None = None
        self.lose_after: Exception | None = None

    @contextmanager
    def __call__(self) -> Iterator[Connection]:
        with self.engine.begin() as connection:
            yield connection
            if self.lose_before:
                raise self.lose_before
        self.committed += 1
        if self.lose_after:
            raise self.lose_after


@pytest.fixture
def transactions(engine: Engine) -> Transactions:
    return Transactions(engine)


@pytest.fixture
def committer(transactions: Transactions, log: Log) -> Iterator[Committer]:
    with Committer(transactions, log.seal, max_batch=4) as committer:
        yield committer


@pytest.fixture
def grant(books: Books) -> Grant:
    return lambda number: lambda connection: books.grant_credit(connection, CALLER, 1, "more", f"grant-{number}")


def stored(engine: Engine, log: Log) -> int:
    with engine.begin() as connection:
        return len(logged(log, connection))


def held(committer: Committer, *works: Callable[[Connection], object]) -> tuple[Gate, list[Future[object]]]:
    """Submit works that wait together behind a gate."""
    gate = Gate()
    committer.submit(gate)
    assert gate.entered.wait(10)
    return gate, [committer.submit(work) for work in works]


def test_what_waits_together_commits_together(
    committer: Committer, transactions: Transactions, engine: Engine, log: Log, grant: Grant
) -> None:
    gate, futures = held(committer, *(grant(number) for number in range(6)))
    assert not wait(futures, timeout=0.05).done
    gate.opened.set()
    assert [future.result(10) for future in futures] == list(range(6))
    assert transactions.committed == 3  # the gate, a full batch of 4, the other 2
    assert stored(engine, log) == 6
    with engine.begin() as connection:
        assert len(list(log.checkpoints(connection))) == 2  # one for each transaction that wrote


def test_work_that_fails_is_undone_alone(committer: Committer, engine: Engine, log: Log, grant: Grant) -> None:
    def fail(connection: Connection) -> None:
        grant(1)(connection)
        raise LookupError("mine")

    gate, (first, second, third) = held(committer, grant(0), fail, grant(2))
    gate.opened.set()
    assert first.result(10) == 0
    with pytest.raises(LookupError, match="mine"):
        second.result(10)
    assert third.result(10) == 1
    assert stored(engine, log) == 2


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
def test_work_cannot_end_the_thread(committer: Committer, grant: Grant, error: BaseException) -> None:
    def leave(_connection: Connection) -> None:
        raise error

    with pytest.raises(type(error)):
        committer.submit(leave).result(10)
    assert committer.submit(grant(0)).result(10) == 0


def test_a_commit_that_fails_fails_all_and_stores_nothing(
    committer: Committer, transactions: Transactions, engine: Engine, log: Log, grant: Grant
) -> None:
    gate, futures = held(committer, grant(0), grant(1))
    transactions.lose_before = OSError("the disk is gone")
    gate.opened.set()
    for future in futures:
        with pytest.raises(CommitError) as caught:
            future.result(10)
        assert isinstance(caught.value.__cause__, OSError)
    assert stored(engine, log) == 0
    transactions.lose_before = None
    assert committer.submit(grant(0)).result(10) == 0


def test_a_lost_reply_is_an_error_and_the_repeat_finds_what_landed(
    committer: Committer, transactions: Transactions, engine: Engine, log: Log, grant: Grant
) -> None:
    transactions.lose_after = OSError("connection reset")
    with pytest.raises(CommitError):
        committer.submit(grant(0)).result(10)
    transactions.lose_after = None
    assert committer.submit(grant(0)).result(10) == 0
    assert stored(engine, log) == 1


def test_a_seal_that_fails_fails_all(engine: Engine, log: Log, grant: Grant, transactions: Transactions) -> None:
    def refuse(_connection: Connection) -> None:
        raise OSError("no key")

    with Committer(transactions, refuse) as committer, pytest.raises(CommitError):
        committer.submit(grant(0)).result(10)
    assert stored(engine, log) == 0


@pytest.mark.parametrize("swallow", [False, True])
def test_a_database_that_ends_the_transaction_by_itself_acknowledges_nothing(
    committer: Committer, engine: Engine, log: Log, grant: Grant, swallow: bool
) -> None:
    def end_transaction(connection: Connection) -> None:
        # What SQLite does on its own when the disk is full or fails.
        connection.exec_driver_sql("ROLLBACK")
        if not swallow:
            raise LookupError("the statement that met the full disk")

    gate, futures = held(committer, grant(0), end_transaction, grant(1))
    gate.opened.set()
    for future in futures:
        with pytest.raises(CommitError):
            future.result(10)
    assert stored(engine, log) == 0
    assert committer.submit(grant(2)).result(10) == 0


@pytest.mark.parametrize("new_database", ["sqlite"], indirect=True)
def test_a_full_disk_loses_nothing_that_was_acknowledged(
    committer: Committer, engine: Engine, log: Log, grant: Grant
) -> None:
    def fill(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE filler (bytes BLOB)")
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
        connection.exec_driver_sql("INSERT INTO filler VALUES (zeroblob(1000000))")

    gate, futures = held(committer, grant(0), fill, grant(1))
    gate.opened.set()
    wait(futures, timeout=10)
    assert isinstance(futures[1].exception(), OperationalError | CommitError)
    acknowledged = sum(future.exception() is None for future in futures)
    assert stored(engine, log) == acknowledged


def test_work_may_not_end_the_transaction_that_others_share(
    committer: Committer, engine: Engine, log: Log, grant: Grant
) -> None:
    gate, futures = held(committer, grant(0), lambda connection: connection.rollback(), grant(1))
    gate.opened.set()
    for future in futures:
        with pytest.raises(CommitError):
            future.result(10)
    assert stored(engine, log) == 0


def test_cancelled_work_is_not_done(committer: Committer, engine: Engine, log: Log, grant: Grant) -> None:
    gate, (first, second) = held(committer, grant(0), grant(1))
    assert first.cancel()
    gate.opened.set()
    assert second.result(10) == 0
    assert stored(engine, log) == 1


def test_close_finishes_what_waits_and_refuses_more(
    committer: Committer, engine: Engine, log: Log, grant: Grant
) -> None:
    gate, futures = held(committer, *(grant(number) for number in range(9)))
    closing = threading.Thread(target=committer.close)
    closing.start()
    gate.opened.set()
    closing.join(10)
    assert [future.result(0) for future in futures] == list(range(9))
    assert stored(engine, log) == 9
    with pytest.raises(RuntimeError, match="closed"):
        committer.submit(grant(9))
    committer.close()


def test_many_threads_are_all_answered_after_their_commit(
    committer: Committer, engine: Engine, log: Log, grant: Grant
) -> None:
    seen: list[int] = []

    def submit(worker: int) -> None:
        for number in range(10):
            log_index = committer.submit(grant(worker * 10 + number)).result(10)
            with engine.connect() as connection:
                assert log_index < log.size(connection)
            seen.append(log_index)

    threads = [threading.Thread(target=submit, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(40))
