"""Ratings with their comments: the rating goes into the log, the comment stays here, opened by its salt."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from gateway.answers import salted_digest
from gateway.tables import feedback_comment
from metering import Books, Transaction, ratings, record_feedback

_ADD = sa.insert(feedback_comment)
_NEWEST = (
    sa.select(feedback_comment)
    .where(feedback_comment.c.request_id == sa.bindparam("request_id"))
    .order_by(feedback_comment.c.log_index.desc())
    .limit(1)
)


def record(books: Books, transaction: Transaction, request_id: str, rating: int, comment: str | None) -> int:
    """Record a caller's rating of an answer that was charged; returns the log index."""
    if comment is None:
        return record_feedback(books, transaction, request_id, rating)
    # A comment that is made again keeps its salt, so that the same rating is seen to be the same.
    newest = transaction.connection.execute(_NEWEST, {"request_id": request_id}).one_or_none()
    repeated = newest is not None and newest.comment == comment
    salt: bytes = newest.salt if newest is not None and repeated else secrets.token_bytes(32)
    index = record_feedback(books, transaction, request_id, rating, salted_digest(salt, [comment]))
    if newest is None or newest.log_index != index:
        row = {"log_index": index, "request_id": request_id, "salt": salt, "comment": comment}
        transaction.defer(_ADD, row)
    return index


def given(connection: sa.Connection, request_id: str | None = None) -> Iterator[dict[str, Any]]:
    """Every rating, or those of one answer, in log order, with its comment or None."""
    query = sa.select(feedback_comment.c.log_index, feedback_comment.c.comment)
    if request_id is not None:
        query = query.where(feedback_comment.c.request_id == request_id)
    comments = {row.log_index: row.comment for row in connection.execute(query)}
    for rating in ratings(connection, request_id):
        yield vars(rating) | {"comment": comments.get(rating.log_index)}
