"""The routes that any OpenAI client calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gateway.api.repeats import REPLAYED, asked_before, takes_once
from gateway.api.replies import ChatShape, CompletionShape, EventStream, Shape, Told, events, whole
from gateway.api.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    encode_vector,
    parse,
    read_document,
)
from gateway.auth import Principal
from gateway.catalogue import ServedModel
from gateway.embeddings import Embedded
from gateway.engines import Delta, SamplingParams
from gateway.errors import BadRequestError
from gateway.exchange import Question, Said
from gateway.grounding import Message
from gateway.idempotency import Claim, Replay
from gateway.state import Gateway, GatewayState, KeyHolder

router = APIRouter(prefix="/v1", tags=["OpenAI"])


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


@router.post("/chat/completions", openapi_extra=takes_once(ChatRequest))
async def chat_completions(request: Request, gateway: GatewayState, caller: KeyHolder) -> Response:
    """Answer a conversation."""
    caller.require("caller")
    document = await read_document(request, gateway.settings.limits.body_bytes)
    body = parse(document, ChatRequest)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise BadRequestError("give max_completion_tokens or max_tokens, not both", "max_tokens")
    once = await asked_before(request, gateway, caller.subject, document)
    if isinstance(once, Replay):
        return _answer_again(once, body, ChatShape())
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
    return await _answer(gateway, caller, question, body, ChatShape(), once)


@router.post("/completions", openapi_extra=takes_once(CompletionRequest))
async def completions(request: Request, gateway: GatewayState, caller: KeyHolder) -> Response:
    """Continue a text. A raw prompt is not grounded."""
    caller.require("caller")
    document = await read_document(request, gateway.settings.limits.body_bytes)
    body = parse(document, CompletionRequest)
    once = await asked_before(request, gateway, caller.subject, document)
    if isinstance(once, Replay):
        return _answer_again(once, body, CompletionShape())
    question = Question(
        model=_model(request, gateway, body.model, "chat"),
        prompt=body.prompt,
        sampling=_sampling(gateway, body, body.max_tokens),
        mode=(body.attribution and body.attribution.mode) or gateway.settings.attribution.mode,
    )
    return await _answer(gateway, caller, question, body, CompletionShape(), once)


@router.post("/embeddings", openapi_extra=takes_once(EmbeddingRequest))
async def embeddings(request: Request, gateway: GatewayState, caller: KeyHolder) -> Response:
    """Turn texts into vectors."""
    caller.require("caller")
    document = await read_document(request, gateway.settings.limits.body_bytes)
    body = parse(document, EmbeddingRequest)
    once = await asked_before(request, gateway, caller.subject, document)
    if isinstance(once, Replay):
        return _vectors(Embedded.again(once, len(body.texts)), body, REPLAYED)
    model = _model(request, gateway, body.model, "embedding")
    embedded = await gateway.embeddings.embed(caller.subject, model, body.texts, key=caller, claim=once)
    return _vectors(embedded, body, {})


def _vectors(embedded: Embedded, body: EmbeddingRequest, headers: dict[str, str]) -> Response:
    tokens = embedded.usage.prompt_tokens
    data = [
        {"object": "embedding", "index": i, "embedding": encode_vector(vector, body.encoding_format or "float")}
        for i, vector in enumerate(embedded.vectors)
    ]
    content = {
        "object": "list",
        "model": body.model,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return JSONResponse(content, headers=_headers(embedded.request_id) | headers)


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
            return JSONResponse(whole(told(), shape), headers=_headers(answer.request_id))
    except BaseException:
        answer.abandon()
        raise
    written = events(told, shape, _texts(first, deltas), include_usage=_wants_usage(body))
    return EventStream(written, answer.abandon, _headers(answer.request_id))


async def _texts(first: Delta | None, rest: AsyncIterator[Delta]) -> AsyncIterator[str]:
    if first is not None:
        yield first.text
    async for delta in rest:
        yield delta.text


def _answer_again(replay: Replay, body: ChatRequest | CompletionRequest, shape: Shape) -> Response:
    """The first answer once more, in the shape that the body asks for, which is the shape that it had."""
    told = Told(request_id=replay.request_id, said=Said.decode(replay.response), attribution=replay.attribution)
    headers = _headers(replay.request_id) | REPLAYED
    if not body.stream:
        return JSONResponse(whole(told, shape), headers=headers)

    async def texts() -> AsyncIterator[str]:
        yield told.said.text

    return EventStream(events(lambda: told, shape, texts(), include_usage=_wants_usage(body)), lambda: None, headers)


def _wants_usage(body: ChatRequest | CompletionRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage is True
