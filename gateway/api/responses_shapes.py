"""How an answer is written as a response: items that grow, and the events that tell of it.

One fold serves the whole object, the stream and the repeat of either. It reads both kinds of delta: text, and what an
engine wrote itself as the chunks of a chat.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.engines import Delta, EngineUnavailable
from gateway.errors import body_of

Event = dict[str, Any]
ItemStatus = Literal["in_progress", "completed", "incomplete"]

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_COMPLETED = ("stop", "tool_calls")


@dataclass(kw_only=True)
class Message:
    """An output item: what the model says."""

    id: str
    text: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)

    def part(self) -> dict[str, Any]:
        """Its one content part."""
        return {"type": "output_text", "text": "".join(self.text), "annotations": [], "logprobs": self.logprobs}

    def written(self, status: ItemStatus) -> dict[str, Any]:
        """The item as it is by now."""
        content = [] if status == "in_progress" else [self.part()]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}


@dataclass(kw_only=True)
class Call:
    """An output item: a function that the model calls. number: of the call in the engine's own count."""

    id: str
    number: int
    call_id: str
    name: str
    arguments: list[str] = field(default_factory=list)

    def written(self, status: ItemStatus) -> dict[str, Any]:
        """The item as it is by now."""
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": "".join(self.arguments),
        }


