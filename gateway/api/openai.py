"""The routes that any OpenAI client calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gateway.api.asking import events, mode_of, searched
from gateway.api.described import ChatReply, CompletionReply, EmbeddingReply, charged
from gateway.api.messages import offered
from gateway.api.models import answer_headers, resolve
from gateway.api.repeats import REPLAYED, asked_before, takes_once
from gateway.api.replies import CHAT, COMPLETION, Shape, StreamWriter, Told, replayed, whole
from gateway.api.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    check_taken,
    encode_vector,
    parse,
    read_document,
)
from gateway.api.wire import EventStream, Last
from gateway.auth import Principal
from gateway.embeddings import Embedded
from gateway.engines import SamplingParams
from gateway.exchange import Answer, Question, Said, last_user_message, up_to_first_token
from gateway.idempotency import JSON_TYPE, Claim, Replay
from gateway.state import Gateway, GatewayState, KeyHolder

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post("/chat/completions", openapi_extra=takes_once(ChatRequest), responses=charged(ChatReply, streams=True))
async def chat_completions(request: Request, gateway: GatewayState, caller: KeyHolder) -> Response:
    """Answer a conversation."""
    caller.require("caller")
    document = await read_document(request, gateway.settings.limits)
    body = parse(document, ChatRequest)
    once = await asked_before(request, gateway, caller.subject, document)
    if isinstance(once, Replay):
        return _answer_again(gateway, once, body, CHAT)
    options = _options(gateway, body)
    messages = tuple(message.turn() for message in body.messages)
    resolved = await resolve(request, gateway, body.model, kind="chat", asked=last_user_message(messages))
    question = Question(
        model=resolved.model,
        resolved=resolved,
        corpora=searched(resolved.model, body.corpora),
        top_k=body.top_k or resolved.model.top_k,
        messages=messages,
        sampling=_sampling(gateway, body, body.max_completion_tokens or body.max_tokens),
        tools=offered(body.tools),
        options=options,
        stream=bool(body.stream),
        mode=mode_of(gateway, body.attribution),
    )
    return await _answer(gateway, caller, question, body, CHAT, once)


@router.post(
    "/completions", openapi_extra=takes_once(CompletionRequest), responses=charged(CompletionReply, streams=True)
)
async def completions(request: Request, gateway: GatewayState, caller: KeyHolder) -> Response:
    """Continue a text. A raw prompt is not grounded."""
    caller.require("caller")
    document = await read_document(request, gateway.settings.limits)
    body = parse(document, CompletionRequest)
    once = await asked_before(request, gateway, caller.subject, document)
    if isinstance(once, Replay):
        return _answer_again(gateway, once, body, COMPLETION)
    asked = body.prompt if isinstance(body.prompt, str) else None
    resolved = await resolve(request, gateway, body.model, kind="chat", asked=asked)
    question = Question(
        model=resolved.model,
        resolved=resolved,
        prompt=body.prompt if isinstance(body.prompt, str) else tuple(body.prompt),
        sampling=_sampling(gateway, body, body.max_tokens),
        options=_options(gateway, body),
        stream=bool(body.stream),
        mode=mode_of(gateway, body.attribution),
    )
    return await _answer(gateway, caller, question, body, COMPLETION, once)


@router.post("/embeddings", openapi_extra=takes_once(EmbeddingRequest), responses=charged(EmbeddingReply))
async def embeddings(request: Request, gateway: GatewayState, caller: KeyHolder) -> Response:
    """Turn texts into vectors."""
    caller.require("caller")
    document = await read_document(request, gateway.settings.limits)
    body = parse(document, EmbeddingRequest)
    once = await asked_before(request, gateway, caller.subject, document)
    if isinstance(once, Replay):
        return _vectors(Embedded.again(once, len(body.texts)), body, REPLAYED)
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


def _options(gateway: Gateway, body: ChatRequest | CompletionRequest) -> dict[str, Any]:
    options = body.options()
    check_taken(body, options, gateway.engine.options)
    return options


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
    try:
        if not body.stream:
            await answer.finished()
            return Response(whole(_told(answer), shape), media_type=JSON_TYPE, headers=_headers(answer))
        pieces = answer.pieces()
        first = await up_to_first_token(pieces)
    except BaseException:
        answer.abandon()
        raise
    writer = StreamWriter(
        shape,
        request_id=answer.request_id,
        model=question.model.name,
        created_s=answer.created_s,
        n_choices=question.n_choices,
        include_usage=_wants_usage(body),
    )
    written = events(first, pieces, write=writer.write, end=lambda: writer.end(_told(answer)), fail=writer.fail)
    return EventStream(written, answer.abandon, _headers(answer), gateway.settings.limits.stall_s)


def _headers(answer: Answer) -> dict[str, str]:
    return answer_headers(answer.request_id, answer.question.model.name)


def _told(answer: Answer) -> Told:
    return Told(request_id=answer.request_id, said=answer.said, attribution=answer.attribution)


def _answer_again(gateway: Gateway, replay: Replay, body: ChatRequest | CompletionRequest, shape: Shape) -> Response:
    """The first answer once more, in the shape that the body asks for, which is the shape that it had."""
    told = Told(request_id=replay.request_id, said=Said.decode(replay.response), attribution=replay.attribution)
    headers = answer_headers(replay.request_id, told.said.model) | REPLAYED
    if not body.stream:
        return Response(whole(told, shape), media_type=JSON_TYPE, headers=headers)

    async def again() -> AsyncIterator[bytes]:
        yield Last(replayed(told, shape, include_usage=_wants_usage(body)))

    return EventStream(again(), lambda: None, headers, gateway.settings.limits.stall_s)


def _wants_usage(body: ChatRequest | CompletionRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage is True
