"""Budgets: exact whoever asks at once, given back at the end, and of the month and minute of the admission."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from metering import Books, Budget, BudgetExceeded, Committer, Intent, IntentError, MeteringError, Transaction
from metering.budgets import Draw
from metering.tables import budget_table

from .kit import CALLER, LOG, Clock, new_books, request_id, transaction, usage_record

KEY = "key_" + "a" * 26
OTHER_KEY = "key_" + "b" * 26
MONTH, MINUTE = "2025-01", "2025-01-31T23:00"
CHARGE_NANO = 100 * 150 + 20 * 600
LIMITS = ("monthly_nano", "requests_per_minute", "tokens_per_minute")


@pytest.fixture
def funded(engine: Engine, books: Books) -> Engine:
    with transaction(engine) as tx:
        books.grant_credit(tx, CALLER, 10**12, "welcome", "grant-1")
    return engine


def limit(engine: Engine, books: Books, subject: str = CALLER, **limits: int) -> None:
    with transaction(engine) as tx:
        books.set_budget(tx, Budget(subject=subject, **limits))


def admit(engine: Engine, books: Books, number: int, maximum_nano: int = 50_000, **arguments: Any) -> Intent:
    with transaction(engine) as tx:
        return books.admit(tx, CALLER, maximum_nano, request_id(number), **arguments)


def drawn(engine: Engine, subject: str = CALLER) -> tuple[int, int, int]:
    """Requests and tokens of the minute, nano-USD of the month."""
    with transaction(engine) as tx:
        minute, month = tx.drawn(subject, MINUTE), tx.drawn(subject, MONTH)
    assert (minute.spent_nano, month.requests, month.tokens) == (0, 0, 0)
    return minute.requests, minute.tokens, month.spent_nano


@pytest.mark.parametrize("subject", [CALLER, KEY])
@pytest.mark.parametrize(
    ("limits", "exceeded"),
    [
        ({"monthly_nano": 25 * 7 + 6}, "monthly_budget"),
        ({"requests_per_minute": 25}, "requests_per_minute"),
        ({"tokens_per_minute": 25 * 3 + 2}, "tokens_per_minute"),
    ],
)
def test_a_budget_is_exact_whoever_asks_at_once(
    funded: Engine, clock: Clock, subject: str, limits: dict[str, int], exceeded: str
) -> None:
    """Four threads, through two committers and without one, as processes with one database would."""
    gateways = [new_books(f"gw-{number}", clock) for number in range(4)]
    limit(funded, gateways[0], subject, **limits)
    outcomes: Counter[str] = Counter()

    def admit_many(worker: int) -> None:
        def ask(tx: Transaction) -> Intent:
            return gateways[worker].admit(tx, CALLER, 7, request, key=KEY, maximum_tokens=3)

        for number in range(10):
            request = request_id(worker * 100 + number)
            try:
                if worker % 2:
                    committers[worker // 2].submit(ask).result(30)
                else:
                    with transaction(funded) as tx:
                        ask(tx)
                outcomes["admitted"] += 1
            except BudgetExceeded as error:
                outcomes[error.limit] += 1

    with Committer(funded.begin, LOG) as first, Committer(funded.begin, LOG) as second:
        committers = [first, second]
        threads = [threading.Thread(target=admit_many, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes == {"admitted": 25, exceeded: 15}
    assert drawn(funded, subject) == (25, 25 * 3, 25 * 7)


def test_an_end_gives_back_what_was_not_taken(funded: Engine, books: Books) -> None:
    for subject in (CALLER, KEY):
        limit(funded, books, subject, monthly_nano=100_000, requests_per_minute=9, tokens_per_minute=1_000)
    charged = admit(funded, books, 0, key=KEY, maximum_tokens=400)
    voided = admit(funded, books, 1, key=KEY, maximum_tokens=600)
    assert (charged.budgeted, charged.maximum_tokens) == ((CALLER, KEY), 400)
    assert drawn(funded) == drawn(funded, KEY) == (2, 1_000, 100_000)
    with transaction(funded) as tx:
        books.record_usage(tx, charged, usage_record())
    assert drawn(funded) == drawn(funded, KEY) == (2, 600 + 120, 50_000 + CHARGE_NANO)
    with transaction(funded) as tx:
        books.void(tx, voided, "the client left")
    assert drawn(funded) == drawn(funded, KEY) == (2, 120, CHARGE_NANO)
    with transaction(funded) as tx:  # a repeat gives nothing back again
        books.record_usage(tx, charged, usage_record())
        books.void(tx, voided, "the client left")
    assert drawn(funded) == drawn(funded, KEY) == (2, 120, CHARGE_NANO)
    assert admit(funded, books, 2, 100_000 - CHARGE_NANO, key=KEY, maximum_tokens=880).gateway_seq == 2
    with pytest.raises(BudgetExceeded, match="has 0 nano-USD left"):
        admit(funded, books, 3, 1, key=KEY)


def test_a_request_stays_in_the_month_and_minute_of_its_admission(funded: Engine, books: Books, clock: Clock) -> None:
    limit(funded, books, monthly_nano=50_000, requests_per_minute=1, tokens_per_minute=500)
    clock.now = datetime(2025, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    intent = admit(funded, books, 0, maximum_tokens=500)
    clock.advance(microseconds=1)
    following = admit(funded, books, 1, maximum_tokens=500)
    with transaction(funded) as tx:
        books.record_usage(tx, intent, usage_record())
        books.void(tx, following, "the client left")
        assert [tx.drawn(CALLER, window) for window in (MONTH, "2025-01-31T23:59", "2025-02", "2025-02-01T00:00")] == [
            Draw(spent_nano=CHARGE_NANO),
            Draw(requests=1, tokens=120),
            Draw(),
            Draw(requests=1),
        ]


@pytest.mark.parametrize("name", LIMITS)
def test_limits_of_a_minute_and_of_a_month_end_with_it(funded: Engine, books: Books, clock: Clock, name: str) -> None:
    limit(funded, books, **{name: 1})
    admit(funded, books, 0, 1, maximum_tokens=1)
    for seconds in (59, 0.999999):
        clock.advance(seconds=seconds)
        with pytest.raises(BudgetExceeded):
            admit(funded, books, 1, 1, maximum_tokens=1)
    clock.advance(microseconds=1)
    if name == "monthly_nano":
        with pytest.raises(BudgetExceeded):
            admit(funded, books, 1, 1, maximum_tokens=1)
        clock.now = datetime(2025, 2, 1, tzinfo=UTC)
    admit(funded, books, 1, 1, maximum_tokens=1)


@given(
    st.sampled_from(LIMITS),
    st.datetimes(datetime(2024, 1, 1), datetime(2026, 12, 31, 23, 59, 59, 999_999)),  # noqa: DTZ001 - Hypothesis
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_refused_is_allowed_when_the_refusal_says(engine: Engine, name: str, now: datetime) -> None:
    clock = Clock(now.replace(tzinfo=UTC))
    books = new_books(clock=clock)
    with engine.connect() as connection:  # never commits
        tx = Transaction(connection, LOG)
        books.grant_credit(tx, CALLER, 10, "welcome", "grant-1")
        books.set_budget(tx, Budget(subject=CALLER, **{name: 1}))
        books.admit(tx, CALLER, 1, request_id(0), maximum_tokens=1)
        with pytest.raises(BudgetExceeded) as caught:
            books.admit(tx, CALLER, 1, request_id(1), maximum_tokens=1)
        clock.advance(seconds=caught.value.retry_after_s)
        books.admit(tx, CALLER, 1, request_id(1), maximum_tokens=1)
        # It is not later than it has to be.
        width = len("2025-01") if name == "monthly_nano" else len("2025-01-31T23:59")
        assert (clock.now - timedelta(seconds=2)).isoformat()[:width] <= now.isoformat()[:width]


def test_a_refusal_draws_nothing_on_any_budget(funded: Engine, books: Books) -> None:
    limit(funded, books, requests_per_minute=2)
    limit(funded, books, KEY, monthly_nano=49_999)
    with pytest.raises(BudgetExceeded) as caught:
        admit(funded, books, 0, key=KEY)
    assert caught.value.limit == "monthly_budget"
    assert drawn(funded) == drawn(funded, KEY) == (0, 0, 0)
    admit(funded, books, 0, key=OTHER_KEY)
    admit(funded, books, 1)
    with pytest.raises(BudgetExceeded) as caught:
        admit(funded, books, 2, 1, key=KEY)
    assert (caught.value.limit, caught.value.retry_after_s) == ("requests_per_minute", 60)
    assert (drawn(funded), drawn(funded, KEY), drawn(funded, OTHER_KEY)) == ((2, 0, 100_000), (0, 0, 0), (0, 0, 0))


def test_an_admission_that_is_repeated_draws_once(funded: Engine, books: Books) -> None:
    limit(funded, books, requests_per_minute=1, tokens_per_minute=5)
    intent = admit(funded, books, 0, maximum_tokens=5)
    assert admit(funded, books, 0, maximum_tokens=5) == intent
    assert drawn(funded) == (1, 5, 50_000)
    with pytest.raises(IntentError, match="admitted before"):
        admit(funded, books, 0, maximum_tokens=4)


def test_a_budget_counts_from_when_it_is_set(funded: Engine, books: Books) -> None:
    before = admit(funded, books, 0, maximum_tokens=400)
    assert before.budgeted == ()
    limit(funded, books, monthly_nano=50_000)
    within = admit(funded, books, 1, maximum_tokens=400)
    limit(funded, books, monthly_nano=10)  # below what is drawn: nothing more until the month is over
    with pytest.raises(BudgetExceeded, match="has 0 nano-USD left"):
        admit(funded, books, 2, 1)
    limit(funded, books)
    with funded.connect() as connection:
        assert [row.monthly_nano for row in connection.execute(select(budget_table))] in ([], [None])
    after = admit(funded, books, 3)
    assert after.budgeted == ()
    with transaction(funded) as tx:
        for intent in (before, within, after):
            books.record_usage(tx, intent, usage_record())
    assert drawn(funded) == (1, 120, CHARGE_NANO)


def test_a_free_request_is_still_a_request(engine: Engine, books: Books) -> None:
    limit(engine, books, monthly_nano=0, requests_per_minute=1)
    admit(engine, books, 0, 0)
    with pytest.raises(BudgetExceeded) as caught:
        admit(engine, books, 1, 0)
    assert caught.value.limit == "requests_per_minute"


def test_more_tokens_than_were_announced_are_drawn_all_the_same(funded: Engine, books: Books) -> None:
    limit(funded, books, tokens_per_minute=100)
    intent = admit(funded, books, 0, maximum_tokens=10)
    with transaction(funded) as tx:
        books.record_usage(tx, intent, usage_record())
    assert drawn(funded) == (1, 120, CHARGE_NANO)
    with pytest.raises(BudgetExceeded, match="100 tokens a minute are allowed; 120 are taken"):
        admit(funded, books, 1, maximum_tokens=1)


@pytest.mark.parametrize("subject", ["", "contributor:ann", "caller:", "key_A", KEY + "a", "funding"])
def test_a_budget_is_of_a_caller_or_a_key(subject: str) -> None:
    with pytest.raises(MeteringError, match="subject of a budget"):
        Budget(subject=subject)


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [-1, 1.5, True, 2**63])
def test_a_limit_is_a_whole_number(name: str, value: object) -> None:
    with pytest.raises(MeteringError, match=name):
        Budget(subject=CALLER, **{name: value})
