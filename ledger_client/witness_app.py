"""A witness over HTTP: add-checkpoint and the last checkpoint of each log, as c2sp.org/tlog-witness has them."""

from __future__ import annotations

import asyncio

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ledger_client.witness import MAX_SUBMISSION_BYTES, Refusal, WitnessRefused
from ledger_client.witness_state import Witness

log = structlog.get_logger(__name__)

STATUS = {
    Refusal.MALFORMED: 400,
    Refusal.UNTRUSTED: 403,
    Refusal.UNKNOWN_LOG: 404,
    Refusal.STALE: 409,
    Refusal.INCONSISTENT: 422,
}
SIZE_TYPE = "text/x.tlog.size"
BODY_TIMEOUT_S = 10

_CLOSE = {"connection": "close"}  # else the server would go on reading what is left of the body


def create_witness_app(witness: Witness) -> Starlette:
    """The ASGI application of a witness. Anyone may submit; only what a known log signed has an effect."""

    async def add_checkpoint(request: Request) -> Response:
        body = await _body(request)
        if isinstance(body, Response):
            return body
        try:
            line = await asyncio.to_thread(witness.add_checkpoint, body)
        except WitnessRefused as refused:
            return _refusal(refused, body)
        except SQLAlchemyError:
            log.exception("state_unavailable")
            return PlainTextResponse("the witness cannot remember, so it does not cosign\n", 503)
        return PlainTextResponse(line)

    async def checkpoint(request: Request) -> Response:
        note = await asyncio.to_thread(witness.checkpoint, request.path_params["origin_hash"])
        if note is None:
            return PlainTextResponse("no checkpoint of such a log was cosigned here\n", 404)
        return PlainTextResponse(note, headers={"cache-control": "no-cache"})

    return Starlette(
        routes=[
            Route("/add-checkpoint", add_checkpoint, methods=["POST"]),
            Route("/{origin_hash}/checkpoint", checkpoint, methods=["GET"]),
        ]
    )


async def _body(request: Request) -> bytes | Response:
    """Read a body, or return what to answer to one that is too large or too slow in coming."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_SUBMISSION_BYTES:
                    return PlainTextResponse(f"a submission has at most {MAX_SUBMISSION_BYTES} bytes\n", 413, _CLOSE)
    except TimeoutError:
        return PlainTextResponse(f"the submission took longer than {BODY_TIMEOUT_S} s\n", 408, _CLOSE)
    except ClientDisconnect:
        return PlainTextResponse("the submission ended early\n", 400)
    return bytes(body)


def _refusal(refused: WitnessRefused, body: bytes) -> Response:
    status = STATUS[refused.refusal]
    if refused.refusal is Refusal.INCONSISTENT:
        # What a log signed and cannot reconcile with its past is evidence against it, and is kept whole.
        log.error("refused", status=status, reason=str(refused), submission=body.decode())
    else:
        log.info("refused", status=status, reason=str(refused))
    if refused.refusal is Refusal.STALE:
        # Not as a media type, to which the library would add a character set.
        return Response(f"{refused.size}\n", status, {"content-type": SIZE_TYPE})
    return PlainTextResponse(f"{refused}\n", status)
