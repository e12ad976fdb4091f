"""What a vLLM server writes, cut into deltas by splicing bytes: no chunk of an answer is parsed on its way. Pure.

The patterns are names of fields in quotes, as JSON writes them. Inside a string of JSON quotes are escaped, so that no
answer can spell one of them. In one place what a model says names a field, in the top log-probabilities of a
completion, and its values are numbers, which no pattern takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import cast, get_args

import orjson

from gateway.engines.base import Delta, EngineError, EngineUnavailable, FinishReason
from gateway.engines.vllm.refusals import Refusal

# The first event carries the prompt's ids: seven bytes for each of two million tokens, and room.
MAX_EVENT_BYTES = 16 << 20

_IDS = re.compile(rb',"token_ids":(?:\[([0-9,]*)\]|null)')
_PROMPT_IDS = re.compile(rb',"prompt_token_ids":(?:\[([0-9,]*)\]|null)')
_INDEX = re.compile(rb'"choices":\[\{"index":([0-9]{1,4})[,}]')
_FINISH_REASON = re.compile(rb'"finish_reason":"([a-z_]{1,32})"')
_USAGE = re.compile(rb',"usage":(\{(?:[^{}]|\{[^{}]*\})*\})')
_UNFINISHED = b'"finish_reason":null'
_FINISH_REASONS = {reason.encode(): cast("FinishReason", reason) for reason in get_args(FinishReason)}


class Splicer:
    """Takes token ids out of what a server wrote, counts them, and writes the model's name as the client knows it.

    written: the name by which the server was asked. told: what the client is told.
    """

    def __init__(self, *, written: str, told: str) -> None:
        self._written = _model(written)
        self._told = _model(told)
        self.prompt_ids: tuple[int, ...] | None = None
        self._answer_tokens = 0

    def splice(self, raw: bytes) -> tuple[tuple[int, ...], bytes]:
        """The ids in whole events or in a whole answer, and the rest of it; reads the prompt's ids where they come."""
        # Splitting at a pattern that has a group gives what is between and what is in the group by turns, in one pass.
        pieces = _IDS.split(raw)
        ids = _numbers(pieces[1::2])
        self._answer_tokens += len(ids)
        raw = b"".join(pieces[::2])
        if self.prompt_ids is None:
            found = _PROMPT_IDS.search(raw)
            if found is None or not found[1]:
                raise EngineUnavailable("the vLLM server does not say which token ids it read; a newer one does")
            self.prompt_ids = _numbers([found[1]])
        if b'"prompt_token_ids":' in raw:
            raw = _PROMPT_IDS.sub(b"", raw)
        return ids, raw.replace(self._written, self._told)

    def check(self, usage: bytes) -> None:
        """Raise EngineUnavailable unless the ids are as many as the server says. usage: its own count, as JSON."""
        try:
            said = orjson.loads(usage)
            counts = said["prompt_tokens"], said["completion_tokens"]
        except (orjson.JSONDecodeError, LookupError, TypeError):
            raise EngineUnavailable("the vLLM server did not say how many tokens there were") from None
        found = len(self.prompt_ids or ()), self._answer_tokens
        if counts != found:
            raise EngineUnavailable(f"the vLLM server counted {counts} tokens, but wrote the ids of {found}")


