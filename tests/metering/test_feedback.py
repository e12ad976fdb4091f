"""Ratings: entries that stand on statements, of which the newest counts, and that move no money."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, select

from metering import (
    Books,
    IntentError,
    MeteringError,
    balances,
    entries,
    fsck_books,
    record_feedback,
    statement,
)
from metering.tables import rating_table

from .kit import (
    CALLER,
    LOG,
    Clock,
    attribution_record,
    digest,
    logged,
    new_books,
    request_id,
    transaction,
    usage_record,
)

ANSWERS = [request_id(number) for number in range(3)]
USAGE_INDEXES = [1, 3, 5]


@pytest.fixture
def answered(engine: Engine, books: Books) -> Engine:
    """Three answers that paid ann."""
    with transaction(engine) as tx:
        books.grant_credit(tx, CALLER, 1_000_000, "welcome", "grant-1")
        for request in ANSWERS:
            record = usage_record()
            books.record_usage(tx, books.admit(tx, CALLER, 100_000, request), record)
            books.record_attribution(tx, attribution_record(request, record.charge_nano))
    return engine


def rate(engine: Engine, books: Books, request: str, rating: int, comment: str | None = None) -> int:
    with transaction(engine) as tx:
        return record_feedback(books, tx, request, rating, comment)


def test_a_rating_is_an_entry_and_moves_no_money(answered: Engine, books: Books) -> None:
    with answered.connect() as connection:
        before = (dict(balances(connection)), entries(connection, "ann"))
    assert rate(answered, books, ANSWERS[1], -1, digest("too long")) == 7
    with answered.connect() as connection:
        assert (dict(balances(connection)), entries(connection, "ann")) == before
        entry = logged(connection)[7]
        assert fsck_books(connection, LOG) == []
    assert (entry.type, entry.subject) == ("feedback.recorded", ANSWERS[1])
    assert entry.data == {
        "request_id": ANSWERS[1],
        "usage_index": USAGE_INDEXES[1],
        "rating": -1,
        "comment_digest": digest("too long"),
    }


def test_repeating_the_newest_rating_logs_nothing(answered: Engine, books: Books, clock: Clock) -> None:
    index = rate(answered, books, ANSWERS[0], 1)
    clock.advance(days=400)
    assert rate(answered, books, ANSWERS[0], 1) == index
    assert rate(answered, new_books("gw-2", clock), ANSWERS[0], 1) == index
    with transaction(answered) as tx:
        assert [record_feedback(books, tx, ANSWERS[0], 1) for _ in range(2)] == [index] * 2
        assert tx.log.size == index + 1


@pytest.mark.parametrize("together", [False, True])
def test_a_changed_rating_is_a_new_entry_and_the_newest_counts(
    answered: Engine, books: Books, clock: Clock, together: bool
) -> None:
    given: list[tuple[int, str | None]] = [(1, None), (-1, None), (-1, digest("wrong")), (1, None), (-1, None)]
    if together:
        with transaction(answered) as tx:
            indexes = [record_feedback(books, tx, ANSWERS[0], *rating) for rating in given]
    else:
        indexes = []
        for rating in given:
            clock.advance(days=1)
            indexes.append(rate(answered, books, ANSWERS[0], *rating))
    assert indexes == [7, 8, 9, 10, 11]
    with answered.connect() as connection:
        rows = connection.execute(select(rating_table).order_by(rating_table.c.log_index)).all()
        assert [(row.log_index, row.rating) for row in rows] == list(zip(indexes, [1, -1, -1, 1, -1], strict=True))
        assert statement(connection, "ann", "2025-01").ratings == {ANSWERS[0]: -1}
        assert fsck_books(connection, LOG) == []


def test_statements_show_how_the_answers_were_rated(answered: Engine, books: Books) -> None:
    rate(answered, books, ANSWERS[0], -1)
    rate(answered, books, ANSWERS[0], 1)
    rate(answered, books, ANSWERS[2], -1)
    with answered.connect() as connection:
        said = statement(connection, "ann", "2025-01")
        empty = statement(connection, "ann", "2025-02")
    assert said.ratings == {ANSWERS[0]: 1, ANSWERS[2]: -1}
    assert [(line.request_id, said.rating(line)) for line in said.lines] == [
        *[(ANSWERS[0], 1)] * 2,
        *[(ANSWERS[1], None)] * 2,
        *[(ANSWERS[2], -1)] * 2,
    ]
    assert said.as_json()["ratings"] == {"positive": 1, "negative": 1}
    assert empty.ratings == {}


def test_an_answer_can_be_rated_before_it_is_attributed(engine: Engine, books: Books) -> None:
    with transaction(engine) as tx:
        books.grant_credit(tx, CALLER, 1_000_000, "welcome", "grant-1")
        intent = books.admit(tx, CALLER, 100_000, ANSWERS[0])
        with pytest.raises(IntentError, match="not charged"):
            record_feedback(books, tx, ANSWERS[0], 1)
        books.record_usage(tx, intent, usage_record())
        assert record_feedback(books, tx, ANSWERS[0], 1) == 2
        voided = books.admit(tx, CALLER, 100_000, ANSWERS[1])
        books.void(tx, voided, "the client left")
        for request in (voided.request_id, ANSWERS[2]):
            with pytest.raises(IntentError, match="not charged"):
                record_feedback(books, tx, request, 1)


@pytest.mark.parametrize(
    ("rating", "comment_digest"),
    [(0, None), (2, None), (True, None), ("1", None), (1.0, None), (None, None), (1, "too long"), (1, "")],
)
def test_what_is_no_rating_is_refused(answered: Engine, books: Books, rating: Any, comment_digest: Any) -> None:
    with pytest.raises(MeteringError, match=r"a rating is 1 or -1|comment_digest"):
        rate(answered, books, ANSWERS[0], rating, comment_digest)
    with answered.connect() as connection:
        assert LOG.size(connection) == 7
