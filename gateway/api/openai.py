"""The routes that any OpenAI client calls."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from gateway.api.models import answer_headers, resolve
from gateway.api.replies import ChatShape, CompletionShape, EventStream, Shape, Told, events, whole
from gateway.api.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    encode_vector,
    parse,
    read_document,
    takes,
)
from gateway.auth import Principal
from gateway.embeddings import Embedded
from gateway.engines import Delta, SamplingParams
from gateway.errors import BadRequestError
from gateway.exchange import Question, Said, last_user_message
from gateway.grounding import Message
from gateway.idempotency import Claim, Replay, ResponseExpiredError, look_up
from gateway.state import Gateway, GatewayState, KeyHolder

router = APIRouter(prefix="/v1", tags=["OpenAI"])

_KEY_HEADER = "Idempotency-Key"
_KEY = re.compile("[ -~]{1,255}")
_REPLAYED = {"idempotent-replayed": "true"}


_KEYED = {
    "name": _KEY_HEADER,
    "in": "header",
    "required": False,
    "description": "answered and charged once, however often it is sent with the same body",
    "schema": {"type": "string", "pattern": f"^{_KEY.pattern}$"},
}


def _takes(kind: type[BaseModel]) -> dict[str, Any]:
    return {**takes(kind), "parameters": [_KEYED]}


@router.post("/chat/completions", openapi_extra=_takes(ChatRequest))
async def chat_completions(request: Request, gateway: GatewayState, caller: KeyHolder) -> Response:
    """Answer a conversation."""
    caller.require("caller")
    document = await read_document(request, gateway.settings.limits.body_bytes)
    body = parse(document, ChatRequest)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise BadRequestError("give max_completion_tokens or max_tokens, not both", "max_tokens")
    once = await _once(request, gateway, caller.subject, document)
    if isinstance(once, Replay):
        return _answer_again(once, body, ChatShape())
    # OpenAI's newer name for the system role.
    roles = {"developer": "system"}
    messages = tuple(Message(role=roles.get(m.role, m.role), content=m.text()) for m in body.messages)
    resolved = await resolve(request, gateway, body.model, kind="chat", asked=last_user_message(messages))
    model = resolved.model
    if unknown := set(body.corpora or ()) - set(model.corpora):
        known = ", ".join(model.corpora) or "none"
        raise BadRequestError(f"model {model.name!r} has no corpus {min(unknown)!r}; its corpora: {known}", "corpora")
    question = Question(
        model=model,
        resolved=resolved,
        corpora=model.corpora if body.corpora is None else tuple(body.corpora),
        top_k=body.top_k or model.top_k,
        messages=messages,
        sampling=_sampling(gateway, body, body.max_completion_tokens or body.max_tokens),
        mode=(body.attribution and body.attribution.mode) or gateway.settings.attribution.mode,
    )
    return await _answer(gateway, caller, question, body, ChatShape(), once)


@router.post("/completions", openapi_extra=_takes(CompletionRequest))
async def completions(request: Request, gateway: GatewayState, caller: KeyHolder) -> Response:
    """Continue a text. A raw prompt is not grounded."""
    caller.require("caller")
    document = await read_document(request, gateway.settings.limits.body_bytes)
    body = parse(document, CompletionRequest)
    once = await _once(request, gateway, caller.subject, document)
    if isinstance(once, Replay):
        return _answer_again(once, body, CompletionShape())
    resolved = await resolve(request, gateway, body.model, kind="chat", asked=body.prompt)
    question = Question(
        model=resolved.model,
        resolved=resolved,
        prompt=body.prompt,
        sampling=_sampling(gateway, body, body.max_tokens),
        mode=(body.attribution and body.attribution.mode) or gateway.settings.attribution.mode,
    )
    return await _answer(gateway, caller, question, body, CompletionShape(), once)


@router.post("/embeddings", openapi_extra=_takes(EmbeddingRequest))
async def embeddings(request: Request, gateway: GatewayState, caller: KeyHolder) -> Response:
    """Turn texts into vectors."""
    caller.require("caller")
    document = await read_document(request, gateway.settings.limits.body_bytes)
    body = parse(document, EmbeddingRequest)
    once = await _once(request, gateway, caller.subject, document)
    if isinstance(once, Replay):
        return _vectors(Embedded.again(once, len(body.texts)), body, _REPLAYED)
    resolved = await resolve(request, gateway, body.model, kind="embedding")
    embedded = await gateway.embeddings.embed(caller.subject, resolved, body.texts, key=caller, claim=once)
    return _vectors(embedded, body, {})


def _vectors(embedded: Embedded, body: EmbeddingRequest, headers: dict[str, str]) -> Response:
    tokens = embedded.usage.prompt_tokens
    data = [
        {"object": "embedding", "index": i, "embedding": encode_vector(vector, body.encoding_format or "float")}
        for i, vector in enumerate(embedded.vectors)
    ]
    content = {
        "object": "list",
        "model": embedded.model,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return JSONResponse(content, headers=answer_headers(embedded.request_id, embedded.model) | headers)


def _sampling(gateway: Gateway, body: ChatRequest | CompletionRequest, max_tokens: int | None) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens or gateway.settings.limits.default_max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=body.stops,
    )


async def _answer(
    gateway: Gateway,
    caller: Principal,
    question: Question,
    body: ChatRequest | CompletionRequest,
    shape: Shape,
    claim: Claim | None,
) -> Response:
    answer = await gateway.pipeline.open(caller.subject, question, key=caller, claim=claim)
    deltas = answer.deltas()

    def told() -> Told:
        return Told(request_id=answer.request_id, said=answer.said, attribution=answer.attribution)

    try:
        first = await anext(deltas, None)  # before any byte is sent, so that an engine that fails gets its own status
        if not body.stream:
            async for _ in deltas:
                pass
            return JSONResponse(whole(told(), shape), headers=answer_headers(answer.request_id, question.model.name))
    except BaseException:
        answer.abandon()
        raise
    written = events(told, shape, _texts(first, deltas), include_usage=_wants_usage(body))
    return EventStream(written, answer.abandon, answer_headers(answer.request_id, question.model.name))


async def _texts(first: Delta | None, rest: AsyncIterator[Delta]) -> AsyncIterator[str]:
    if first is not None:
        yield first.text
    async for delta in rest:
        yield delta.text


def _answer_again(replay: Replay, body: ChatRequest | CompletionRequest, shape: Shape) -> Response:
    """The first answer once more, in the shape that the body asks for, which is the shape that it had."""
    told = Told(request_id=replay.request_id, said=Said.decode(replay.response), attribution=replay.attribution)
    headers = answer_headers(replay.request_id, told.said.model) | _REPLAYED
    if not body.stream:
        return JSONResponse(whole(told, shape), headers=headers)

    async def texts() -> AsyncIterator[str]:
        yield told.said.text

    return EventStream(events(lambda: told, shape, texts(), include_usage=_wants_usage(body)), lambda: None, headers)


def _wants_usage(body: ChatRequest | CompletionRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage is True


async def _once(request: Request, gateway: Gateway, account: str, document: Any) -> Claim | Replay | None:
    """What the request's Idempotency-Key stands for; None without one."""
    keys = request.headers.getlist(_KEY_HEADER)
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise BadRequestError(
            "an Idempotency-Key is given once, and has 1 to 255 printable ASCII characters",
            _KEY_HEADER,
            "invalid_idempotency_key",
        )
    claim = Claim.of(account, keys[0], request.url.path, document)
    try:
        found = await gateway.transactions.read(lambda c: look_up(c, claim))
    except ResponseExpiredError as error:
        structlog.contextvars.bind_contextvars(request_id=error.request_id)
        raise
    if isinstance(found, Replay):
        structlog.contextvars.bind_contextvars(request_id=found.request_id, replayed=True)
    return found
