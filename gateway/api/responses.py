"""The route of OpenAI's Responses API, without what a server would have to keep for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from gateway.api.asking import events, mode_of, searched
from gateway.api.described import ResponseReply, charged
from gateway.api.models import answer_headers, resolve
from gateway.api.repeats import REPLAYED, asked_before, takes_once
from gateway.api.requests import UNSUPPORTED, parse, read_document
from gateway.api.responses_requests import ResponsesRequest
from gateway.api.responses_shapes import ResponseWriter
from gateway.api.wire import EventStream, Last
from gateway.catalogue import ServedModel
from gateway.engines import Delta, SamplingParams
from gateway.errors import BadRequestError
from gateway.exchange import Question, Said, last_user_message, up_to_first_token
from gateway.grounding import Message
from gateway.idempotency import Replay
from gateway.routing.names import Resolved
from gateway.state import Gateway, GatewayState, KeyHolder

router = APIRouter(prefix="/v1", tags=["OpenAI"])

# What an engine calls a field, and where a response's request has it.
_PLACES = {"response_format": "text.format", "logprobs": "include"}


@router.post("/responses", openapi_extra=takes_once(ResponsesRequest), responses=charged(ResponseReply, streams=True))
async def create_response(request: Request, gateway: GatewayState, caller: KeyHolder) -> Response:
    """Answer a conversation given whole. Nothing is kept, so that no response can be fetched or continued later."""
    caller.require("caller")
    document = await read_document(request, gateway.settings.limits)
    body = parse(document, ResponsesRequest)
    body.refuse_what_is_not_here()
    once = await asked_before(request, gateway, caller.subject, document)
    if isinstance(once, Replay):
        return _answer_again(gateway, once, body)
    messages = body.messages
    resolved = await resolve(request, gateway, body.model, kind="chat", asked=last_user_message(messages))
    question = _question(gateway, body, messages, resolved)
    answer = await gateway.pipeline.open(caller.subject, question, key=caller, claim=once)
    writer = _writer(answer.request_id, answer.said, body)
    headers = answer_headers(answer.request_id, resolved.model.name)
    pieces = answer.pieces()
    try:
        if not body.stream:
            async for piece in pieces:
                for delta in piece:
                    writer.write(delta)
            content = writer.whole(answer.said.finish_reason, answer.attribution)
            return JSONResponse(content, headers=headers)
        first = await up_to_first_token(pieces)
    except BaseException:
        answer.abandon()
        raise
    written = events(
        first,
        pieces,
        begun=writer.begin(),
        write=writer.write,
        end=lambda: writer.end(answer.said.finish_reason, answer.attribution),
        fail=lambda error: writer.fail(error, answer.attribution),
    )
    return EventStream(written, answer.abandon, headers, gateway.settings.limits.stall_s)


def _question(gateway: Gateway, body: ResponsesRequest, messages: tuple[Message, ...], resolved: Resolved) -> Question:
    model, options, takes = resolved.model, body.options, gateway.engine.options
    if "tools" not in takes and (body.tools or any(message.more for message in messages)):
        field = "tools" if body.tools else "input"
        raise _unsupported(field, model)
    for name in options:
        if name not in takes:
            raise _unsupported(_PLACES.get(name, name), model)
    return Question(
        model=model,
        resolved=resolved,
        corpora=searched(model, body.corpora),
        top_k=body.top_k or model.top_k,
        messages=messages,
        sampling=SamplingParams(
            max_tokens=body.max_output_tokens or gateway.settings.limits.default_max_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
        ),
        tools=body.offered,
        options=options,
        stream=True,  # whether or not the client wants events: one form of what an engine writes is enough to read
        mode=mode_of(gateway, body.attribution),
    )


def _unsupported(field: str, model: ServedModel) -> BadRequestError:
    message = f"{field}: the engine of model {model.name!r} does not support this"
    return BadRequestError(message, field, UNSUPPORTED)


def _writer(request_id: str, said: Said, body: ResponsesRequest) -> ResponseWriter:
    return ResponseWriter(request_id=request_id, model=said.model, created_s=said.created_s, asked=body.repeated)


def _answer_again(gateway: Gateway, replay: Replay, body: ResponsesRequest) -> Response:
    """The first response once more, whole or as a stream, as the body asks."""
    said = Said.decode(replay.response)
    writer = _writer(replay.request_id, said, body)
    begun = writer.begin()
    written = writer.write(Delta(token_ids=(), text=said.text, raw=said.raw))
    headers = answer_headers(replay.request_id, said.model) | REPLAYED
    if not body.stream:
        return JSONResponse(writer.whole(said.finish_reason, replay.attribution), headers=headers)

    async def again() -> AsyncIterator[bytes]:
        yield Last(begun + written + writer.end(said.finish_reason, replay.attribution))

    return EventStream(again(), lambda: None, headers, gateway.settings.limits.stall_s)
