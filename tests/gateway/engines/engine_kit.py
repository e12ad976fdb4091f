"""Asking an engine, and the textbook's way to check what it says."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gateway.engines import AdapterFiles, Delta, Engine, GenerationRequest, SamplingParams, linear_shapes

from .adapter_kit import tensors, write

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gateway.engines.embedded import EmbeddedEngine

Answer = tuple[list[int], str, str | None]


def greedy(max_tokens: int, *, stop: tuple[str, ...] = ()) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, stop=stop)


async def generate(
    engine: Engine, prompt: Sequence[int], sampling: SamplingParams, adapter: str | None = None
) -> AsyncGenerator[Delta, None]:
    """What follows on the first delta, which says what was read."""
    asked = GenerationRequest(request_id="r", model="m", prompt=tuple(prompt), adapter=adapter, sampling=sampling)
    async with aclosing(engine.generate(asked)) as deltas:
        first = await anext(deltas)
        assert first == Delta(token_ids=(), text="", prompt_ids=tuple(prompt))
        async for delta in deltas:
            yield delta


async def answer(engine: Engine, prompt: Sequence[int], sampling: SamplingParams, adapter: str | None = None) -> Answer:
    deltas = [delta async for delta in generate(engine, prompt, sampling, adapter)]
    assert all(delta.finish_reason is None for delta in deltas[:-1])
    ids = [token_id for delta in deltas for token_id in delta.token_ids]
    return ids, "".join(delta.text for delta in deltas), deltas[-1].finish_reason


def random_adapter(path: Path, model_directory: Path, *, seed: int = 0, scale: float = 0.05) -> AdapterFiles:
    return AdapterFiles.read(write(path, tensors(linear_shapes(model_directory), seed=seed, scale=scale)))


@asynccontextmanager
async def loaded(engine: Engine, files: AdapterFiles) -> AsyncIterator[str]:
    await engine.load(files)
    try:
        yield files.name
    finally:
        await engine.unload(files.name)


def naive_logprobs(engine: EmbeddedEngine, prompt: list[int], ids: list[int]) -> NDArray[np.float64]:
    """The whole sequence at once: no cache, no batch, no tricks."""
    import torch  # noqa: PLC0415  takes seconds, and only this needs it

    model = engine._scheduler._model._model
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    chosen = logits.double().log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
    return np.asarray(chosen.numpy())