class EventWalker:
    """Walks a stream of server-sent events as it arrives, in whatever pieces.

    choices: how many were asked for. adapter, context_tokens: see Refusal.as_error.
    """

    def __init__(self, splicer: Splicer, *, choices: int, adapter: str | None, context_tokens: int) -> None:
        self._splicer = splicer
        self._choices = choices
        self._unfinished = set(range(choices))
        self._adapter = adapter
        self._context_tokens = context_tokens
        self._rest = b""
        self._usage = b"null"
        self.done = False

    def feed(self, data: bytes) -> Iterator[Delta]:
        """Deltas that one read from the network completes; sets `done` at the stream's last event.

        All that a read brings of one choice is one delta, for a busy engine writes many events at once; the event that
        ends a choice is always a delta of its own. Raises EngineUnavailable, and what Refusal.as_error gives.
        """
        buffer = self._rest + data if self._rest else data
        if b"\r" in buffer:
            buffer = buffer.replace(b"\r\n", b"\n")
        end = buffer.rfind(b"\n\n")
        end = 0 if end < 0 else end + 2
        events, self._rest = buffer[:end], buffer[end:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EngineUnavailable(f"the vLLM server wrote an event of more than {MAX_EVENT_BYTES} bytes")
        if self._choices == 1:
            # Whatever does not go on comes last: the end of the choice, usage, an error.
            last = events.rfind(_UNFINISHED)
            going_on = 0 if last < 0 else events.index(b"\n\n", last) + 2
            if going_on:
                yield self._delta(events[:going_on], 0, None)
            events = events[going_on:]
        if events:
            yield from self._walk(events)

    def end(self) -> None:
        """Raise EngineUnavailable unless the stream came to its own end."""
        if not self.done:
            raise EngineUnavailable("the vLLM server ended its answer in the middle")

    def _walk(self, events: bytes) -> Iterator[Delta]:
        lines = (event.strip(b"\n") for event in events.split(b"\n\n"))
        for (index, ends), run in groupby((line for line in lines if line and line[:1] != b":"), key=_kind):
            if index is None:
                self._take_end(run)
            else:
                written = b"".join([event + b"\n\n" for event in run])
                yield self._delta(written, index, _finish_reason(written) if ends else None)

    def _delta(self, events: bytes, index: int, reason: FinishReason | None) -> Delta:
        if index not in self._unfinished:
            raise EngineUnavailable(f"the vLLM server wrote to choice {index}, which had ended or was not asked for")
        if reason is not None:
            self._unfinished.discard(index)
        first = self._splicer.prompt_ids is None
        ids, raw = self._splicer.splice(events)
        prompt_ids = self._splicer.prompt_ids if first else None
        return Delta(token_ids=ids, finish_reason=reason, index=index, prompt_ids=prompt_ids, raw=raw)

    def _take_end(self, events: Iterator[bytes]) -> None:
        for event in events:
            said = event.removeprefix(b"data: ")
            if said == b"[DONE]":
                if self._unfinished:
                    raise EngineUnavailable("the vLLM server ended its answer before every choice had ended")
                self._splicer.check(self._usage)
                self.done = True
            elif usage := _USAGE.search(said):
                self._usage = usage[1]
            else:
                raise self._error(said)

    def _error(self, said: bytes) -> EngineError:
        """What an event says that is an error. Once there is an answer, it is nobody's fault but the engine's."""
        error = Refusal.read(500, said).as_error(adapter=self._adapter, context_tokens=self._context_tokens)
        started = self._splicer.prompt_ids is not None
        return EngineUnavailable(str(error)) if started and not isinstance(error, EngineUnavailable) else error


def whole(body: bytes, splicer: Splicer, *, choices: int) -> list[Delta]:
    """An answer that came as one object: a delta for each choice, the last of them with the object.

    Raises EngineUnavailable when it is no such answer.
    """
    usage = _USAGE.search(body)
    if usage is None:
        raise EngineUnavailable("the vLLM server wrote something else than an answer")
    written = body[: usage.start()] + body[usage.end() :]
    ids, raw = splicer.splice(written)
    splicer.check(usage[1])
    if choices == 1:
        return [Delta(token_ids=ids, finish_reason=_finish_reason(raw), prompt_ids=splicer.prompt_ids, raw=raw)]
    return [
        Delta(
            token_ids=said,
            finish_reason=reason,
            index=index,
            prompt_ids=splicer.prompt_ids if index == 0 else None,
            raw=raw if index == choices - 1 else None,
        )
        for index, (said, reason) in enumerate(_choices(written, choices))
    ]


def _choices(body: bytes, choices: int) -> list[tuple[tuple[int, ...], FinishReason]]:
    """The ids and the ending of each choice, in order."""
    try:
        found = sorted(orjson.loads(body)["choices"], key=lambda choice: choice["index"])
        if [choice["index"] for choice in found] == list(range(choices)):
            return [(tuple(choice["token_ids"]), _FINISH_REASONS[choice["finish_reason"].encode()]) for choice in found]
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        pass
    raise EngineUnavailable(f"the vLLM server was asked for {choices} choices, and wrote something else")


def _kind(event: bytes) -> tuple[int | None, bool]:
    """Which choice an event is about, None where it is about none; and whether that choice ends with it."""
    found = _INDEX.search(event)
    return (None, False) if found is None else (int(found[1]), _UNFINISHED not in event)


def _finish_reason(raw: bytes) -> FinishReason:
    """How a choice ended. Raises EngineUnavailable on an ending that is none of OpenAI's, such as `abort`."""
    found = _FINISH_REASON.search(raw)
    reason = _FINISH_REASONS.get(found[1]) if found else None
    if reason is None:
        raise EngineUnavailable(f"the vLLM server ended an answer with {found[1].decode() if found else 'no reason'}")
    return reason


def _model(name: str) -> bytes:
    return b'"model":' + orjson.dumps(name)


def _numbers(lists: list[bytes | None]) -> tuple[int, ...]:
    """The numbers in pieces of lists; an absent list is an empty one."""
    try:
        return tuple(orjson.loads(b"[%b]" % b",".join([numbers for numbers in lists if numbers])))
    except orjson.JSONDecodeError:
        raise EngineUnavailable("the vLLM server wrote token ids that are no numbers") from None
