"""The engine for faults, but one that takes every option and writes its answers in OpenAI's form, as vLLM does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson

from gateway.engines import Delta, GenerationRequest
from tests.fakes import FakeEngine, decode, encode

OPTIONS = frozenset(
    {
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "logprobs",
        "top_logprobs",
        "n",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
    }
)


@dataclass(kw_only=True)
class RawFakeEngine(FakeEngine):
    """Says `text` in every choice, each after the first with its number behind it; what was asked stays in `requests`.

    Asked with tools, it calls each of `calls` (a name and its arguments) after the text. created_s: what its own clock
    says, unlike the gateway's.
    """

    CREATED_S: ClassVar[int] = 1_700_000_000

    name: str = "raw-fake"
    options: frozenset[str] = OPTIONS
    calls: tuple[tuple[str, str], ...] = ()
    requests: list[GenerationRequest] = field(default_factory=list)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        answer = _Writing(self, request)
        first = None
        async with AsyncExitStack() as stack:
            streams = {}
            for index in range(int(request.options.get("n", 1))):
                choice = await stack.enter_async_context(aclosing(self._choice(request, index)))
                first = await anext(choice)
                streams[index] = choice
            assert first is not None
            yield Delta(token_ids=(), text="", prompt_ids=first.prompt_ids)
            for index in streams if request.stream else ():
                yield Delta(token_ids=(), text="", index=index, raw=answer.opening(index))
            kept: list[Delta] = []
            while streams:
                for index, choice in list(streams.items()):
                    delta = await anext(choice)
                    if delta.finish_reason is not None:
                        del streams[index]
                    written = answer.written(index, delta)
                    kept += written
                    for part in written if request.stream else ():
                        yield part
        if not request.stream:
            *before, last = kept
            for part in before:
                yield part
            yield Delta(
                token_ids=last.token_ids,
                text=last.text,
                finish_reason=last.finish_reason,
                index=last.index,
                raw=answer.whole(),
            )

    def _choice(self, request: GenerationRequest, index: int) -> AsyncGenerator[Delta, None]:
        speaker = FakeEngine(
            text=self.text if index == 0 else f"{self.text} {index}",
            delay_s=self.delay_s,
            fail_after=self.fail_after,
            down=self.down,
            context_tokens=self.context_tokens,
            prompts=self.prompts,
        )
        speaker._resident = self._resident
        self.begun += 1
        return speaker.generate(request)


class _Writing:
    """One answer in OpenAI's form: its events, or its object."""

    def __init__(self, engine: RawFakeEngine, request: GenerationRequest) -> None:
        self._engine = engine
        self._request = request
        self._chat = request.messages is not None
        self._choices: dict[int, dict[str, Any]] = {}

    def opening(self, index: int) -> bytes | None:
        return self._event(index, {"role": "assistant", "content": ""}, None, None) if self._chat else None

    def written(self, index: int, delta: Delta) -> list[Delta]:
        """A delta as events; the one that ends the choice comes by itself, and the calls of tools before it."""
        said = self._choices.setdefault(index, {"text": "", "calls": [], "logprobs": [], "finish_reason": None})
        said["text"] += delta.text
        logprobs = self._logprobs(delta.token_ids)
        said["logprobs"] += logprobs or []
        stream = self._request.stream
        parts = []
        if delta.token_ids or delta.text:
            raw = self._event(index, {"content": delta.text}, None, logprobs) if stream else None
            parts.append(Delta(token_ids=delta.token_ids, text=delta.text, index=index, raw=raw))
        if delta.finish_reason is None:
            return parts
        reason = delta.finish_reason
        if self._request.tools and reason == "stop":
            for number, (name, arguments) in enumerate(self._engine.calls):
                call = {"id": f"call-{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
                said["calls"].append(call)
                ids = tuple(encode(arguments))
                raw = self._event(index, {"tool_calls": [{"index": number, **call}]}, None, None) if stream else None
                parts.append(Delta(token_ids=ids, text="", index=index, raw=raw))
                reason = "tool_calls"
        said["finish_reason"] = reason
        raw = self._event(index, {}, reason, None) if stream else None
        return [*parts, Delta(token_ids=(), text="", finish_reason=reason, index=index, raw=raw)]

    def whole(self) -> bytes:
        choices = []
        for index, said in sorted(self._choices.items()):
            logprobs = {"content": said["logprobs"]} if said["logprobs"] else None
            choice: dict[str, Any] = {"index": index, "logprobs": logprobs, "finish_reason": said["finish_reason"]}
            if self._chat:
                choice["message"] = {"role": "assistant", "content": said["text"]}
                if said["calls"]:
                    choice["message"]["tool_calls"] = said["calls"]
            else:
                choice["text"] = said["text"]
            choices.append(choice)
        return orjson.dumps(self._envelope("chat.completion" if self._chat else "text_completion", choices)) + b"\n"

    def _logprobs(self, ids: tuple[int, ...]) -> list[dict[str, Any]] | None:
        if not self._request.options.get("logprobs"):
            return None
        return [{"token": decode([i]), "logprob": -1.0, "bytes": [i], "top_logprobs": []} for i in ids]

    def _event(
        self, index: int, delta: Mapping[str, Any], finish_reason: str | None, logprobs: list[dict[str, Any]] | None
    ) -> bytes:
        said = {"delta": delta} if self._chat else {"text": delta.get("content", "")}
        content = None if logprobs is None else {"content": logprobs}
        choice = {"index": index, **said, "logprobs": content, "finish_reason": finish_reason}
        part = "chat.completion.chunk" if self._chat else "text_completion"
        return b"data: " + orjson.dumps(self._envelope(part, [choice])) + b"\n\n"

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        prefix = "chatcmpl" if self._chat else "cmpl"
        return {
            "id": f"{prefix}-{self._request.request_id}",
            "object": kind,
            "created": self._engine.CREATED_S,
            "model": self._request.model,
            "choices": choices,
        }
