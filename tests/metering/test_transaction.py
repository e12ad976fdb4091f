"""Units of work that share a transaction: each as if it were alone, and none as if it had never been."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, Table, select

import ledger_client
import metering
from ledger_client import EntryConflict
from ledger_client.tables import log_checkpoint
from metering import (
    Books,
    Budget,
    BudgetExceeded,
    Expected,
    InsufficientCredit,
    IntentError,
    MeteringError,
    RequestState,
    Transaction,
    balance,
    fsck_books,
    record_feedback,
    request_state,
    supersede,
)

from .kit import (
    ADAPTER,
    CALLER,
    DOCUMENT,
    LOG,
    attribution_record,
    close_period,
    pay_out,
    request_id,
    transaction,
    usage_record,
)

Rows: TypeAlias = dict[str, list[tuple[Any, ...]]]
Step: TypeAlias = tuple[Any, ...]

REFUSALS = (BudgetExceeded, EntryConflict, InsufficientCredit, IntentError, MeteringError)
CALLERS = (CALLER, "caller:bob")
KEY = "key_" + "a" * 26
SPLITS = ((DOCUMENT, ADAPTER), ())


class Lost(Exception):  # noqa: N818
    """What a unit of work may meet at its end."""


@dataclass(frozen=True)
class Job:
    steps: tuple[Step, ...]
    fails: bool = False

    def run(self, books: Books, tx: Transaction) -> None:
        for step in self.steps:
            take(step, books, tx)
        if self.fails:
            raise Lost


def take(step: Step, books: Books, tx: Transaction) -> None:
    match step:
        case "grant", number, caller:
            books.grant_credit(tx, caller, 100_000, "more", f"grant-{number}")
        case "limit", subject, monthly_nano, requests:
            books.set_budget(tx, Budget(subject=subject, monthly_nano=monthly_nano, requests_per_minute=requests))
        case "admit", number, caller:
            books.admit(tx, caller, 40_000, request_id(number), key=KEY, maximum_tokens=500)
        case "pay out", amount_nano:
            pay_out(books, tx, "ann", amount_nano, "2024-12")
        case "close", period:
            if period <= (tx.last_closed() or ""):
                raise MeteringError("closed")
            close_period(books, tx, period)
        case act, number, *arguments:
            state = tx.request(request_id(number))
            if state is None:
                raise IntentError("never admitted")
            follow(act, books, tx, state, *arguments)


def follow(act: str, books: Books, tx: Transaction, state: RequestState, *arguments: Any) -> None:
    """Do what follows on an admission."""
    request, charge_nano = state.intent.request_id, state.charge_nano or 0
    match act:
        case "charge":
            books.record_usage(tx, state.intent, usage_record(*arguments))
        case "void":
            books.void(tx, state.intent, "the client left")
        case "rate":
            record_feedback(books, tx, request, *arguments)
        case "attribute":
            books.record_attribution(tx, attribution_record(request, charge_nano, *arguments))
        case "correct":
            supersede(books, tx, attribution_record(request, charge_nano, *arguments), "the scores were wrong")


numbers = st.integers(0, 3)
callers = st.sampled_from(CALLERS)
steps = st.one_of(
    st.tuples(st.just("grant"), numbers, callers),
    st.tuples(
        st.just("limit"), st.sampled_from([*CALLERS, KEY]), st.none() | st.integers(0, 90_000), st.none() | numbers
    ),
    st.tuples(st.just("admit"), numbers, callers),
    st.tuples(st.just("charge"), numbers, st.integers(90, 110)),
    st.tuples(st.just("void"), numbers),
    st.tuples(st.sampled_from(["attribute", "correct"]), numbers, st.sampled_from(SPLITS)),
    st.tuples(st.just("pay out"), st.integers(1, 2)),
    st.tuples(st.just("close"), st.sampled_from(["2025-01", "2025-02"])),
)
# A rating reads the database, after which its job could not be undone alone, so it is the only step of one.
ratings = st.tuples(st.just("rate"), numbers, st.sampled_from([1, -1]))
jobs = st.one_of(
    st.builds(Job, st.lists(steps, min_size=1, max_size=6).map(tuple), st.booleans()),
    st.builds(Job, st.tuples(ratings)),
)
# Random steps seldom make a whole answer, so most histories begin with some.
beginnings = st.lists(
    st.builds(
        lambda number, fails: Job(
            (
                ("grant", number, CALLER),
                ("admit", number, CALLER),
                ("charge", number, 100),
                ("attribute", number, SPLITS[0]),
            ),
            fails,
        ),
        numbers,
        st.booleans(),
    ),
    max_size=3,
)
histories = st.builds(lambda beginning, rest: [*beginning, *rest], beginnings, st.lists(jobs, max_size=12))


def tables() -> list[Table]:
    return [*ledger_client.metadata.sorted_tables, *metering.metadata.sorted_tables]


def stored(connection: Connection) -> Rows:
    return {table.name: sorted(map(tuple, connection.execute(select(table))), key=repr) for table in tables()}


def together(connection: Connection, books: Books, work: Sequence[Job], expected: Sequence[Expected] = ()) -> list[Job]:
    """Run jobs in one transaction, as the committer does; returns those that did not fail."""
    tx = Transaction(connection, LOG)
    tx.expect(expected)
    done = []
    for job in work:
        mark = tx.mark()
        try:
            job.run(books, tx)
        except (*REFUSALS, Lost):
            assert tx.rewind(mark)
        else:
            done.append(job)
    tx.seal()
    for caller in CALLERS:
        assert tx.balance(caller) == balance(connection, caller)
    for number in range(4):
        assert tx.request(request_id(number)) == request_state(connection, request_id(number))
    return done


@given(histories)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_work_that_fails_leaves_the_rows_as_if_it_had_never_run(
    engine: Engine, books: Books, history: list[Job]
) -> None:
    with engine.connect() as connection:  # never commits
        done = together(connection, books, history)
        rows = stored(connection)
        assert fsck_books(connection, LOG) == []
    with engine.connect() as connection:
        assert together(connection, books, done) == done
        assert stored(connection) == rows


@given(histories, st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_work_that_shares_a_transaction_leaves_the_rows_that_each_alone_would(
    engine: Engine, books: Books, history: list[Job], told: bool
) -> None:
    expected = Expected(accounts=CALLERS, requests=tuple(map(request_id, range(4))), budgets=(*CALLERS, KEY))
    with engine.connect() as connection:  # never commits
        done = together(connection, books, history, [expected] if told else [])
        rows = stored(connection)
    with engine.connect() as connection:
        alone = [job for job in history if together(connection, books, [job])]
        Transaction(connection, LOG).seal()
        checkpoint = LOG.checkpoint(connection)
        rows_alone = stored(connection)
    assert alone == done
    # Each transaction that wrote has signed its own head, of which the last is the same.
    heads, heads_alone = rows.pop(log_checkpoint.name), rows_alone.pop(log_checkpoint.name)
    assert rows_alone == rows
    assert set(heads) <= set(heads_alone)
    assert not heads or checkpoint in {note for _, note in heads}


def test_what_was_written_cannot_be_undone_alone(engine: Engine, books: Books) -> None:
    with transaction(engine) as tx:
        mark = tx.mark()
        books.grant_credit(tx, CALLER, 1, "more", "grant-1")
        assert balance(tx.connection, CALLER).credits_nano == 1
        assert not tx.rewind(mark)
        mark = tx.mark()
        books.grant_credit(tx, CALLER, 1, "more", "grant-2")
        assert tx.rewind(mark)
    with engine.connect() as connection:
        assert balance(connection, CALLER).credits_nano == 1
        assert LOG.size(connection) == 1


def test_a_transaction_that_is_not_sealed_leaves_nothing(engine: Engine, books: Books) -> None:
    with engine.begin() as connection:
        before = stored(connection)
        books.grant_credit(Transaction(connection, LOG), CALLER, 1, "more", "grant-1")
    with engine.connect() as connection:
        rows = stored(connection)
    assert {name: of_table for name, of_table in rows.items() if name != "log_head"} == {
        name: of_table for name, of_table in before.items() if name != "log_head"
    }


def test_totals_stop_where_a_column_would_overflow(engine: Engine, books: Books) -> None:
    most = 9_200_000_000_000_000_000
    with transaction(engine) as tx:
        books.set_budget(tx, Budget(subject=CALLER, requests_per_minute=9))
        books.admit(tx, CALLER, 0, request_id(0), maximum_tokens=most)
        mark = tx.mark()
        with pytest.raises(MeteringError, match="would pass"):
            books.admit(tx, CALLER, 0, request_id(1), maximum_tokens=1)
        assert tx.rewind(mark)