class Output:
    """The items of a response. Each change returns the events that tell of it, in order and not yet numbered."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._items: list[Message | Call] = []

    def take(self, delta: Delta) -> list[Event]:
        """Add what an engine gave; raises EngineUnavailable where it cannot be read."""
        if delta.raw is None:
            return self._say(delta.text, []) if delta.text else []
        events: list[Event] = []
        for chunk in _chunks(delta.raw):
            for choice in chunk.choices:
                events += self._choice(choice)
        return events

    def fill(self) -> list[Event]:
        """Let an answer of nothing be an empty message."""
        return [] if self._items else self._open(Message(id=self._id("msg")))

    def close(self, status: ItemStatus) -> list[Event]:
        """End the last item so."""
        return self.fill() + self._done(status)

    def written(self, status: ItemStatus) -> list[dict[str, Any]]:
        """All items, of which the last ended so."""
        last = len(self._items) - 1
        return [item.written(status if i == last else "completed") for i, item in enumerate(self._items)]

    def _choice(self, choice: _Choice) -> list[Event]:
        said = choice.delta
        logprobs = choice.logprobs.content or [] if choice.logprobs else []
        events = self._say(said.content, logprobs) if said.content else []
        for call in said.tool_calls or ():
            events += self._call(call)
        return events

    def _say(self, text: str, logprobs: list[Any]) -> list[Event]:
        events = []
        if not self._items or not isinstance(self._items[-1], Message):
            events = self._next(Message(id=self._id("msg")))
        message = self._items[-1]
        assert isinstance(message, Message)  # noqa: S101 - opened above
        message.text.append(text)
        message.logprobs += logprobs
        place = self._place(message) | {"content_index": 0}
        return [*events, {"type": "response.output_text.delta", **place, "delta": text, "logprobs": logprobs}]

    def _call(self, part: _CallPart) -> list[Event]:
        events = []
        call = self._items[-1] if self._items else None
        if not isinstance(call, Call) or call.number != part.index:
            if not part.function.name:
                raise EngineUnavailable("the engine wrote a part of a call that it had not begun")
            call_id = part.id or self._id("call")
            call = Call(id=self._id("fc"), number=part.index, call_id=call_id, name=part.function.name)
            events = self._next(call)
        if added := part.function.arguments:
            call.arguments.append(added)
            events.append({"type": "response.function_call_arguments.delta", **self._place(call), "delta": added})
        return events

    def _next(self, item: Message | Call) -> list[Event]:
        ended = self._done("completed") if self._items else []
        return ended + self._open(item)

    def _open(self, item: Message | Call) -> list[Event]:
        self._items.append(item)
        place = self._place(item)
        added = {
            "type": "response.output_item.added",
            "output_index": place["output_index"],
            "item": item.written("in_progress"),
        }
        if isinstance(item, Call):
            return [added]
        part = {"type": "response.content_part.added", **place, "content_index": 0, "part": item.part()}
        return [added, part]

    def _done(self, status: ItemStatus) -> list[Event]:
        item = self._items[-1]
        place = self._place(item)
        written = item.written(status)
        done = {"type": "response.output_item.done", "output_index": place["output_index"], "item": written}
        if isinstance(item, Call):
            told = {"name": item.name, "arguments": written["arguments"]}
            return [{"type": "response.function_call_arguments.done", **place, **told}, done]
        part = item.part()
        place["content_index"] = 0
        text = {"text": part["text"], "logprobs": part["logprobs"]}
        return [
            {"type": "response.output_text.done", **place, **text},
            {"type": "response.content_part.done", **place, "part": part},
            done,
        ]

    def _place(self, item: Message | Call) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": len(self._items) - 1}

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._request_id}_{len(self._items)}"


class ResponseWriter:
    """Writes one response, whole or as events.

    model: as the client is told it. asked: the fields of the request that a response repeats. What ends a response
    (`end`, `fail`) is asked for only once the answer is metered, and with it everything that says `done` of its last
    item.
    """

    def __init__(self, *, request_id: str, model: str, created_s: int, asked: Mapping[str, Any]) -> None:
        self._head = {"id": f"resp_{request_id}", "object": "response", "created_at": created_s, "model": model}
        self._asked = asked
        self._output = Output(request_id)
        self._sequence = 0

    def begin(self) -> bytes:
        """The events that come before the first text."""
        response = self._response("in_progress", [])
        return self._events([{"type": f"response.{kind}", "response": response} for kind in ("created", "in_progress")])

    def write(self, delta: Delta) -> bytes:
        """The events of a delta; raises EngineUnavailable where it cannot be read."""
        return self._events(self._output.take(delta))

    def end(self, finish_reason: str, attribution: Mapping[str, Any]) -> bytes:
        """The last events."""
        closing = self._output.close("completed" if finish_reason in _COMPLETED else "incomplete")
        response = self.whole(finish_reason, attribution)
        kind = response["status"] if response["status"] in ("completed", "failed") else "incomplete"
        return self._events([*closing, {"type": f"response.{kind}", "response": response}])

    def fail(self, error: Exception, attribution: Mapping[str, Any]) -> bytes:
        """The last event of a response that broke off. attribution: empty where nothing was charged."""
        response = self._response("failed", self._output.written("incomplete"), attribution)
        response["error"] = _failure(error)
        return self._events([{"type": "response.failed", "response": response}])

    def whole(self, finish_reason: str, attribution: Mapping[str, Any]) -> dict[str, Any]:
        """The response as an object, once it is over."""
        self._output.fill()
        completed = finish_reason in _COMPLETED
        output = self._output.written("completed" if completed else "incomplete")
        if completed:
            return self._response("completed", output, attribution)
        if finish_reason == "error":
            failed = self._response("failed", output, attribution)
            return failed | {"error": _failure(EngineUnavailable("the engine failed before the answer had ended"))}
        if reason := _INCOMPLETE.get(finish_reason):
            return self._response("incomplete", output, attribution) | {"incomplete_details": {"reason": reason}}
        return self._response("cancelled", output, attribution)

    def _response(self, status: str, output: list[Any], attribution: Mapping[str, Any] | None = None) -> dict[str, Any]:
        response = {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": output,
            "usage": None,
            **self._asked,
        }
        if attribution:
            response |= {"usage": _usage(attribution["usage"]), "attribution": attribution}
        return response

    def _events(self, events: list[Event]) -> bytes:
        written = []
        for event in events:
            numbered = orjson.dumps(event | {"sequence_number": self._sequence})
            written.append(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), numbered))
            self._sequence += 1
        return b"".join(written)


def _usage(counts: Mapping[str, int]) -> dict[str, Any]:
    read, emitted = counts["prompt_tokens"], counts["completion_tokens"]
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": emitted,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + emitted,
    }


def _failure(error: Exception) -> dict[str, Any]:
    """An error as a response has it; of OpenAI's codes for it, only this one can be ours."""
    told = body_of(error)[1]["error"]
    assert isinstance(told, dict)  # noqa: S101 - OpenAI's shape of an error
    return {"code": "server_error", "message": told["message"]}


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _FunctionPart(_Part):
    name: str | None = None
    arguments: str | None = None


class _CallPart(_Part):
    index: int
    id: str | None = None
    function: _FunctionPart


class _Said(_Part):
    content: str | None = None
    tool_calls: list[_CallPart] | None = None


class _Logprobs(_Part):
    content: list[dict[str, Any]] | None = None


class _Choice(_Part):
    delta: _Said
    logprobs: _Logprobs | None = None


class _Chunk(_Part):
    """What matters here of a chunk of a chat."""

    choices: list[_Choice]


def _chunks(raw: bytes) -> Iterator[_Chunk]:
    """The objects in whole server-sent events."""
    try:
        for line in raw.split(b"\n"):
            if line.startswith(b"data:"):
                yield _Chunk.model_validate_json(line.removeprefix(b"data:"))
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        raise EngineUnavailable(f"the engine wrote a chunk that cannot be read: {fault['msg']}") from None
