from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeAlias

import pytest
from sqlalchemy import Connection, Engine, insert, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from ledger_client import Checkpoint, Log, Signer
from metering import Books, CommitError, Committer, Transaction, open_intents
from metering.tables import account_table, period_table

from .kit import CALLER, LOG, logged, request_id

Grant: TypeAlias = Callable[[int], Callable[[Transaction], int]]


class Gate:
    """Holds the committer's thread inside one unit of work, so that what is submitted meanwhile waits together."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, _transaction: Transaction) -> None:
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
def committer(transactions: Transactions) -> Iterator[Committer]:
    with Committer(transactions, LOG, max_batch=4) as committer:
        yield committer


@pytest.fixture
def grant(books: Books) -> Grant:
    return lambda number: lambda tx: books.grant_credit(tx, CALLER, 1, "more", f"grant-{number}")


def stored(engine: Engine) -> int:
    with engine.begin() as connection:
        return len(logged(connection))


def held(committer: Committer, *works: Callable[[Transaction], object]) -> tuple[Gate, list[Future[object]]]:
    """Submit works that wait together behind a gate."""
    gate = Gate()
    committer.submit(gate)
    assert gate.entered.wait(10)
    return gate, [committer.submit(work) for work in works]


def test_what_waits_together_commits_together(
    committer: Committer, transactions: Transactions, engine: Engine, grant: Grant
) -> None:
    gate, futures = held(committer, *(grant(number) for number in range(6)))
    assert not wait(futures, timeout=0.05).done
    gate.opened.set()
    assert [future.result(10) for future in futures] == list(range(6))
    assert transactions.committed == 3  # the gate, a full batch of 4, the other 2
    assert stored(engine) == 6
    with engine.begin() as connection:
        assert len(list(LOG.checkpoints(connection))) == 2  # one for each transaction that wrote


def test_work_that_fails_is_undone_alone(committer: Committer, engine: Engine, grant: Grant) -> None:
    def fail(tx: Transaction) -> None:
        grant(1)(tx)
        raise LookupError("mine")

    gate, (first, second, third) = held(committer, grant(0), fail, grant(2))
    gate.opened.set()
    assert first.result(10) == 0
    with pytest.raises(LookupError, match="mine"):
        second.result(10)
    assert third.result(10) == 1
    assert stored(engine) == 2


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
def test_work_cannot_end_the_thread(committer: Committer, grant: Grant, error: BaseException) -> None:
    def leave(_transaction: Transaction) -> None:
        raise error

    with pytest.raises(type(error)):
        committer.submit(leave).result(10)
    assert committer.submit(grant(0)).result(10) == 0


def test_a_commit_that_fails_fails_all_and_stores_nothing(
    committer: Committer, transactions: Transactions, engine: Engine, grant: Grant
) -> None:
    gate, futures = held(committer, grant(0), grant(1))
    transactions.lose_before = OSError("the disk is gone")
    gate.opened.set()
    for future in futures:
        with pytest.raises(CommitError) as caught:
            future.result(10)
        assert isinstance(caught.value.__cause__, OSError)
    assert stored(engine) == 0
    transactions.lose_before = None
    assert committer.submit(grant(0)).result(10) == 0


def test_an_error_that_rests_on_what_did_not_commit_is_not_told(
    committer: Committer, transactions: Transactions, engine: Engine, books: Books
) -> None:
    def grant(amount_nano: int) -> Callable[[Transaction], int]:
        return lambda tx: books.grant_credit(tx, CALLER, amount_nano, "more", "the-same-key")

    gate, (first, second) = held(committer, grant(1), grant(2))
    transactions.lose_before = OSError("the disk is gone")
    gate.opened.set()
    for future in (first, second):  # the second met an entry of the first, and there is none
        with pytest.raises(CommitError):
            future.result(10)
    transactions.lose_before = None
    assert committer.submit(grant(2)).result(10) == 0
    assert stored(engine) == 1


def test_a_lost_reply_is_an_error_and_the_repeat_finds_what_landed(
    committer: Committer, transactions: Transactions, engine: Engine, grant: Grant
) -> None:
    transactions.lose_after = OSError("connection reset")
    with pytest.raises(CommitError):
        committer.submit(grant(0)).result(10)
    transactions.lose_after = None
    assert committer.submit(grant(0)).result(10) == 0
    assert stored(engine) == 1


def test_a_seal_that_fails_fails_all(engine: Engine, grant: Grant, transactions: Transactions) -> None:
    class Unplugged(Signer):
        def sign(self, checkpoint: Checkpoint) -> str:
            raise OSError(f"no key for {checkpoint.size} entries")

    unplugged = Unplugged.generate("example.com/log")
    with Committer(transactions, Log(unplugged)) as committer:
        gate, futures = held(committer, grant(0), grant(1))
        gate.opened.set()
        for future in futures:
            with pytest.raises(CommitError) as caught:
                future.result(10)
            assert isinstance(caught.value.__cause__, OSError)
    assert stored(engine) == 0


def end_by_rollback(tx: Transaction) -> None:
    """What SQLite does on its own when the disk is full or fails."""
    tx.connection.exec_driver_sql("ROLLBACK")


def end_by_error(tx: Transaction) -> None:
    """PostgreSQL takes nothing but a rollback from here on."""
    with pytest.raises(SQLAlchemyError):
        tx.connection.exec_driver_sql("SELECT nothing FROM nowhere")
    if tx.connection.dialect.name == "sqlite":
        end_by_rollback(tx)


def end_through_sqlalchemy(tx: Transaction) -> None:
    tx.connection.rollback()


@pytest.mark.parametrize("end", [end_by_rollback, end_by_error, end_through_sqlalchemy])
@pytest.mark.parametrize("swallow", [False, True])
@pytest.mark.parametrize("writes", [False, True])
def test_work_that_ends_the_transaction_is_the_only_one_to_fail(
    committer: Committer, engine: Engine, grant: Grant, end: Callable[[Transaction], None], swallow: bool, writes: bool
) -> None:
    def work(tx: Transaction) -> None:
        if writes:
            grant(9)(tx)
        end(tx)
        if not swallow:
            raise LookupError("the statement that met the full disk")

    gate, (first, guilty, last) = held(committer, grant(0), work, grant(1))
    gate.opened.set()
    assert (first.result(10), last.result(10)) == (0, 1)
    with pytest.raises(CommitError if swallow else LookupError):
        guilty.result(10)
    assert stored(engine) == 2


@pytest.mark.parametrize("works", [1, 2])
def test_a_transaction_of_reservations_alone_is_not_acknowledged_once_it_has_ended(
    committer: Committer, engine: Engine, books: Books, grant: Grant, works: int
) -> None:
    committer.submit(grant(0)).result(10)

    def admit_and_end(tx: Transaction) -> None:
        books.admit(tx, CALLER, 1, request_id(0))
        end_by_error(tx)  # nothing is left to be written, whose failure would tell

    gate, futures = held(committer, *[admit_and_end] * works)
    gate.opened.set()
    for future in futures:
        with pytest.raises(CommitError):
            future.result(10)
    with engine.connect() as connection:
        assert list(open_intents(connection)) == []


def test_work_that_touched_the_connection_and_fails_is_undone_alone(
    committer: Committer, transactions: Transactions, engine: Engine, grant: Grant
) -> None:
    runs: Counter[str] = Counter()

    def counted(name: str, work: Callable[[Transaction], int]) -> Callable[[Transaction], int]:
        def run(tx: Transaction) -> int:
            runs[name] += 1
            return work(tx)

        return run

    def fail(tx: Transaction) -> int:
        grant(1)(tx)
        tx.connection.execute(update(account_table).values(pending_nano=account_table.c.pending_nano))
        raise LookupError("mine")

    works = [counted("first", grant(0)), counted("guilty", fail), counted("last", grant(2))]
    gate, (first, guilty, last) = held(committer, *works)
    gate.opened.set()
    assert (first.result(10), last.result(10)) == (0, 1)
    with pytest.raises(LookupError, match="mine"):
        guilty.result(10)
    assert stored(engine) == 2
    assert transactions.committed == 3  # the gate, and each of the two that did not fail
    assert runs == {"first": 2, "guilty": 2, "last": 1}


def test_a_row_that_the_database_refuses_when_it_is_written_fails_its_work_alone(
    committer: Committer, engine: Engine, grant: Grant
) -> None:
    add_period = insert(period_table)

    def close(number: int, log_index: int) -> Callable[[Transaction], int]:
        def work(tx: Transaction) -> int:
            row = {"period": f"2025-0{number}", "log_index": log_index, "time": "2025-01-31T23:00:00.000000Z"}
            tx.defer(add_period, row)
            return grant(number)(tx)

        return work

    gate, futures = held(committer, close(1, 7), grant(8), close(2, 7), grant(9))  # two periods under one log index
    gate.opened.set()
    assert [future.result(10) for future in (futures[0], futures[1], futures[3])] == [0, 1, 2]
    with pytest.raises(CommitError) as caught:
        futures[2].result(10)
    assert isinstance(caught.value.__cause__, IntegrityError)
    assert stored(engine) == 3


def test_a_database_that_goes_away_loses_nothing_that_was_acknowledged(
    committer: Committer, engine: Engine, grant: Grant
) -> None:
    def fill(tx: Transaction) -> None:
        connection = tx.connection
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
        connection.exec_driver_sql("CREATE TABLE filler (bytes BLOB)")
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
        connection.exec_driver_sql("INSERT INTO filler VALUES (zeroblob(1000000))")

    gate, futures = held(committer, grant(0), fill, grant(1))
    gate.opened.set()
    wait(futures, timeout=10)
    assert isinstance(futures[1].exception(), CommitError)
    acknowledged = sum(future.exception() is None for future in futures)
    assert stored(engine) == acknowledged == 2


def test_cancelled_work_is_not_done(committer: Committer, engine: Engine, grant: Grant) -> None:
    gate, (first, second) = held(committer, grant(0), grant(1))
    assert first.cancel()
    gate.opened.set()
    assert second.result(10) == 0
    assert stored(engine) == 1


def test_close_finishes_what_waits_and_refuses_more(committer: Committer, engine: Engine, grant: Grant) -> None:
    gate, futures = held(committer, *(grant(number) for number in range(9)))
    closing = threading.Thread(target=committer.close)
    closing.start()
    gate.opened.set()
    closing.join(10)
    assert [future.result(0) for future in futures] == list(range(9))
    assert stored(engine) == 9
    with pytest.raises(RuntimeError, match="closed"):
        committer.submit(grant(9))
    committer.close()


def test_many_threads_are_all_answered_after_their_commit(committer: Committer, engine: Engine, grant: Grant) -> None:
    seen: list[int] = []

    def submit(worker: int) -> None:
        for number in range(10):
            log_index = committer.submit(grant(worker * 10 + number)).result(10)
            with engine.connect() as connection:
                assert log_index < LOG.size(connection)
            seen.append(log_index)

    threads = [threading.Thread(target=submit, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(40))
