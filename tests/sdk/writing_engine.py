"""An engine that writes in OpenAI's form itself, as vLLM does, and takes every option that changes what is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any

from gateway.engines import Delta, EngineUnavailable, GenerationRequest
from tests.fakes import FakeEngine, encode

OPTIONS = frozenset(
    {"tools", "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs", "n", "seed"}
    | {"presence_penalty", "frequency_penalty", "logit_bias"}
)
TOKEN_CHARACTERS = 4


@dataclass(kw_only=True)
class WritingEngine(FakeEngine):
    """Says `text`, four characters a delta and a byte a token, in OpenAI's form.

    Asked with tools it calls the first of them, or the one that tool_choice names, with `arguments`, unless a tool has
    just answered; tool_choice `required` without parallel_tool_calls false calls every tool once. Asked for JSON it
    says `json_text`. Before a delta it waits for `delay_s`.
    """

    arguments: str = '{"city": "Mole"}'
    json_text: str = '{"name": "Petra", "year": 1803}'
    options: frozenset[str] = OPTIONS

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        self._check(request.adapter)
        if request.messages is None:
            prompt = await self.tokenize(str(request.prompt))
        else:
            prompt = await self.render(request.messages, request.tools)
        self.prompts.append(bytes(prompt).decode())
        self.asked = request
        yield Delta(token_ids=(), text="", prompt_ids=tuple(prompt))
        self.begun += 1
        ended = False
        try:
            write = _events if request.stream else _objects
            for said, delta in enumerate(write(request, self)):
                await asyncio.sleep(self.delay_s)
                if self.down or said == self.fail_after:
                    ended = True
                    raise EngineUnavailable(f"told to fail after {said} deltas")
                yield delta
            ended = True
        finally:
            self.finished += ended
            self.abandoned += not ended


def _calls(request: GenerationRequest, engine: WritingEngine) -> list[dict[str, Any]]:
    choice = request.options.get("tool_choice", "auto")
    answered = request.messages is not None and request.messages[-1].role == "tool"
    if not request.tools or choice == "none" or (answered and choice == "auto"):
        return []
    names = [tool["function"]["name"] for tool in request.tools]
    if isinstance(choice, dict):
        names = [choice["function"]["name"]]
    elif choice == "auto" or request.options.get("parallel_tool_calls") is False:
        names = names[:1]
    return [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": engine.arguments}}
        for i, name in enumerate(names)
    ]


def _said(request: GenerationRequest, engine: WritingEngine) -> tuple[list[str], str]:
    """The pieces of an answer, and how it ends."""
    wants_json = request.options.get("response_format", {"type": "text"})["type"] != "text"
    text = engine.json_text if wants_json else engine.text
    room = request.sampling.max_tokens
    cut = text.encode()[:room].decode(errors="ignore")
    pieces = [cut[i : i + TOKEN_CHARACTERS] for i in range(0, len(cut), TOKEN_CHARACTERS)]
    return pieces, "stop" if cut == text else "length"


def _logprobs(request: GenerationRequest, text: str) -> dict[str, Any] | None:
    if not request.options.get("logprobs"):
        return None
    entry = {"token": text, "logprob": -0.25, "bytes": list(text.encode())}
    several = [entry] * int(request.options.get("top_logprobs") or 0)
    return {"content": [{**entry, "top_logprobs": several}]}


def _head(request: GenerationRequest, kind: str) -> dict[str, Any]:
    chat = request.messages is not None
    names = {"whole": "chat.completion", "part": "chat.completion.chunk"} if chat else {}
    prefix = "chatcmpl" if chat else "cmpl"
    return {
        "id": f"{prefix}-{request.request_id}",
        "object": names.get(kind, "text_completion"),
        "created": 1_700_000_000,
        "model": request.model,
    }


def _event(request: GenerationRequest, index: int, finish_reason: str | None = None, **said: Any) -> bytes:
    choice = {"index": index, "logprobs": None, "finish_reason": finish_reason, **said}
    return b"data: " + json.dumps(_head(request, "part") | {"choices": [choice]}).encode() + b"\n\n"


def _events(request: GenerationRequest, engine: WritingEngine) -> Iterator[Delta]:
    chat = request.messages is not None
    calls = _calls(request, engine) if chat else []
    pieces, finish_reason = ([], "tool_calls") if calls else _said(request, engine)
    for index in range(int(request.options.get("n") or 1)):
        if chat:
            opened = _event(request, index, delta={"role": "assistant", "content": ""})
            yield Delta(token_ids=(), text="", index=index, raw=opened)
        for piece in pieces:
            said = {"delta": {"content": piece}} if chat else {"text": piece}
            raw = _event(request, index, **said, logprobs=_logprobs(request, piece))
            yield Delta(token_ids=tuple(encode(piece)), text=piece, index=index, raw=raw)
        for number, call in enumerate(calls):
            head = {**call, "index": number, "function": {"name": call["function"]["name"], "arguments": ""}}
            yield Delta(token_ids=(1,), text="", index=index, raw=_event(request, index, delta={"tool_calls": [head]}))
            written = call["function"]["arguments"]
            for part in (written[:5], written[5:]):
                more = {"index": number, "function": {"arguments": part}}
                raw = _event(request, index, delta={"tool_calls": [more]})
                yield Delta(token_ids=tuple(encode(part)), text="", index=index, raw=raw)
        said = {"delta": {}} if chat else {"text": ""}
        raw = _event(request, index, finish_reason, **said)
        yield Delta(token_ids=(0,), text="", finish_reason=finish_reason, index=index, raw=raw)  # type: ignore[arg-type]


def _objects(request: GenerationRequest, engine: WritingEngine) -> Iterator[Delta]:
    chat = request.messages is not None
    calls = _calls(request, engine) if chat else []
    pieces, finish_reason = ([], "tool_calls") if calls else _said(request, engine)
    text = "".join(pieces)
    n = int(request.options.get("n") or 1)
    content = [entry for piece in pieces for entry in (_logprobs(request, piece) or {"content": []})["content"]]
    message = {"role": "assistant", "content": None if calls else text, "refusal": None, "tool_calls": calls}
    said = {"message": message} if chat else {"text": text}
    logprobs = {"content": content} if content else None
    choices = [{"index": index, **said, "logprobs": logprobs, "finish_reason": finish_reason} for index in range(n)]
    raw = json.dumps(_head(request, "whole") | {"choices": choices}).encode()
    ids = (*encode("".join(call["function"]["arguments"] for call in calls) or text), 0)
    for index in range(n):
        first = raw if index == 0 else None
        yield Delta(token_ids=ids, text=text, index=index, finish_reason=finish_reason, raw=first)  # type: ignore[arg-type]
