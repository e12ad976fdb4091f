"""How answers are written in OpenAI's shapes, whole and as streams, the first time and again.

An engine that writes in OpenAI's form itself is passed on byte for byte, and only its last object is added to; for one
that does not, the shapes write. Nothing here does I/O or parses JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson

from gateway.engines import Delta, FinishReason
from gateway.errors import body_of
from gateway.exchange import Said

Chunk = dict[str, Any]

DONE = b"data: [DONE]\n\n"
# A quote inside a JSON string is escaped, so that no text can look like this.
_CREATED = re.compile(rb'"created":\s*([0-9]+)')


class ChatShape:
    """How a chat answer is written."""

    prefix = "chatcmpl"
    whole = "chat.completion"
    part = "chat.completion.chunk"

    def opening(self, index: int) -> list[Chunk]:
        """What comes before a choice's first text."""
        delta = {"role": "assistant", "content": ""}
        return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]

    def delta(self, index: int, text: str, finish_reason: str | None) -> Chunk:
        """A choice that adds text."""
        content = {"content": text} if finish_reason is None else {}
        return {"index": index, "delta": content, "logprobs": None, "finish_reason": finish_reason}

    def choice(self, text: str, finish_reason: str) -> Chunk:
        """A complete choice."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}


class CompletionShape:
    """How a completion is written."""

    prefix = "cmpl"
    whole = part = "text_completion"

    def opening(self, _index: int) -> list[Chunk]:
        """What comes before a choice's first text."""
        return []

    def delta(self, index: int, text: str, finish_reason: str | None) -> Chunk:
        """A choice that adds text."""
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def choice(self, text: str, finish_reason: str) -> Chunk:
        """A complete choice."""
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


Shape = ChatShape | CompletionShape
CHAT = ChatShape()
COMPLETION = CompletionShape()


@dataclass(frozen=True, kw_only=True)
class Told:
    """An answer as its client is told it, once it is metered. attribution: its attribution object."""

    request_id: str
    said: Said
    attribution: Mapping[str, Any]

    @property
    def usage(self) -> dict[str, int]:
        """The tokens that are charged for."""
        counts: dict[str, int] = self.attribution["usage"]
        return {**counts, "total_tokens": counts["prompt_tokens"] + counts["completion_tokens"]}


def whole(told: Told, shape: Shape) -> bytes:
    """A complete answer in one object."""
    metered = {"usage": told.usage, "attribution": told.attribution}
    if told.said.raw is not None:
        return extended(told.said.raw, metered)
    choices = [shape.choice(told.said.text, told.said.finish_reason)]
    envelope = _envelope(shape, shape.whole, told.request_id, told.said.model, told.said.created_s)
    return orjson.dumps(envelope | {"choices": choices} | metered)


class StreamWriter:
    """An answer as server-sent events: text as it comes; how it ended and what it cost, only once that is committed.

    Every method returns the bytes that may go to the client now. The newest events that end a choice are held back, so
    that the last of them never go before `end`.
    """

    def __init__(
        self, shape: Shape, *, request_id: str, model: str, created_s: int, n_choices: int = 1, include_usage: bool
    ) -> None:
        self._shape = shape
        self._include_usage = include_usage
        self._envelope = _envelope(shape, shape.part, request_id, model, created_s)
        self._nothing_metered = {"usage": None} if include_usage else {}
        self._unopened = set(range(n_choices))
        self._held = b""
        self._is_dated = False

    def write(self, delta: Delta) -> bytes:
        """What a delta lets go: its events, unless they end its choice, and those that were held before them."""
        now, ending = self._written(delta) if delta.raw is None else self._passed_on(delta, delta.raw)
        if not now and not ending:
            return b""
        ready, self._held = self._held + now, ending
        return ready

    def _passed_on(self, delta: Delta, raw: bytes) -> tuple[bytes, bytes]:
        """The events of a delta that its engine wrote: those that may go, and those that end the choice."""
        self._unopened.discard(delta.index)
        if not self._is_dated and (created := _CREATED.search(raw)):
            # What we add is of the same time as the rest; an engine's clock may be a second off ours.
            self._envelope["created"] = int(created[1])
            self._is_dated = True
        if delta.finish_reason is None:
            return raw, b""
        return b"", raw or self._choice(self._shape.delta(delta.index, "", delta.finish_reason))

    def _written(self, delta: Delta) -> tuple[bytes, bytes]:
        """The same of a delta that its engine leaves to us to write."""
        if not delta.text and delta.finish_reason is None:
            return b"", b""
        now = self._opening(delta.index)
        if delta.text:
            now += self._choice(self._shape.delta(delta.index, delta.text, None))
        if delta.finish_reason is None:
            return now, b""
        return now, self._choice(self._shape.delta(delta.index, "", delta.finish_reason))

    def end(self, told: Told) -> bytes:
        """The rest of an answer that is metered. Choices that its engine did not end are ended."""
        written = self._held
        for index in told.said.unfinished:
            written += self._opening(index) + self._choice(self._shape.delta(index, "", told.said.finish_reason))
        ending = extended(written, {"attribution": told.attribution})
        if self._include_usage:
            ending += event(self._envelope | {"choices": [], "usage": told.usage})
        return ending + DONE

    def fail(self, error: Exception) -> bytes:
        """The end of an answer that failed after it had begun: no [DONE] follows."""
        return self._held + event(body_of(error)[1])

    def _opening(self, index: int) -> bytes:
        if index not in self._unopened:
            return b""
        self._unopened.discard(index)
        return b"".join(map(self._choice, self._shape.opening(index)))

    def _choice(self, choice: Chunk) -> bytes:
        return event(self._envelope | {"choices": [choice]} | self._nothing_metered)


def replayed(told: Told, shape: Shape, *, include_usage: bool) -> bytes:
    """A stream once more, in one piece."""
    said = told.said
    writer = StreamWriter(
        shape,
        request_id=told.request_id,
        model=said.model,
        created_s=said.created_s,
        include_usage=include_usage,
    )
    # All that the engine wrote is given as one delta, whose last event is what ends the answer.
    reason = None if said.unfinished else cast("FinishReason", said.finish_reason)
    delta = Delta(token_ids=(), text=said.text, raw=said.raw, finish_reason=reason)
    return writer.write(delta) + writer.end(told)


def event(chunk: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def extended(written: bytes, members: Mapping[str, Any]) -> bytes:
    """Add members to the last JSON object in bytes that end with one, white space aside. It has none of them yet."""
    end = written.rindex(b"}")
    return b"".join((written[:end], b",", orjson.dumps(members)[1:-1], written[end:]))


def _envelope(shape: Shape, kind: str, request_id: str, model: str, created_s: int) -> Chunk:
    """What every object about an answer begins with."""
    return {
        "id": f"{shape.prefix}-{request_id}",
        "object": kind,
        "created": created_s,
        "model": model,
        "system_fingerprint": None,
    }
