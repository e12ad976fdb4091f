"""What an Idempotency-Key stands for: one request of one caller, for ever.

The key is claimed in the transaction that admits the request, and the response is kept in the one that charges it. Of
any number of repeats, at once or years apart, at most one is generated and charged. A repeat meets

- the response again, once the first was charged, for as long as responses are kept; ResponseExpiredError after that;
- RequestInProgressError while the first is being answered;
- a free key when the first ended void: the engine failed, say, or the gateway stopped. The body must be the same still;
- IdempotencyConflictError when its body is another.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Self

import orjson
import sqlalchemy as sa

from gateway import answers
from gateway.identifiers import now
from gateway.tables import idempotency
from metering import Transaction, request_state

JSON_TYPE = "application/json"
VECTORS_TYPE = "application/octet-stream"


class IdempotencyConflictError(Exception):
    """The key was used before, for another body or another route."""


class RequestInProgressError(Exception):
    """The first request under the key is still being answered. retry_after_s: when it is worth asking again."""

    retry_after_s = 1


class ResponseExpiredError(Exception):
    """The request was answered and charged, and its response is not kept any more. request_id: its receipt's name."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"this was answered as {request_id}, whose response is not kept any more; it does not run again. "
            f"Its attribution is at /v1/attributions/{request_id}, its receipt at /v1/receipts/{request_id}"
        )
        self.request_id = request_id


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A caller's account and its key for one body on one route; both only as SHA-256, in hex.

    voided: the request under this key that ended without a charge, if there was one, whose place this one takes.
    """

    account: str
    key_digest: str
    body_digest: str
    voided: str | None = None

    @classmethod
    def of(cls, account: str, key: str, route: str, document: object) -> Self:
        """The claim of a request. document: the body as JSON was parsed; how it was spaced and ordered is no matter."""
        body = route.encode() + b"\0" + orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
        return cls(account=account, key_digest=_digest(key.encode()), body_digest=_digest(body))

    @property
    def place(self) -> tuple[str, str]:
        """What no two requests may hold at once."""
        return self.account, self.key_digest

    def take(self, transaction: Transaction, request_id: str) -> None:
        """Bind the key to the request that the transaction admits.

        Another's claim since the key was looked up makes this raise RequestInProgressError, or the transaction fail on
        the key's uniqueness.
        """
        if self.voided is None:
            row = {
                "account": self.account,
                "key_digest": self.key_digest,
                "body_digest": self.body_digest,
                "request_id": request_id,
                "created_at": now(),
            }
            transaction.defer(_ADD, row)
            return
        ours = sa.and_(_IS_PLACE, idempotency.c.request_id == self.voided)
        changed = sa.update(idempotency).where(ours).values(request_id=request_id, created_at=now())
        if transaction.connection.execute(changed, _place(self)).rowcount != 1:
            raise in_progress()

    def keep(self, transaction: Transaction, media_type: str, response: bytes) -> None:
        """Keep the response, to be given again."""
        transaction.defer(_KEEP, {**_place(self), "media_type": media_type, "response": response})


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A response to be given again, and the attribution object as it is by now."""

    request_id: str
    response: bytes
    attribution: dict[str, Any]


def look_up(connection: sa.Connection, claim: Claim) -> Claim | Replay:
    """What the key stands for: the response again, or the claim with which the request may be admitted.

    Raises IdempotencyConflictError, RequestInProgressError or ResponseExpiredError.
    """
    row = connection.execute(_FIND, _place(claim)).one_or_none()
    if row is None:
        return claim
    if row.body_digest != claim.body_digest:
        raise IdempotencyConflictError("this Idempotency-Key was used before with another request; take another key")
    state = request_state(connection, row.request_id)
    if state is None or state.ended_index is None:
        raise in_progress()
    if state.charge_nano is None:
        return replace(claim, voided=row.request_id)
    if row.response is None:
        raise ResponseExpiredError(row.request_id)
    attribution = orjson.loads(answers.find(connection, row.request_id).attribution)
    return Replay(request_id=row.request_id, response=row.response, attribution=attribution)


def in_progress() -> RequestInProgressError:
    """The error of a repeat that came too early."""
    return RequestInProgressError("a request with this Idempotency-Key is being answered; repeat it in a moment")


def is_kept_from_before(connection: sa.Connection, time: str) -> bool:
    """Whether a response is kept that is older than `time`."""
    return connection.execute(sa.select(sa.literal(1)).where(_is_kept_before(time)).limit(1)).first() is not None


def erase_from_before(connection: sa.Connection, time: str) -> None:
    """Erase the responses that are older than `time`; what their keys stand for stays."""
    erased = sa.update(idempotency).where(_is_kept_before(time)).values(media_type=None, response=None)
    connection.execute(erased)


def _is_kept_before(time: str) -> sa.ColumnElement[bool]:
    return sa.and_(idempotency.c.response.is_not(None), idempotency.c.created_at < time)


_IS_PLACE = sa.and_(
    idempotency.c.account == sa.bindparam("of_account"), idempotency.c.key_digest == sa.bindparam("of_key")
)
_FIND = sa.select(idempotency).where(_IS_PLACE)
_KEEP = sa.update(idempotency).where(_IS_PLACE)
_ADD = sa.insert(idempotency)


def _place(claim: Claim) -> dict[str, str]:
    return {"of_account": claim.account, "of_key": claim.key_digest}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
