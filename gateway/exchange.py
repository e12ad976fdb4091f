"""One exchange in flight: what a caller asked, and the answer as it grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.answers import GroundedPassage, SealedInputs
from gateway.catalogue import ServedModel
from gateway.engines import Delta, SamplingParams
from gateway.grounding import Message
from metering import Intent, Usage


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a caller asks: a conversation, or a raw prompt to continue; exactly one of the two.

    corpora, top_k: where to look for how many passages; a raw prompt is never grounded.
    """

    model: ServedModel
    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    corpora: tuple[str, ...] = ()
    top_k: int = 0
    sampling: SamplingParams
    mode: Literal["async", "inline"] = "async"

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("a question is a conversation or a prompt")

    @property
    def asked(self) -> str | None:
        """What retrieval searches for: the last user message."""
        return next((m.content for m in reversed(self.messages or ()) if m.role == "user"), None)


@dataclass(kw_only=True, eq=False)
class Answer:
    """One answer on its way. Read `deltas` to their end, or `abandon` it: either way what was generated is charged.

    started_s: when it was asked for, on the monotonic clock. first_token_s, last_token_s: seconds from then.
    attribution: the attribution object, once metered.
    """

    request_id: str
    caller: str
    question: Question
    intent: Intent
    passages: tuple[GroundedPassage, ...]
    prompt_ids: list[int]
    answer_ids: list[int] = field(default_factory=list)
    finish_reason: str = "error"
    attribution: dict[str, Any] = field(default_factory=dict)
    started_s: float
    first_token_s: float | None = None
    last_token_s: float | None = None
    abandoned: bool = False
    _deltas: asyncio.Queue[Delta | Exception | None] = field(default_factory=asyncio.Queue)

    @property
    def usage(self) -> Usage:
        """Tokens read and emitted so far."""
        return Usage(prompt_tokens=len(self.prompt_ids), completion_tokens=len(self.answer_ids))

    def sealed(self) -> SealedInputs:
        """What attribution will need of it."""
        terms = self.question.model.terms
        return SealedInputs(
            instruction=self.question.model.instruction,
            policy_index=terms.policy_index,
            adapter_index=terms.adapter_index,
            messages=self.question.messages,
            prompt_ids=tuple(self.prompt_ids),
            passages=self.passages,
            answer_ids=tuple(self.answer_ids),
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
        self.last_token_s = time.monotonic() - self.started_s
        if self.first_token_s is None:
            self.first_token_s = self.last_token_s
        self.answer_ids.extend(delta.token_ids)
        self.finish_reason = delta.finish_reason or "error"
        self._deltas.put_nowait(delta)

    def end(self, failure: Exception | None) -> None:
        """Let the client's last byte go, or tell it what went wrong."""
        self._deltas.put_nowait(failure)
