"""How answers are written in OpenAI's shapes, whole and as streams, the first time and again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.errors import body_of
from gateway.exchange import Said

Chunk = dict[str, Any]


class ChatShape:
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


class CompletionShape:
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


Shape = ChatShape | CompletionShape


@dataclass(frozen=True, kw_only=True)
class Told:
    """An answer as its client is told it. said: its text may still be growing while the rest holds."""

    request_id: str
    said: Said
    attribution: Mapping[str, Any]

    def envelope(self, shape: Shape, kind: str) -> Chunk:
        """What every object about the answer begins with."""
        return {
            "id": f"{shape.prefix}-{self.request_id}",
            "object": kind,
            "created": self.said.created_s,
            "model": self.said.model,
            "system_fingerprint": None,
        }

    @property
    def usage(self) -> dict[str, int]:
        """Token counts, once the answer is metered."""
        counts: dict[str, int] = self.attribution["usage"]
        return {**counts, "total_tokens": counts["prompt_tokens"] + counts["completion_tokens"]}


def whole(told: Told, shape: Shape) -> Chunk:
    """A complete answer in one object."""
    return told.envelope(shape, shape.whole) | {
        "choices": [shape.choice(told.said.text, told.said.finish_reason)],
        "usage": told.usage,
        "attribution": told.attribution,
    }


async def events(
    told: Callable[[], Told], shape: Shape, texts: AsyncIterator[str], *, include_usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events: text as it comes; how it ended, usage and attribution only once they are committed.

    told: the answer as it is at the moment; complete when `texts` has ended.
    """
    envelope = told().envelope(shape, shape.part)
    if include_usage:
        envelope["usage"] = None
    if opening := shape.opening():
        yield _event(envelope | {"choices": opening})
    try:
        async for text in texts:
            if text:
                yield _event(envelope | {"choices": [shape.delta(text, None)]})
    except Exception as error:
        yield _event(body_of(error)[1])
        return
    ended = told()
    last = {"choices": [shape.delta("", ended.said.finish_reason)], "attribution": ended.attribution}
    yield _event(envelope | last)
    if include_usage:
        yield _event(envelope | {"choices": [], "usage": ended.usage})
    yield b"data: [DONE]\n\n"


def _event(chunk: Chunk) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


class EventStream(StreamingResponse):
    """A stream that tells when it is over, however it ended."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None], headers: Mapping[str, str]) -> None:
        headers = {**headers, "cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; the end is told even when the client left before the first byte."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()
