"""One exchange in flight: what a caller asked, and the answer as it grows."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from types import TracebackType
from typing import Any, Literal, Self

import orjson

from gateway.answers import GroundedPassage, SealedInputs
from gateway.catalogue import ServedModel
from gateway.engines import Delta, EngineUnavailable, FinishReason, SamplingParams
from gateway.fairness import Priority
from gateway.grounding import Message
from gateway.idempotency import Claim
from gateway.routing.names import Resolved
from metering import Intent, Usage

# Of several choices that ended differently, the usage names the reason that its reader should know of.
_GRAVEST_FIRST: tuple[FinishReason, ...] = ("content_filter", "length", "tool_calls", "stop")


class TookTooLongError(EngineUnavailable):
    """The work for a request was not done when it had to be."""


class within:  # noqa: N801 - used as a function is
    """Stop what is done inside at a time of the running loop's clock, which may be moved; raises TookTooLongError then.

    limit: the setting that the time comes from.
    """

    def __init__(self, deadline_s: float, limit: str = "answer_s") -> None:
        self._timeout = asyncio.timeout_at(deadline_s)
        self._limit = limit

    async def __aenter__(self) -> asyncio.Timeout:
        return await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            why = f"the engine did not do the work in the time that [limits] {self._limit} allows"
            raise TookTooLongError(why) from None


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a caller asks: a conversation, or a raw prompt to continue; exactly one of the two.

    resolved: how its model was found, and for which request id; None where nobody named one. corpora, top_k: where to
    look for how many passages; a raw prompt is never grounded. prompt, tools, options: see GenerationRequest. stream:
    the answer is wanted as events.
    """

    model: ServedModel
    resolved: Resolved | None = None
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    corpora: tuple[str, ...] = ()
    top_k: int = 0
    sampling: SamplingParams
    tools: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    mode: Literal["async", "inline"] = "async"

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("a question is a conversation or a prompt")

    @property
    def n_choices(self) -> int:
        """How many answers to it are wanted."""
        return int(self.options.get("n") or 1)

    @property
    def asked(self) -> str | None:
        """What retrieval searches for: the last user message."""
        return last_user_message(self.messages or ())


