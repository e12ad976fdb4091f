"""One exchange in flight: what a caller asked, and the answer as it grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, Self

import orjson

from gateway.answers import GroundedPassage, SealedInputs
from gateway.catalogue import ServedModel
from gateway.engines import Delta, EngineUnavailable, SamplingParams
from gateway.fairness import Priority
from gateway.grounding import Message
from gateway.idempotency import Claim
from metering import Intent, Usage


class TookTooLongError(EngineUnavailable):
    """The work for a request was not done when it had to be."""


@asynccontextmanager
async def within(deadline_s: float) -> AsyncIterator[None]:
    """Stop what is done inside at a time of the running loop's clock; raises TookTooLongError then."""
    limit = asyncio.timeout_at(deadline_s)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise TookTooLongError("the engine did not do the work in the time that [limits] answer_s allows") from None


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a caller asks: a conversation, or a raw prompt to continue; exactly one of the two.

    corpora, top_k: where to look for how many passages; a raw prompt is never grounded. tools, options: see
    GenerationRequest. stream: the answer is wanted as events.
    """

    model: ServedModel
    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
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
    def most_tokens(self) -> int:
        """How many tokens all its answers together may have."""
        return self.sampling.max_tokens * int(self.options.get("n") or 1)

    @property
    def asked(self) -> str | None:
        """What retrieval searches for: the last user message."""
        return next((m.content for m in reversed(self.messages or ()) if m.role == "user"), None)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What an answer says to its client. model: as the client named it. created_s: whole seconds since 1970."""

    model: str
    created_s: int
    text: str
    finish_reason: str

    def encode(self) -> bytes:
        """As JSON."""
        return orjson.dumps(self)

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """The inverse of encode."""
        return cls(**orjson.loads(raw))


@dataclass(kw_only=True, eq=False)
class Answer:
    """One answer on its way. Read `deltas` to their end, or `abandon` it: either way what was generated is charged.

    claim: the idempotency key that it is given under. started_s: when it was asked for, on the monotonic clock, and
    created_s by the calendar. first_token_s, last_token_s: seconds from then. deadline_s: when it must have ended, on
    the loop's clock. attribution: the attribution object, once metered.
    """

    request_id: str
    caller: str
    question: Question
    priority: Priority = "normal"
    intent: Intent
    passages: tuple[GroundedPassage, ...]
    prompt_ids: tuple[int, ...] = ()
    claim: Claim | None = None
    choices: dict[int, list[int]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    finish_reason: str = "error"
    attribution: dict[str, Any] = field(default_factory=dict)
    started_s: float
    created_s: int = field(default_factory=lambda: int(time.time()))
    deadline_s: float
    first_token_s: float | None = None
    last_token_s: float | None = None
    abandoned: bool = False
    _deltas: asyncio.Queue[Delta | Exception | None] = field(default_factory=asyncio.Queue)

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The token ids of every choice so far, one after another."""
        return tuple(chain.from_iterable(ids for _, ids in sorted(self.choices.items())))

    @property
    def usage(self) -> Usage:
        """Tokens read and emitted so far."""
        return Usage(prompt_tokens=len(self.prompt_ids), completion_tokens=sum(map(len, self.choices.values())))

    @property
    def said(self) -> Said:
        """What it says so far."""
        return Said(
            model=self.question.model.name,
            created_s=self.created_s,
            text="".join(self.texts),
            finish_reason=self.finish_reason,
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
            choices=tuple(tuple(ids) for _, ids in sorted(self.choices.items())),
            tools=self.question.tools,
        )

    async def deltas(self) -> AsyncIterator[Delta]:
        """The answer as it is generated. Ends only after the usage is committed; raises what ended it early."""
        while (item := await self._deltas.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def abandon(self) -> None:
        """Stop generating: the client is gone. Harmless once the answer is complete."""
        self.abandoned = True

    def take(self, delta: Delta) -> None:
        """Keep a delta and hand it to the client."""
        if delta.token_ids:
            self.last_token_s = time.monotonic() - self.started_s
            self.first_token_s = self.first_token_s or self.last_token_s
        if delta.prompt_ids is not None:
            self.prompt_ids = delta.prompt_ids
        self.choices.setdefault(delta.index, []).extend(delta.token_ids)
        self.texts.append(delta.text)
        self.finish_reason = delta.finish_reason or self.finish_reason
        self._deltas.put_nowait(delta)

    def end(self, failure: Exception | None) -> None:
        """Let the client's last byte go, or tell it what went wrong."""
        self._deltas.put_nowait(failure)
