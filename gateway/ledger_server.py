"""A ledger for logs elsewhere, over HTTP: takes their batches, proves what it holds, and publishes its own log."""

from __future__ import annotations

import asyncio

import structlog
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import ClientDisconnect

from gateway import errors
from gateway.api import transparency
from gateway.api.described import describe
from gateway.observe import Observed
from gateway.published import Published
from ledger_client import MAX_BATCH_BYTES, NOT_HELD, Batch, BatchFault, BatchRefused, Ledger, NotInLog, format_refusal

log = structlog.get_logger(__name__)

STATUS = {
    BatchFault.MALFORMED: 400,
    BatchFault.UNTRUSTED: 403,
    BatchFault.UNKNOWN_LOG: 404,
    BatchFault.AHEAD: 409,
    BatchFault.INCONSISTENT: 422,
    BatchFault.FORKED: 422,
}
TOO_LARGE, TOO_SLOW, BUSY = 413, 408, 503

BODY_TIMEOUT_S = 60
MAX_WAITING = 8  # batches that are in memory at once; more are asked to come later
RETRY_AFTER_S = 2

router = APIRouter(prefix="/ledger", tags=["Ledger"])


class _NotTakenError(Exception):
    """A body that was not read to its end."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def create_ledger_app(ledger: Ledger, published: Published) -> FastAPI:
    """The ASGI application. Anyone may ask and submit; only what a known log signed has an effect."""
    app = FastAPI(title="Tributary ledger", version="0.1.0")
    app.state.published = published
    app.state.ledger = ledger
    app.state.waiting = asyncio.Semaphore(MAX_WAITING)
    errors.install(app)
    app.include_router(router)
    app.include_router(transparency.router)
    app.add_api_route("/healthz", _healthz, tags=["Operations"])
    app.add_middleware(Observed)
    describe(app)
    return app


@router.post("/batches", response_class=PlainTextResponse)
async def accept(request: Request) -> Response:
    """Hold a batch of a known log. The same batch may come any number of times."""
    waiting: asyncio.Semaphore = request.app.state.waiting
    if waiting.locked():
        return _later("other batches come first")
    async with waiting:
        try:
            batch = await asyncio.to_thread(Batch.decode, await _body(request))
            accepted = await request.app.state.ledger.accept(batch)
        except _NotTakenError as error:
            return PlainTextResponse(f"{error}\n", error.status)
        except BatchRefused as refused:
            status = STATUS[refused.fault]
            log.warning("batch_refused", status=status, reason=str(refused))
            return PlainTextResponse(format_refusal(refused.fault.name.lower(), str(refused), refused.size), status)
        except SQLAlchemyError:
            log.exception("database_unavailable")
            return _later("the database does not answer")
    return PlainTextResponse(accepted.format())


@router.get("/sources/{origin:path}", response_class=PlainTextResponse)
async def size(request: Request, origin: str) -> str:
    """How many entries of a log are held."""
    return f"{await request.app.state.ledger.size(origin)}\n"


@router.get("/receipts/{origin:path}/{log_index}", response_class=PlainTextResponse)
async def receipt(request: Request, origin: str, log_index: int) -> Response:
    """The proof that an entry of a log is held; it verifies offline with this ledger's key."""
    try:
        return PlainTextResponse(await request.app.state.ledger.receipt(origin, log_index))
    except NotInLog as error:
        return PlainTextResponse(format_refusal(NOT_HELD, str(error)), 404)


async def _healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


async def _body(request: Request) -> bytes:
    """Read a body of bounded length in bounded time. Raises _NotTakenError."""
    length = request.headers.get("content-length", "")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            if length.isdecimal() and int(length[:10]) > MAX_BATCH_BYTES:
                raise _NotTakenError(TOO_LARGE, f"a batch has at most {MAX_BATCH_BYTES} bytes")
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BATCH_BYTES:
                    raise _NotTakenError(TOO_LARGE, f"a batch has at most {MAX_BATCH_BYTES} bytes")
    except TimeoutError:
        raise _NotTakenError(TOO_SLOW, f"the batch took longer than {BODY_TIMEOUT_S} s") from None
    except ClientDisconnect:
        raise _NotTakenError(TOO_SLOW, "the batch ended early") from None
    return bytes(body)


def _later(why: str) -> Response:
    return PlainTextResponse(f"{why}; come again\n", BUSY, {"retry-after": str(RETRY_AFTER_S)})
