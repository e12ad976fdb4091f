"""Corrections: the difference is posted, nothing that was logged changes, and the newest record counts."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine

from attribution import apportion
from metering import (
    AdapterTerms,
    AttributionRecord,
    Books,
    DocumentTerms,
    IntentError,
    MeteringError,
    PlayerShare,
    Transaction,
    balances,
    earnings,
    entries,
    fsck_books,
    request_state,
    statement,
    supersede,
)

from .kit import (
    ADAPTER,
    CALLER,
    DOCUMENT,
    LOG,
    Clock,
    attribution_record,
    audited,
    close_period,
    logged,
    new_books,
    pay_out,
    request_id,
    transaction,
    usage_record,
)

REQUEST = request_id(7)
CHARGE_NANO = 100 * 150 + 20 * 600
WRONG = "the wrong document was scored"
RIGHT_DOCUMENT = PlayerShare(id="doc_2", share_ppm=600_000, terms=DocumentTerms(owner="bob"))

FIRST = attribution_record(REQUEST, CHARGE_NANO)
BETTER = attribution_record(REQUEST, CHARGE_NANO, (RIGHT_DOCUMENT, ADAPTER))
NOBODY = attribution_record(REQUEST, CHARGE_NANO, ())


@pytest.fixture
def attributed(engine: Engine, books: Books) -> Engine:
    with transaction(engine) as tx:
        attribute(books, tx)
    return engine


def attribute(books: Books, tx: Transaction, record: AttributionRecord = FIRST) -> None:
    books.grant_credit(tx, CALLER, 1_000_000, "welcome", "grant-1")
    intent = books.admit(tx, CALLER, 600_000, REQUEST)
    books.record_usage(tx, intent, usage_record())
    books.record_attribution(tx, record)


def stored_balances(connection: Connection) -> dict[str, int]:
    return {account: amount for account, amount in balances(connection) if amount}


def check(connection: Connection) -> None:
    """The checkers believe the log and the tables."""
    assert audited(connection) == fsck_books(connection, LOG) == []


def test_a_correction_posts_the_difference_and_leaves_what_was_logged(attributed: Engine, books: Books) -> None:
    with attributed.connect() as connection:
        before, first = logged(connection), entries(connection, "ann").lines
    with transaction(attributed) as tx:
        assert supersede(books, tx, BETTER, WRONG) == 3
    with attributed.connect() as connection:
        assert stored_balances(connection) == {
            "base:smol": 5_400,
            "caller:alice": 973_000,
            "contributor:ann": 12_096 - 11_340,
            "contributor:bob": 1_512 + 11_340,
            "contributor:dev": 5_292,
            "funding": -1_000_000,
            "platform": 2_700,
        }
        *kept, correction = logged(connection)
        assert kept == before
        assert entries(connection, "ann").lines[: len(first)] == first
        state = request_state(connection, REQUEST)
        assert state is not None
        assert state.attribution_index == 3
        check(connection)
    assert correction.type == "answer.superseded"
    assert correction.subject == REQUEST
    said = correction.data
    assert (said["supersedes"], said["usage_index"], said["charge_nano"]) == (2, 1, str(CHARGE_NANO))
    assert said["replaced_split"] == before[2].data["split"]
    assert said["split"] == BETTER.data()["split"]
    assert said["postings"] == [
        {"account": "contributor:bob", "amount_nano": "11340"},
        {"account": "contributor:ann", "amount_nano": "-11340"},
    ]
    assert said["corrections"] == [
        {"account": "contributor:bob", "kind": "document", "item": "doc_2", "amount_nano": "11340"},
        {"account": "contributor:ann", "kind": "document", "item": "doc_1", "amount_nano": "-11340"},
    ]


def test_a_correction_stands_on_statements_as_one_and_earnings_are_net(
    attributed: Engine, books: Books, clock: Clock
) -> None:
    clock.now = datetime(2025, 3, 1, tzinfo=UTC)
    with transaction(attributed) as tx:
        supersede(books, tx, BETTER, WRONG)
    with attributed.connect() as connection:
        january, march = statement(connection, "ann", "2025-01"), statement(connection, "ann", "2025-03")
        assert (january.summary.earned_nano, january.summary.corrected_nano) == (12_096, 0)
        assert (march.summary.opening_nano, march.summary.earned_nano, march.summary.corrected_nano) == (
            12_096,
            0,
            -11_340,
        )
        assert march.summary.closing_nano == 756
        (line,) = march.lines
        assert (line.log_index, line.role, line.kind, line.item, line.served_model, line.request_id) == (
            3, "correction", "document", "doc_1", "chat", REQUEST,
        )  # fmt: skip
        assert earnings(connection, "ann").total_nano == 756
        assert earnings(connection, "ann", group_by="document").groups == {"doc_1": 0, None: 756}
        assert earnings(connection, "bob", group_by="document").groups == {"doc_2": 11_340, None: 1_512}
        assert earnings(connection, "ann", "2025-03", "day").groups == {"2025-03-01": -11_340}


def test_repeating_the_record_in_force_logs_nothing(attributed: Engine, books: Books, clock: Clock) -> None:
    for correction in (BETTER, NOBODY):
        with transaction(attributed) as tx:
            index = supersede(books, tx, correction, WRONG)
            assert supersede(books, tx, correction, WRONG) == index
            size = tx.log.size
        clock.advance(days=400)
        with transaction(attributed) as tx:
            assert supersede(new_books("gw-2", clock), tx, correction, WRONG) == index
            assert tx.log.size == size


def test_the_attribution_may_be_repeated_after_it_was_superseded(
    attributed: Engine, books: Books, clock: Clock
) -> None:
    with transaction(attributed) as tx:
        supersede(books, tx, BETTER, WRONG)
        before = stored_balances(tx.connection)
    clock.advance(days=1)
    with transaction(attributed) as tx:
        assert books.record_attribution(tx, FIRST) == 2
        assert stored_balances(tx.connection) == before
        state = tx.request(REQUEST)
        assert state is not None
        assert state.attribution_index == 3


def test_a_correction_of_the_scores_alone_moves_nothing(attributed: Engine, books: Books) -> None:
    rescored = attribution_record(REQUEST, CHARGE_NANO, surplus_nats=1.0)
    with transaction(attributed) as tx:
        before = stored_balances(tx.connection)
        assert supersede(books, tx, rescored, "the estimator was wrong") == 3
        assert supersede(books, tx, rescored, "the estimator was wrong") == 3
        assert supersede(books, tx, rescored, "said better") == 4
    with attributed.connect() as connection:
        assert stored_balances(connection) == before
        assert [entry.data["postings"] for entry in logged(connection)[3:]] == [[], []]
        check(connection)


def test_a_correction_after_the_month_was_closed_and_paid_falls_into_the_next(attributed: Engine, books: Books) -> None:
    with transaction(attributed) as tx:
        pay_out(books, tx, "ann", 12_096, "2025-01")
        close_period(books, tx, "2025-01")
    with attributed.connect() as connection:
        closed = statement(connection, "ann", "2025-01")
    with transaction(attributed) as tx:
        index = supersede(books, tx, BETTER, WRONG)
    with attributed.connect() as connection:
        assert statement(connection, "ann", "2025-01") == closed
        assert (closed.closed_index, closed.summary.closing_nano) == (4, 0)
        february = statement(connection, "ann", "2025-02")
        assert [line.log_index for line in february.lines] == [index]
        assert february.lines[0].time.startswith("2025-01-31")
        assert february.summary.closing_nano == -11_340  # was paid too much, and owes it
        check(connection)


def test_what_cannot_be_corrected_is_refused(engine: Engine, books: Books) -> None:
    with transaction(engine) as tx:
        with pytest.raises(IntentError, match="not charged"):
            supersede(books, tx, BETTER, WRONG)
        books.grant_credit(tx, CALLER, 1_000_000, "welcome", "grant-1")
        intent = books.admit(tx, CALLER, 600_000, REQUEST)
        with pytest.raises(IntentError, match="not charged"):
            supersede(books, tx, BETTER, WRONG)
        books.record_usage(tx, intent, usage_record())
        with pytest.raises(IntentError, match="not attributed yet"):
            supersede(books, tx, BETTER, WRONG)
        books.record_attribution(tx, FIRST)
        with pytest.raises(MeteringError, match="split sums to 26999"):
            supersede(books, tx, attribution_record(REQUEST, CHARGE_NANO - 1), WRONG)
        for reason in ("", "two\nlines"):
            with pytest.raises(MeteringError, match="reason must match"):
                supersede(books, tx, BETTER, reason)
        size = tx.log.size
    with engine.connect() as connection:
        assert LOG.size(connection) == size == 3


def shared(weights: tuple[int, ...]) -> AttributionRecord:
    """The record of an answer whose players have these weights."""
    players = (
        DOCUMENT,
        RIGHT_DOCUMENT,
        ADAPTER,
        PlayerShare(id="plain", share_ppm=0, terms=AdapterTerms(developer="dev", datasets=())),
    )
    keys = [player.id.encode() for player in players]
    shares = apportion(1_000_000, weights, keys) if any(weights) else [0] * len(players)
    return attribution_record(
        REQUEST,
        CHARGE_NANO,
        [
            PlayerShare(id=player.id, share_ppm=share, terms=player.terms)
            for player, share in zip(players, shares, strict=True)
        ],
    )


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=1, max_size=6), st.lists(st.integers(0, 6), max_size=2))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_was_corrected_the_last_record_alone_counts(
    engine: Engine, books: Books, corrections: list[tuple[int, ...]], closed_before: list[int]
) -> None:
    """All but the log says what it would if the last record had been the first."""
    with engine.connect() as connection:  # never commits
        tx = Transaction(connection, LOG)
        attribute(books, tx)
        for number, weights in enumerate(corrections):
            for month in range(closed_before.count(number)):
                close_period(books, tx, f"2025-{number + month + 1:02}")
            supersede(books, tx, shared(weights), f"correction {number}")
        tx.seal()
        check(connection)
        found = stored_balances(connection)
        earned = {
            (contributor, by): earnings(connection, contributor, None, by).groups
            for contributor in ("ann", "bob", "dev")
            for by in ("document", "adapter", "model", "day")
        }
    with engine.connect() as connection:
        tx = Transaction(connection, LOG)
        attribute(books, tx, shared(corrections[-1]))
        tx.seal()
        assert found == stored_balances(connection)
        for (contributor, by), groups in earned.items():
            due = earnings(connection, contributor, None, by).groups
            assert Counter(groups) == Counter(due)  # a player that lost all of it stays, at nothing
