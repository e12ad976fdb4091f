"""Every error a client can meet, in OpenAI's shape, with its status decided in one table.

An exception that is not in the table is our fault: the client gets a 500, the log gets the rest. A request that was
admitted is named in the headers of its error too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from gateway.answers import UnknownRequestError
from gateway.auth import KeyRefusedError, RoleRefusedError
from gateway.catalogue import UnknownModelError
from gateway.engines import AdapterRejected, EngineRefused, EngineUnavailable, PromptTooLong
from gateway.exchange import TookTooLongError
from gateway.fairness import TooBusyError
from gateway.idempotency import IdempotencyConflictError, RequestInProgressError, ResponseExpiredError
from gateway.transactions import DatabaseUnavailableError
from ledger_client import EntryConflict
from metering import BudgetExceeded, CommitError, InsufficientCredit

log = structlog.get_logger(__name__)

INVALID_REQUEST = "invalid_request_error"


class BadRequestError(ValueError):
    """The request cannot be understood; param names the field, where one is at fault. headers: of the reply to it."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status
        self.headers = headers or {}


class NotFoundError(LookupError):
    """There is nothing at this address."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """How an exception is told to a client.

    told: what is said instead of its own words, where those are the operator's: they name servers and folders.
    """

    status: int
    type: str
    code: str | None = None
    param: str | None = None
    told: str | None = None


TABLE: dict[type[Exception], Reply] = {
    KeyRefusedError: Reply(status=401, type="authentication_error", code="invalid_api_key"),
    RoleRefusedError: Reply(status=403, type="permission_error", code="role_not_allowed"),
    InsufficientCredit: Reply(status=402, type="insufficient_quota", code="insufficient_quota"),
    UnknownModelError: Reply(status=404, type=INVALID_REQUEST, code="model_not_found", param="model"),
    UnknownRequestError: Reply(status=404, type=INVALID_REQUEST, code="request_not_found"),
    NotFoundError: Reply(status=404, type=INVALID_REQUEST, code="not_found"),
    PromptTooLong: Reply(status=400, type=INVALID_REQUEST, code="context_length_exceeded"),
    EngineRefused: Reply(status=400, type=INVALID_REQUEST),
    EntryConflict: Reply(status=409, type=INVALID_REQUEST, code="idempotency_conflict"),
    IdempotencyConflictError: Reply(status=409, type=INVALID_REQUEST, code="idempotency_conflict"),
    RequestInProgressError: Reply(status=409, type=INVALID_REQUEST, code="request_in_progress"),
    ResponseExpiredError: Reply(status=410, type=INVALID_REQUEST, code="response_expired"),
    TooBusyError: Reply(status=429, type="requests", code="too_busy"),
    BudgetExceeded: Reply(status=429, type="insufficient_quota", code="monthly_budget_exceeded"),
    TookTooLongError: Reply(status=504, type="service_unavailable", code="engine_timeout"),
    EngineUnavailable: Reply(
        status=503,
        type="service_unavailable",
        code="engine_unavailable",
        told="the engine does not answer now; repeat the request later",
    ),
    AdapterRejected: Reply(
        status=503,
        type="service_unavailable",
        code="adapter_rejected",
        param="model",
        told="the engine does not take this model's adapter; the operator's log says why",
    ),
    CommitError: Reply(status=503, type="service_unavailable", code="ledger_unavailable"),
    DatabaseUnavailableError: Reply(status=503, type="service_unavailable", code="ledger_unavailable"),
}
# A limit by the minute is told as OpenAI tells it, so that its clients wait; any other budget is in the table.
RATE_LIMITS = {
    "requests_per_minute": Reply(status=429, type="requests", code="rate_limit_exceeded"),
    "tokens_per_minute": Reply(status=429, type="tokens", code="rate_limit_exceeded"),
}

EXPECTED: tuple[type[Exception], ...] = (*TABLE, BadRequestError)


def body_of(error: BaseException) -> tuple[int, dict[str, object]]:
    """The status and the body for an exception."""
    if isinstance(error, BadRequestError):
        reply = Reply(status=error.status, type=INVALID_REQUEST, code=error.code, param=error.param)
    else:
        found = next((reply for kind, reply in TABLE.items() if isinstance(error, kind)), None)
        if found is None:
            return _shape(
                Reply(status=500, type="server_error", code="internal_error"), "the gateway failed; it was logged"
            )
        reply = RATE_LIMITS.get(error.limit, found) if isinstance(error, BudgetExceeded) else found
        if isinstance(error, EngineRefused):
            reply = replace(reply, param=error.param)
    return _shape(reply, reply.told or str(error))


def _shape(reply: Reply, message: str) -> tuple[int, dict[str, object]]:
    return reply.status, {"error": {"message": message, "type": reply.type, "param": reply.param, "code": reply.code}}


def install(app: FastAPI) -> None:
    """Answer every exception in OpenAI's shape."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    for kind in (*EXPECTED, Exception):
        app.add_exception_handler(kind, answer)


async def answer(_request: Request, error: Exception) -> JSONResponse:
    """The reply to an exception, with the headers that belong to it; what is our fault is logged."""
    status, body = body_of(error)
    if status == 500:
        log.error("request_failed", exc_info=error)
    elif status == 503:
        log.warning("request_refused", error=repr(error))
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if isinstance(error, BadRequestError):
        headers |= error.headers
    if isinstance(error, BudgetExceeded | RequestInProgressError | TooBusyError):
        headers["Retry-After"] = str(error.retry_after_s)
    if request_id := structlog.contextvars.get_contextvars().get("request_id"):
        headers |= {"x-tributary-request-id": request_id, "x-request-id": request_id}
    return JSONResponse(body, status, headers)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """A query or path parameter of the wrong form."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it was installed for
    fault = error.errors()[0]
    param = str(fault["loc"][-1])
    status, body = _shape(Reply(status=400, type=INVALID_REQUEST, param=param), f"{param}: {fault['msg']}")
    return JSONResponse(body, status)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it was installed for
    message = f"{request.method} {request.url.path}: {error.detail}"
    status, body = _shape(Reply(status=error.status_code, type=INVALID_REQUEST), message)
    return JSONResponse(body, status, error.headers)
