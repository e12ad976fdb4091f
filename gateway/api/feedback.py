"""What callers say of answers they were given."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from gateway import answers, feedback
from gateway.api.described import COMMITS, NEEDS_A_KEY, READS_A_BODY, replies
from gateway.api.requests import FeedbackRequest, parse, read_document, takes
from gateway.state import GatewayState, KeyHolder

router = APIRouter(prefix="/v1", tags=["Answers"])


@router.post(
    "/feedback",
    openapi_extra=takes(FeedbackRequest),
    responses=replies(*NEEDS_A_KEY, *COMMITS, answers.UnknownRequestError, statuses=READS_A_BODY),
)
async def rate(request: Request, gateway: GatewayState, caller: KeyHolder) -> dict[str, Any]:
    """Rate an answer of one's own: 1 or -1, with a comment if wanted. The newest rating counts.

    The rating is an entry of the log; of the comment only a salted digest is. Repeating the newest rating changes
    nothing and returns its log index again.
    """
    caller.require("caller")
    body = parse(await read_document(request, gateway.settings.limits), FeedbackRequest)
    await gateway.transactions.read(lambda c: answers.find(c, body.request_id, caller.subject))
    index = await gateway.transactions.commit(
        "feedback",
        lambda t: feedback.record(gateway.books, t, body.request_id, body.rating, body.comment or None),
    )
    return {"request_id": body.request_id, "rating": body.rating, "log_index": index}
