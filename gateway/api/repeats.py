"""The Idempotency-Key of the routes that charge: asked twice with one key, answered and charged once."""

from __future__ import annotations

import re
from typing import Any

import orjson
import structlog
from fastapi import Request
from pydantic import BaseModel

from gateway.api.requests import takes
from gateway.errors import BadRequestError
from gateway.idempotency import Claim, Replay, ResponseExpiredError, look_up
from gateway.state import Gateway

REPLAYED = {"idempotent-replayed": "true"}

_HEADER = "Idempotency-Key"
_KEY = re.compile("[ -~]{1,255}")
_DESCRIBED = {
    "name": _HEADER,
    "in": "header",
    "required": False,
    "description": "answered and charged once, however often it is sent with the same body",
    "schema": {"type": "string", "pattern": f"^{_KEY.pattern}$"},
}


def takes_once(kind: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI fragment of a route that reads its own body and may be asked for it only once."""
    return {**takes(kind), "parameters": [_DESCRIBED]}


async def asked_before(request: Request, gateway: Gateway, account: str, document: Any) -> Claim | Replay | None:
    """What the request's Idempotency-Key stands for; None without one.

    account: the caller's. document: the body, as JSON was parsed. Raises BadRequestError and what `look_up` raises.
    """
    keys = request.headers.getlist(_HEADER)
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise BadRequestError(
            "an Idempotency-Key is given once, and has 1 to 255 printable ASCII characters",
            _HEADER,
            "invalid_idempotency_key",
        )
    try:
        claim = Claim.of(account, keys[0], request.url.path, document)
    except orjson.JSONEncodeError:  # what was read is JSON; only how deep it is can be too much
        raise BadRequestError("the body is nested too deep to be told from others") from None
    try:
        found = await gateway.transactions.read(lambda c: look_up(c, claim))
    except ResponseExpiredError as error:
        structlog.contextvars.bind_contextvars(request_id=error.request_id)
        raise
    if isinstance(found, Replay):
        structlog.contextvars.bind_contextvars(request_id=found.request_id, replayed=True)
    return found
