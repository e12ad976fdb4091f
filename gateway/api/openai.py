"""The routes that any OpenAI client calls."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from gateway.api.requests import (
    SCHEMA_REFERENCE,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    encode_vector,
    read_body,
)
from gateway.catalogue import ServedModel
from gateway.engines import Delta, SamplingParams
from gateway.errors import BadRequestError, body_of
from gateway.exchange import Answer, Question
from gateway.grounding import Message
from gateway.state import Gateway, GatewayState, KeyHolder

router = APIRouter(prefix="/v1", tags=["OpenAI"])

Chunk = dict[str, Any]


def _takes(kind: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI fragment of a route that reads its own body."""
    schema = {"$ref": SCHEMA_REFERENCE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.get("/models")
async def list_models(gateway: GatewayState, caller: KeyHolder) -> dict[str, Any]:
    """The served models."""
    caller.require("caller", "operator")
    return {"object": "list", "data": [_model_object(model) for model in gateway.catalogue]}


@router.get("/models/{name}")
async def retrieve_model(name: str, gateway: GatewayState, caller: KeyHolder) -> dict[str, Any]:
    """One served model."""
    caller.require("caller", "operator")
    return _model_object(gateway.catalogue.find(name))


@router.post("/chat/completions", openapi_extra=_takes(ChatRequest))
async def chat_completions(request: Request, gateway: GatewayState, caller: KeyHolder) -> Response:
    """Answer a conversation."""
    caller.require("caller")
    body = await read_body(request, ChatRequest, gateway.settings.limits.body_bytes)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise BadRequestError("give max_completion_tokens or max_tokens, not both", "max_tokens")
    # OpenAI's newer name for the system role.
    roles = {"developer": "system"}
    model = _model(request, gateway, body.model, "chat")
    if unknown := set(body.corpora or ()) - set(model.corpora):
        known = ", ".join(model.corpora) or "none"
        raise BadRequestError(f"model {model.name!r} has no corpus {min(unknown)!r}; its corpora: {known}", "corpora")
    question = Question(
        model=model,
        corpora=model.corpora if body.corpora is None else tuple(body.corpora),
        top_k=body.top_k or model.top_k,
        messages=tuple(Message(role=roles.get(m.role, m.role), content=m.text()) for m in body.messages),
        sampling=_sampling(gateway, body, body.max_completion_tokens or body.max_tokens),
        mode=(body.attribution and body.attribution.mode) or gateway.settings.attribution.mode,
    )
    return await _answer(gateway, caller.subject, question, body, _ChatShape())


@router.post("/completions", openapi_extra=_takes(CompletionRequest))
async def completions(request: Request, gateway: GatewayState, caller: KeyHolder) -> Response:
    """Continue a text. A raw prompt is not grounded."""
    caller.require("caller")
    body = await read_body(request, CompletionRequest, gateway.settings.limits.body_bytes)
    question = Question(
        model=_model(request, gateway, body.model, "chat"),
        prompt=body.prompt,
        sampling=_sampling(gateway, body, body.max_tokens),
        mode=(body.attribution and body.attribution.mode) or gateway.settings.attribution.mode,
    )
    return await _answer(gateway, caller.subject, question, body, _CompletionShape())


@router.post("/embeddings", openapi_extra=_takes(EmbeddingRequest))
async def embeddings(request: Request, gateway: GatewayState, caller: KeyHolder) -> Response:
    """Turn texts into vectors."""
    caller.require("caller")
    body = await read_body(request, EmbeddingRequest, gateway.settings.limits.body_bytes)
    model = _model(request, gateway, body.model, "embedding")
    embedded = await gateway.embeddings.embed(caller.subject, model, body.texts)
    tokens = embedded.usage.prompt_tokens
    data = [
        {"object": "embedding", "index": i, "embedding": encode_vector(vector, body.encoding_format or "float")}
        for i, vector in enumerate(embedded.vectors)
    ]
    content = {
        "object": "list",
        "model": model.name,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return JSONResponse(content, headers=_headers(embedded.request_id))


def _model(request: Request, gateway: Gateway, name: str, kind: str) -> ServedModel:
    """Resolve the name that a client gave; what it resolved to becomes a label, the name itself never does."""
    model = gateway.catalogue.find(name, kind)
    request.state.served_model = model.name
    gateway.metrics.routing.labels(model.name, "named").inc()
    return model


def _model_object(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": model.adapter.developer if model.adapter else "platform",
        "kind": model.kind,
        "description": model.description,
        "base_model": model.base,
        "adapter": model.adapter_name,
        "corpora": list(model.corpora),
    }


def _sampling(gateway: Gateway, body: ChatRequest | CompletionRequest, max_tokens: int | None) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens or gateway.settings.limits.default_max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=body.stops,
    )


def _headers(request_id: str) -> dict[str, str]:
    return {"x-tributary-request-id": request_id, "x-request-id": request_id}


class _ChatShape:
    """How a chat answer is written."""

    prefix = "chatcmpl"
    whole = "chat.completion"
    part = "chat.completion.chunk"

    def opening(self) -> list[Chunk]:
        """Choices that come before the first text."""
        return [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]

    def delta(self, text: str, finish_reason: str | None) -> Chunk:
        """A choice that adds text."""
        content = {"content": text} if finish_reason is None else {}
        return {"index": 0, "delta": content, "logprobs": None, "finish_reason": finish_reason}

    def choice(self, text: str, finish_reason: str) -> Chunk:
        """A complete choice."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}


class _CompletionShape:
    """How a completion is written."""

    prefix = "cmpl"
    whole = part = "text_completion"

    def opening(self) -> list[Chunk]:
        """Choices that come before the first text."""
        return []

    def delta(self, text: str, finish_reason: str | None) -> Chunk:
        """A choice that adds text."""
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def choice(self, text: str, finish_reason: str) -> Chunk:
        """A complete choice."""
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


Shape = _ChatShape | _CompletionShape


async def _answer(
    gateway: Gateway, caller: str, question: Question, body: ChatRequest | CompletionRequest, shape: Shape
) -> Response:
    answer = await gateway.pipeline.open(caller, question)
    deltas = answer.deltas()
    try:
        first = await anext(deltas, None)  # before any byte is sent, so that an engine that fails gets its own status
        if not body.stream:
            text = (first.text if first else "") + "".join([delta.text async for delta in deltas])
            return JSONResponse(_whole(answer, shape, text), headers=_headers(answer.request_id))
    except BaseException:
        answer.abandon()
        raise
    include_usage = body.stream_options is not None and body.stream_options.include_usage is True
    events = _events(answer, shape, first, deltas, include_usage=include_usage)
    return _EventStream(events, answer.abandon, _headers(answer.request_id))


def _whole(answer: Answer, shape: Shape, text: str) -> Chunk:
    return _envelope(answer, shape, shape.whole) | {
        "choices": [shape.choice(text, answer.finish_reason)],
        "usage": _usage(answer),
        "attribution": answer.attribution,
    }


async def _events(
    answer: Answer, shape: Shape, first: Delta | None, rest: AsyncIterator[Delta], *, include_usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events: text as it comes; how it ended, usage and attribution only once they are committed."""
    envelope = _envelope(answer, shape, shape.part)
    if include_usage:
        envelope["usage"] = None
    if opening := shape.opening():
        yield _event(envelope | {"choices": opening})
    try:
        if first is not None and first.text:
            yield _event(envelope | {"choices": [shape.delta(first.text, None)]})
        async for delta in rest:
            if delta.text:
                yield _event(envelope | {"choices": [shape.delta(delta.text, None)]})
    except Exception as error:
        yield _event(body_of(error)[1])
        return
    last = {"choices": [shape.delta("", answer.finish_reason)], "attribution": answer.attribution}
    yield _event(envelope | last)
    if include_usage:
        yield _event(envelope | {"choices": [], "usage": _usage(answer)})
    yield b"data: [DONE]\n\n"


def _event(chunk: Chunk) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _envelope(answer: Answer, shape: Shape, kind: str) -> Chunk:
    return {
        "id": f"{shape.prefix}-{answer.request_id}",
        "object": kind,
        "created": int(time.time()),
        "model": answer.question.model.name,
        "system_fingerprint": None,
    }


def _usage(answer: Answer) -> dict[str, int]:
    usage = answer.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


class _EventStream(StreamingResponse):
    """A stream that tells when it is over, however it ended."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None], headers: dict[str, str]) -> None:
        headers = headers | {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; the end is told even when the client left before the first byte."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()
