"""What a caller reads about an answer of its own: the attribution and the receipt."""

from __future__ import annotations

from typing import Any

import orjson
import sqlalchemy as sa
from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from gateway import answers
from gateway.api.described import NEEDS_A_KEY, replies
from gateway.auth import Principal
from gateway.state import GatewayState, KeyHolder

router = APIRouter(prefix="/v1", tags=["Answers"])

_REPLIES = replies(*NEEDS_A_KEY, answers.UnknownRequestError)


def _visible(connection: sa.Connection, request_id: str, principal: Principal) -> answers.AnswerRow:
    """The answer, if it is the caller's own or the reader is the operator."""
    principal.require("caller", "operator")
    return answers.find(connection, request_id, principal.subject if principal.role == "caller" else None)


@router.get("/attributions/{request_id}", responses=_REPLIES)
async def attribution(request_id: str, gateway: GatewayState, caller: KeyHolder) -> dict[str, Any]:
    """The attribution object of an answer."""
    row = await gateway.transactions.read(lambda c: _visible(c, request_id, caller))
    found: dict[str, Any] = orjson.loads(row.attribution)
    return found


@router.get("/receipts/{request_id}", response_class=PlainTextResponse, responses=_REPLIES)
async def receipt(request_id: str, gateway: GatewayState, caller: KeyHolder) -> PlainTextResponse:
    """Offline proof that the answer's newest entry is in the log: its attribution, or its usage until then."""

    def prove(connection: sa.Connection) -> str:
        row = _visible(connection, request_id, caller)
        return gateway.log.receipt(connection, row.newest_index)

    return PlainTextResponse(await gateway.transactions.read(prove))
