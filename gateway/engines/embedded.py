"""The embedded engine: transformers and peft in this process, on one thread. Importing this module imports torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gateway.engines.adapters import AdapterFiles, linear_shapes
from gateway.engines.base import (
    AdapterNotLoaded,
    Delta,
    EngineError,
    EngineRefused,
    GenerationRequest,
    Health,
    PromptTooLong,
    SamplingParams,
    Scores,
)
from gateway.engines.generation import Generation
from gateway.engines.language_model import Dtype, LanguageModel
from gateway.engines.scheduler import LoadTask, Scheduler, ScoreTask, UnloadTask
from gateway.engines.tokenizer import ChatTokenizer
from gateway.engines.weights import BASE_MODEL, model_digest
from gateway.grounding import Message

# Rounding differs with the shape of the forward passes that an answer is scored in. Measured on SmolLM2-135M, where 32
# prompts' answers of 17 to 38 tokens were scored alone and with shared beginnings: a standard deviation of 6e-6 nats in
# fp32 and 0.14 in bf16. For fp32 the tolerance of an audit is declared, for an audit crosses machines.
_NOISE_NATS: Mapping[Dtype, float] = {"fp32": 1e-3, "bf16": 0.2}

# What a new adapter must change the expectation of; any ordinary text does.
_PROBE = "Which river runs through the capital of France? The Seine runs through Paris, the capital of France."


class EmbeddedEngine:
    """One base model and its adapters in this process."""

    name = "embedded"
    options: frozenset[str] = frozenset()

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: ChatTokenizer,
        *,
        base_model: str,
        base_digest: str,
        base_shapes: Mapping[str, tuple[int, int]],
        dtype: Dtype,
        context_tokens: int,
        max_generating: int,
        threads: int | None,
    ) -> None:
        self.version = " ".join(f"{package}/{version(package)}" for package in ("transformers", "peft", "torch"))
        self.dtype = dtype
        self.base_model = base_model
        self.base_digest = base_digest
        self.context_tokens = min(context_tokens, model.max_context_tokens)
        self.noise_nats = _NOISE_NATS[dtype]
        self._base_shapes = base_shapes
        self._vocabulary = model.vocabulary_size
        self._tokenizer = tokenizer
        self._scheduler = Scheduler(model, max_generating=max_generating, threads=threads)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        base_model: str = BASE_MODEL,
        dtype: Dtype = "fp32",
        device: str = "cpu",
        context_tokens: int = 2048,
        max_generating: int = 8,
        threads: int | None = None,
    ) -> EmbeddedEngine:
        """Load a model's folder and start the engine's thread; takes seconds, so not on an event loop.

        context_tokens: most tokens of a prompt and its answer together, within what the model was trained for.
        max_generating: answers that advance at once, the others wait. threads: CPU threads, all of them by default.
        """
        return cls(
            LanguageModel(directory, dtype=dtype, device=device),
            ChatTokenizer(directory),
            base_model=base_model,
            base_digest=model_digest(directory),
            base_shapes=linear_shapes(directory),
            dtype=dtype,
            context_tokens=context_tokens,
            max_generating=max_generating,
            threads=threads,
        )

    async def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """See Engine.render. What a message says stays text: control tokens spelt out in it lose their power."""
        if tools:
            raise EngineRefused("the embedded engine calls no tools", "tools")
        return await asyncio.to_thread(self._tokenizer.render, messages)

    async def tokenize(self, text: str) -> list[int]:
        """See Engine.tokenize."""
        return await asyncio.to_thread(self._tokenizer.encode, text)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """See Engine.generate. The token that ends a turn is not among an answer's."""
        prompt: Sequence[int]
        if request.messages is not None:
            prompt = await self.render(request.messages, request.tools)
        else:
            prompt = await self.tokenize(request.prompt) if isinstance(request.prompt, str) else request.prompt or ()
        try:
            self._check(prompt, request.adapter)
        except ValueError as error:
            raise EngineRefused(str(error), "prompt") from None
        room = self.context_tokens - len(prompt)
        if room < 1:
            raise PromptTooLong(tokens=len(prompt), limit_tokens=self.context_tokens - 1)
        yield Delta(token_ids=(), text="", prompt_ids=tuple(prompt))
        sampling = replace(request.sampling, max_tokens=min(request.sampling.max_tokens, room))
        async with aclosing(self._stream(prompt, request.adapter, sampling)) as deltas:
            async for delta in deltas:
                yield delta

    async def _stream(
        self, prompt: Sequence[int], adapter: str | None, sampling: SamplingParams
    ) -> AsyncGenerator[Delta, None]:
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[Delta | EngineError] = asyncio.Queue()

        def emit(item: Delta | EngineError) -> None:
            try:
                loop.call_soon_threadsafe(deltas.put_nowait, item)
            except RuntimeError:  # the loop has ended, and with it whoever listened
                generation.cancelled = True

        generation = Generation(
            prompt=prompt,
            adapter=adapter,
            sampling=sampling,
            end_ids=self._tokenizer.end_ids,
            decode=self._tokenizer.decode,
            emit=emit,
        )
        self._scheduler.submit(generation)
        try:
            while True:
                item = await deltas.get()
                if isinstance(item, EngineError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            generation.cancelled = True

    async def score(self, prompts: Sequence[Sequence[int]], answer: Sequence[int], *, adapter: str | None) -> Scores:
        """See Engine.score. Prompts that begin alike share the work on what they share."""
        self._check(answer, adapter)
        for prompt in prompts:
            self._check(prompt, adapter)
            if len(prompt) + len(answer) > self.context_tokens:
                raise PromptTooLong(tokens=len(prompt), limit_tokens=self.context_tokens - len(answer))
        task = ScoreTask(prompts=prompts, answer=answer, adapter=adapter)
        self._scheduler.submit(task)
        return await asyncio.wrap_future(task.future)

    async def load(self, adapter: AdapterFiles) -> None:
        """See Engine.load."""
        adapter.check_fits(base_model=self.base_model, base_shapes=self._base_shapes)
        weights = await asyncio.to_thread(adapter.read_weights)
        task = LoadTask(adapter=adapter, weights=weights, probe=self._tokenizer.encode(_PROBE))
        self._scheduler.submit(task)
        await asyncio.wrap_future(task.future)

    async def unload(self, name: str) -> None:
        """See Engine.unload."""
        task = UnloadTask(name=name)
        self._scheduler.submit(task)
        await asyncio.wrap_future(task.future)

    def resident(self) -> frozenset[str]:
        """See Engine.resident."""
        return self._scheduler.resident

    async def health(self) -> Health:
        """See Engine.health."""
        scheduler = self._scheduler
        return Health(
            ready=scheduler.open,
            generating=scheduler.generating,
            waiting=scheduler.waiting,
            scoring=scheduler.scoring,
        )

    async def close(self) -> None:
        """See Engine.close."""
        await asyncio.to_thread(self._scheduler.close)

    def _check(self, ids: Sequence[int], adapter: str | None) -> None:
        if not ids:
            raise ValueError("a prompt and an answer hold at least one token")
        if not 0 <= min(ids) <= max(ids) < self._vocabulary:
            raise ValueError(f"token ids of {self.base_model} run from 0 to {self._vocabulary - 1}")
        if adapter is not None and adapter not in self.resident():
            raise AdapterNotLoaded(adapter)
