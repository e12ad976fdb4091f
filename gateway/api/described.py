"""What the OpenAPI document says of replies: what each route may answer, errors too, from the one table of them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from gateway.api.requests import SCHEMA_REFERENCE, body_schemas
from gateway.auth import KeyRefusedError, RoleRefusedError
from gateway.catalogue import UnknownModelError
from gateway.engines import EngineRefused, EngineUnavailable, PromptTooLong
from gateway.errors import RATE_LIMITS, TABLE
from gateway.exchange import TookTooLongError
from gateway.fairness import TooBusyError
from gateway.idempotency import IdempotencyConflictError, RequestInProgressError, ResponseExpiredError
from gateway.transactions import DatabaseUnavailableError
from metering import BudgetExceeded, CommitError, InsufficientCredit

Replies = dict[int | str, dict[str, Any]]

JSON = "application/json"
EVENTS = "text/event-stream"
# What routes may end with, by what they do.
NEEDS_A_KEY = (KeyRefusedError, RoleRefusedError, DatabaseUnavailableError)
COMMITS = (CommitError,)
CHARGES = (
    UnknownModelError,
    InsufficientCredit,
    PromptTooLong,
    EngineRefused,
    IdempotencyConflictError,
    RequestInProgressError,
    ResponseExpiredError,
    TooBusyError,
    BudgetExceeded,
    EngineUnavailable,
    TookTooLongError,
    *COMMITS,
)
_BAD_REQUESTS = {
    400: "the request is not understood; `param` names the field at fault",
    406: "none of the forms that the client accepts is offered",
    408: "the body did not arrive in time",
    413: "the body is too long",
}
READS_A_BODY = (400, 408, 413)
_SCHEME = "API key"
_REFERENCE = re.compile(f'"{SCHEMA_REFERENCE.format(model="([A-Za-z]+)")}"')


class _Reply(BaseModel):
    model_config = ConfigDict(extra="allow")  # an engine may say more


class ErrorDetail(BaseModel):
    """What went wrong, as OpenAI tells it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """An error."""

    error: ErrorDetail


class UsageReply(_Reply):
    """The tokens that are charged for."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AttributionReply(_Reply):
    """Who is credited for an answer, as far as it is known; more follows at `url`."""

    id: str
    status: Literal["pending", "attributed", "not_applicable", "failed"]
    url: str
    charge_nano: str = Field(description="nano-USD")


class AnswerMessage(_Reply):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(_Reply):
    """One of the answers."""

    index: int
    message: AnswerMessage
    finish_reason: str


class ChatReply(_Reply):
    """The answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice] = Field(min_length=1)
    usage: UsageReply
    attribution: AttributionReply


class TextChoice(_Reply):
    """One of the continuations."""

    index: int
    text: str
    finish_reason: str


class CompletionReply(_Reply):
    """The continuation of a text."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice] = Field(min_length=1)
    usage: UsageReply
    attribution: AttributionReply


class ResponseReply(_Reply):
    """The answer to a conversation, as the Responses API writes it."""

    id: str
    object: Literal["response"]
    created_at: float
    model: str
    status: Literal["completed", "incomplete", "failed"]
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    attribution: AttributionReply


class EmbeddingUsage(BaseModel):
    """The tokens that are charged for."""

    prompt_tokens: int
    total_tokens: int


class EmbeddedText(BaseModel):
    """The vector of one text; base64 has it as little-endian floats of 32 bits."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingReply(BaseModel):
    """Vectors."""

    object: Literal["list"]
    model: str
    data: list[EmbeddedText]
    usage: EmbeddingUsage


_MODELS: tuple[type[BaseModel], ...] = (ErrorReply, ChatReply, CompletionReply, ResponseReply, EmbeddingReply)


def replies(
    *errors: type[Exception],
    statuses: tuple[int, ...] = (),
    good: type[BaseModel] | None = None,
    streams: bool = False,
    forms: tuple[str, ...] = (),
) -> Replies:
    """A route's `responses` for FastAPI. errors: what it may raise of the table. statuses: its bad requests.

    good: the body of a 200, which FastAPI knows of most routes by itself; streams: or events, if asked for. forms: the
    media types of a 200 that is not JSON.
    """
    found: Replies = {}
    codes: dict[int, list[str]] = defaultdict(list)
    for kind in errors:
        told = [TABLE[kind], *(RATE_LIMITS.values() if kind is BudgetExceeded else ())]
        for reply in told:
            codes[reply.status].append(reply.code or "a field is at fault")
    for status in statuses:
        codes[status].append(_BAD_REQUESTS[status])
    for status, said in sorted(codes.items()):
        found[status] = {"description": "; ".join(dict.fromkeys(said)), "content": {JSON: _schema(ErrorReply)}}
    if good is not None:
        content = {JSON: _schema(good)}
        if streams:
            content[EVENTS] = {"schema": {"type": "string", "description": "each event is a part of the answer"}}
        found[200] = {"description": "the answer", "content": content}
    elif forms:
        found[200] = {"description": "as asked for", "content": {form: {} for form in forms}}
    return found


def charged(good: type[BaseModel] | None = None, *, streams: bool = False) -> Replies:
    """The replies of a route that answers for money."""
    return replies(*NEEDS_A_KEY, *CHARGES, statuses=READS_A_BODY, good=good, streams=streams)


def describe(app: FastAPI, *bodies: type[BaseModel]) -> None:
    """Make an application's OpenAPI document say all that is known here. bodies: that routes read for themselves."""
    written = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = written()
            _complete(document)
            _define(document, body_schemas(*bodies) | _reply_schemas())
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any]) -> None:
    """Say what FastAPI cannot know: bad parameters are 400 here, and who is refused without a key needs one."""
    components = document.setdefault("components", {})
    components["securitySchemes"] = {_SCHEME: {"type": "http", "scheme": "bearer"}}
    for operations in document["paths"].values():
        for operation in operations.values():
            known = operation["responses"]
            if known.pop("422", None) is not None and operation.keys() & {"parameters", "requestBody"}:
                known.setdefault("400", replies(statuses=(400,))[400])
            if "401" in known:
                operation["security"] = [{_SCHEME: []}]
    for unused in ("HTTPValidationError", "ValidationError"):
        components.setdefault("schemas", {}).pop(unused, None)


def _define(document: dict[str, Any], schemas: Mapping[str, Any]) -> None:
    """Add those of the schemas that the document refers to, and those that they refer to."""
    defined = document["components"]["schemas"]
    while wanted := set(_REFERENCE.findall(json.dumps(document))) - defined.keys():
        for name in sorted(wanted):
            defined[name] = schemas[name]


def _schema(kind: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"$ref": SCHEMA_REFERENCE.format(model=kind.__name__)}}


def _reply_schemas() -> dict[str, Any]:
    _, schemas = models_json_schema([(kind, "serialization") for kind in _MODELS], ref_template=SCHEMA_REFERENCE)
    found: dict[str, Any] = schemas["$defs"]
    return found
