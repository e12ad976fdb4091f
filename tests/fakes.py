"""An engine that does as it is told: for faults and load, beside the real one. Its tokens are bytes of UTF-8."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gateway.engines import (
    AdapterFiles,
    AdapterNotLoaded,
    AdapterRejected,
    Delta,
    EngineUnavailable,
    GenerationRequest,
    Health,
    PromptTooLong,
    SamplingParams,
    Scores,
)
from gateway.engines.tokenstream import TokenStream
from gateway.grounding import Message


def encode(text: str) -> list[int]:
    return list(text.encode())


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode(errors="replace")


def ignorance(_prompt: str, answer: str) -> Sequence[float]:
    """Score every answer alike after every prompt: one nat a token."""
    return [-1.0] * len(encode(answer))


@dataclass(kw_only=True)
class FakeEngine:
    """Says `text` a byte at a time, each after `delay_s`.

    After `fail_after` tokens of an answer, or on any call while `down`, it raises EngineUnavailable. score_as: log p in
    nats of each byte of an answer after a prompt. reject: the reason to reject every adapter for. What was asked of
    it stays in `prompts`; `begun`, `finished` and `abandoned` count answers.
    """

    text: str = "Yes."
    delay_s: float = 0.0
    fail_after: int | None = None
    down: bool = False
    score_as: Callable[[str, str], Sequence[float]] = ignorance
    reject: str | None = None

    name: str = "fake"
    version: str = "1"
    dtype: str = "fp32"
    base_model: str = "fake-base"
    base_digest: str = "0" * 64
    context_tokens: int = 4096
    noise_nats: float = 1e-3
    options: frozenset[str] = frozenset()

    prompts: list[str] = field(default_factory=list)
    begun: int = 0
    finished: int = 0
    abandoned: int = 0
    _resident: set[str] = field(default_factory=set)

    async def render(self, messages: Sequence[Message], _tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        return encode("".join(f"{message.role}: {message.content}\n" for message in messages) + "assistant: ")

    async def tokenize(self, text: str) -> list[int]:
        return encode(text)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        self._check(request.adapter)
        prompt: Sequence[int]
        if request.messages is not None:
            prompt = await self.render(request.messages, request.tools)
        else:
            prompt = await self.tokenize(request.prompt) if isinstance(request.prompt, str) else request.prompt or ()
        room = self.context_tokens - len(prompt)
        if room < 1:
            raise PromptTooLong(tokens=len(prompt), limit_tokens=self.context_tokens - 1)
        yield Delta(token_ids=(), text="", prompt_ids=tuple(prompt))
        sampling = request.sampling
        async with aclosing(self._stream(prompt, sampling, min(room, sampling.max_tokens))) as deltas:
            async for delta in deltas:
                yield delta

    async def _stream(
        self, prompt: Sequence[int], sampling: SamplingParams, max_tokens: int
    ) -> AsyncGenerator[Delta, None]:
        self.prompts.append(decode(prompt))
        self.begun += 1
        ended = False
        try:
            stream = TokenStream(decode, sampling.stop)
            ids = encode(self.text)
            for said, token_id in enumerate(ids[:max_tokens]):
                await asyncio.sleep(self.delay_s)
                if self.down or said == self.fail_after:
                    ended = True
                    raise EngineUnavailable(f"told to fail after {said} tokens")
                released, text = stream.push(token_id)
                if stream.stopped:
                    ended = True
                    yield Delta(token_ids=released, text=text, finish_reason="stop")
                    return
                if released:
                    yield Delta(token_ids=released, text=text)
            released, text = stream.finish()
            ended = True
            yield Delta(token_ids=released, text=text, finish_reason="stop" if len(ids) <= max_tokens else "length")
        finally:
            self.finished += ended
            self.abandoned += not ended

    async def score(self, prompts: Sequence[Sequence[int]], answer: Sequence[int], *, adapter: str | None) -> Scores:
        self._check(adapter)
        await asyncio.sleep(self.delay_s)
        rows = [self.score_as(decode(prompt), decode(answer)) for prompt in prompts]
        processed = sum(len(prompt) + len(answer) - 1 for prompt in prompts)
        return Scores(logprobs=np.array(rows, dtype=np.float64), tokens_processed=processed)

    async def load(self, adapter: AdapterFiles) -> None:
        self._check(None)
        await asyncio.sleep(self.delay_s)
        if self.reject is not None:
            raise AdapterRejected(self.reject)
        self._resident.add(adapter.name)

    async def unload(self, name: str) -> None:
        self._check(name)
        self._resident.remove(name)

    def resident(self) -> frozenset[str]:
        return frozenset(self._resident)

    async def health(self) -> Health:
        generating = self.begun - self.finished - self.abandoned
        return Health(ready=not self.down, generating=generating, waiting=0, scoring=0)

    async def close(self) -> None:
        self.down = True

    def _check(self, adapter: str | None) -> None:
        if self.down:
            raise EngineUnavailable("told to be down")
        if adapter is not None and adapter not in self._resident:
            raise AdapterNotLoaded(adapter)