def last_user_message(messages: Sequence[Message]) -> str | None:
    """What a conversation asks for: the content of the last message of the role `user`."""
    return next((m.content for m in reversed(messages) if m.role == "user"), None)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What an answer says to its client. model: the served model. created_s: whole seconds since 1970.

    text: of the first choice. raw: all choices as the engine itself wrote them, for an engine that does. unfinished:
    the choices that it did not end; finish_reason says what did.
    """

    model: str
    created_s: int
    text: str
    finish_reason: str
    raw: bytes | None = None
    unfinished: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """As JSON."""
        fields = asdict(self)
        if self.raw is not None:
            fields["raw"] = self.raw.decode()  # JSON is UTF-8
        return orjson.dumps(fields)

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """The inverse of encode. What was kept by a version before 0.2 has no raw."""
        fields = orjson.loads(encoded)
        raw = fields.get("raw")
        restored = {
            "raw": None if raw is None else raw.encode(),
            "unfinished": tuple(fields.get("unfinished", ())),
        }
        return cls(**fields | restored)


@dataclass(kw_only=True, eq=False, slots=True)
class Choice:
    """One of the answers to a question, as far as it has come."""

    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None


@dataclass(kw_only=True, eq=False)
class Answer:
    """One answer on its way. Read `deltas` to their end, or `abandon` it: either way what was generated is charged.

    claim: the idempotency key that it is given under. started_s: when it was asked for, on the monotonic clock, and
    created_s by the calendar. first_token_s, last_token_s: seconds from then. first_deadline_s, deadline_s: when it
    must have begun and ended, on the loop's clock. raws: what the engine wrote, where it is needed again. cut: why the
    gateway ended it before the engine did. attribution: the attribution object, once metered.
    """

    request_id: str
    caller: str
    question: Question
    priority: Priority = "normal"
    intent: Intent
    passages: tuple[GroundedPassage, ...]
    prompt_ids: tuple[int, ...] = ()
    claim: Claim | None = None
    choices: list[Choice] = field(init=False)
    raws: list[bytes] = field(default_factory=list)
    cut: Literal["length", "cancelled"] | None = None
    attribution: dict[str, Any] = field(default_factory=dict)
    started_s: float
    created_s: int = field(default_factory=lambda: int(time.time()))
    first_deadline_s: float
    deadline_s: float
    first_token_s: float | None = None
    last_token_s: float | None = None
    abandoned: bool = False
    _untaken: deque[Delta] = field(default_factory=deque)
    _end: list[Exception | None] = field(default_factory=list)  # one value once it has ended: what ended it early
    _reader: asyncio.Future[None] | None = None

    def __post_init__(self) -> None:
        self.choices = [Choice() for _ in range(self.question.n_choices)]
        # Of a stream, what the client has is not needed again, unless it may ask again.
        self._keeps_raw = self.claim is not None or not self.question.stream

    @property
    def owes_early_token(self) -> bool:
        """Whether it must begin earlier than it must end."""
        return self.first_deadline_s < self.deadline_s

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The token ids of every choice so far, one after another."""
        return tuple(chain.from_iterable(choice.ids for choice in self.choices))

    @property
    def usage(self) -> Usage:
        """Tokens read and emitted so far."""
        emitted = sum(len(choice.ids) for choice in self.choices)
        return Usage(prompt_tokens=len(self.prompt_ids), completion_tokens=emitted)

    @property
    def unfinished(self) -> tuple[int, ...]:
        """The choices that the engine has not ended."""
        return tuple(index for index, choice in enumerate(self.choices) if choice.finish_reason is None)

    @property
    def finish_reason(self) -> str:
        """Why it ended: as the engine says once it has ended every choice, else what cut it short."""
        reasons = {choice.finish_reason for choice in self.choices}
        if None in reasons:
            return self.cut or "error"
        return next(reason for reason in _GRAVEST_FIRST if reason in reasons)

    @property
    def said(self) -> Said:
        """What it says so far."""
        return Said(
            model=self.question.model.name,
            created_s=self.created_s,
            text="".join(self.choices[0].texts),
            finish_reason=self.finish_reason,
            raw=b"".join(self.raws) if self.raws else None,
            unfinished=self.unfinished,
        )

    def sealed(self) -> SealedInputs:
        """What attribution will need of it."""
        terms = self.question.model.terms
        return SealedInputs(
            instruction=self.question.model.instruction,
            policy_index=terms.policy_index,
            adapter_index=terms.adapter_index,
            messages=self.question.messages,
            prompt_ids=self.prompt_ids,
            passages=self.passages,
            choices=tuple(tuple(choice.ids) for choice in self.choices),
            tools=self.question.tools,
        )

    async def deltas(self) -> AsyncIterator[Delta]:
        """The answer as it is generated. Ends only after the usage is committed; raises what ended it early.

        One reader at a time may wait, here or for what follows.
        """
        while await self._more():
            while self._untaken:
                yield self._untaken.popleft()

    async def pieces(self) -> AsyncIterator[Sequence[Delta]]:
        """The same, with what came at once in one piece, so that it costs its client one write."""
        while await self._more():
            piece = tuple(self._untaken)
            self._untaken.clear()
            yield piece

    async def finished(self) -> None:
        """Wait for the end of an answer that is not wanted before; raises what ended it early."""
        while not self._end:
            await self._woken()
        if self._end[0] is not None:
            raise self._end[0]

    async def _more(self) -> bool:
        """Wait for a delta or the end."""
        while not (self._untaken or self._end):
            await self._woken()
        if not self._untaken and self._end[0] is not None:
            raise self._end[0]
        return bool(self._untaken)

    async def _woken(self) -> None:
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def abandon(self) -> None:
        """Stop generating: the client is gone. Harmless once the answer is complete."""
        self.abandoned = True

    def take(self, delta: Delta) -> None:
        """Keep a delta and hand it to the client. Raises EngineUnavailable on a choice that nobody asked for."""
        if not 0 <= delta.index < len(self.choices):
            raise EngineUnavailable(f"the engine gave a choice {delta.index} of {len(self.choices)}")
        if delta.token_ids:
            self.last_token_s = time.monotonic() - self.started_s
            self.first_token_s = self.first_token_s or self.last_token_s
        if delta.prompt_ids is not None:
            self.prompt_ids = delta.prompt_ids
        choice = self.choices[delta.index]
        choice.ids.extend(delta.token_ids)
        choice.texts.append(delta.text)
        choice.finish_reason = delta.finish_reason or choice.finish_reason
        if delta.raw is not None and self._keeps_raw:
            self.raws.append(delta.raw)
        self._untaken.append(delta)
        self._wake()

    def end(self, failure: Exception | None) -> None:
        """Let the client's last byte go, or tell it what went wrong."""
        self._end.append(failure)
        self._wake()


async def up_to_first_token(pieces: AsyncIterator[Sequence[Delta]]) -> list[Delta]:
    """The first deltas of an answer. Nothing is sent before them, so that a failure gets a status of its own."""
    found: list[Delta] = []
    async for piece in pieces:
        found += piece
        if any(delta.token_ids or delta.finish_reason is not None for delta in piece):
            break
    return found
