"""Ratings: what a caller says of an answer. They are entries and stand on statements; they move no money."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from ledger_client import Entry
from metering._checks import DIGEST, check_text
from metering.books import Books, charged
from metering.errors import MeteringError
from metering.tables import rating_table
from metering.transaction import Transaction

_ADD_RATING = insert(rating_table)


@dataclass(frozen=True, kw_only=True)
class Rating:
    """One rating that a caller gave an answer: 1 or −1, by the entry that holds it."""

    log_index: int
    request_id: str
    time: str
    rating: int


def ratings(connection: Connection, request_id: str | None = None) -> Iterator[Rating]:
    """Yield every rating, or those of one answer, in log order, streaming."""
    query = select(rating_table).order_by(rating_table.c.log_index)
    if request_id is not None:
        query = query.where(rating_table.c.request_id == request_id)
    for row in connection.execute(query.execution_options(yield_per=1000)):
        yield Rating(**row._mapping)


def record_feedback(
    books: Books, transaction: Transaction, request_id: str, rating: int, comment_digest: str | None = None
) -> int:
    """Log a caller's rating of an answer and return the log index; the newest of a request's ratings counts.

    rating: 1 or −1. comment_digest: salted SHA-256, in hex, of what the caller wrote; the text never enters the log.
    Repeating the newest rating logs nothing. Raises IntentError when the request was not charged.
    """
    if type(rating) is not int or rating not in (1, -1):
        raise MeteringError(f"a rating is 1 or -1, not {rating!r}")
    if comment_digest is not None:
        check_text("comment_digest", comment_digest, DIGEST)
    state = charged(transaction, request_id)
    of_request = select(rating_table).where(rating_table.c.request_id == request_id)
    given = transaction.connection.execute(of_request.order_by(rating_table.c.log_index)).all()
    data = {
        "request_id": request_id,
        "usage_index": state.ended_index,
        "rating": rating,
        "comment_digest": comment_digest,
    }
    if given and Entry.decode(transaction.log.entry(given[-1].log_index)).data == data:
        return int(given[-1].log_index)
    appended = books.log(transaction, "feedback.recorded", f"{request_id}:{len(given)}", request_id, data)
    row = {
        "log_index": appended.log_index,
        "request_id": request_id,
        "time": appended.entry.time,
        "rating": rating,
    }
    transaction.defer(_ADD_RATING, row)
    return appended.log_index
