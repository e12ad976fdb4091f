"""The order of work, and what happens when it ends early or fails; on a model small enough for both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest

from gateway.engines import AdapterNotLoaded, Engine, EngineRefused, EngineUnavailable, SamplingParams

from .engine_kit import answer, generate, greedy, loaded, naive_logprobs, random_adapter

if TYPE_CHECKING:
    from gateway.engines.embedded import EmbeddedEngine

pytestmark = pytest.mark.model


def prompt_of(tokens: int, seed: int = 0) -> list[int]:
    return [int(token_id) for token_id in np.random.default_rng(seed).integers(17, 49152, tokens)]


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_answers_of_any_length_are_the_same_in_company_as_alone(tiny: EmbeddedEngine) -> None:
    asked = [
        (prompt_of(tokens, seed=tokens), greedy(most))
        for tokens, most in [(3, 9), (300, 4), (600, 12), (1, 7), (40, 1)]
    ]
    alone = [await answer(tiny, prompt, sampling) for prompt, sampling in asked]
    together = await asyncio.gather(*(answer(tiny, prompt, sampling) for prompt, sampling in asked))
    assert together == alone
    assert len({tuple(ids) for ids, _, _ in alone}) == len(alone)


async def test_adapters_advance_side_by_side_each_with_its_own_weights(
    tiny: EmbeddedEngine, tiny_directory: Path, tmp_path: Path
) -> None:
    files = [random_adapter(tmp_path / str(seed), tiny_directory, seed=seed, scale=1) for seed in (1, 2)]
    async with loaded(tiny, files[0]) as one, loaded(tiny, files[1]) as two:
        adapters = (None, one, two, one)
        alone = [await answer(tiny, prompt_of(9), greedy(20), adapter) for adapter in adapters]
        together = await asyncio.gather(*(answer(tiny, prompt_of(9), greedy(20), adapter) for adapter in adapters))
    assert together == alone
    assert len({tuple(ids) for ids, _, _ in alone}) == 3


async def test_a_seed_repeats_the_answer(tiny: EmbeddedEngine) -> None:
    first, again, other, unseeded = [
        await answer(tiny, prompt_of(9), SamplingParams(max_tokens=9, seed=seed)) for seed in (7, 7, -8, None)
    ]
    assert first == again
    assert len({tuple(ids) for ids, _, _ in (first, other, unseeded)}) == 3
    nearly_greedy = [
        SamplingParams(max_tokens=9, top_p=1e-9, seed=7),
        SamplingParams(max_tokens=9, temperature=1e-300, seed=7),
    ]
    for sampling in nearly_greedy:
        assert await answer(tiny, prompt_of(9), sampling) == await answer(tiny, prompt_of(9), greedy(9))


async def test_a_long_prompt_is_read_in_pieces_to_the_same_end(tiny: EmbeddedEngine) -> None:
    prompts = [prompt_of(700), prompt_of(700)[:600] + prompt_of(90, seed=1), prompt_of(700), prompt_of(2)]
    for ids in (prompt_of(5, seed=2), prompt_of(300, seed=3)):
        scores = await tiny.score(prompts, ids, adapter=None)
        for prompt, row in zip(prompts, scores.logprobs, strict=True):
            assert np.abs(row - naive_logprobs(tiny, prompt, ids)).max() < 1e-4
        # The trie of the prompts has 700 + 90 nodes; a repeated prompt costs its last token again.
        assert scores.tokens_processed == 700 + 90 + 1 + len(prompts) * (len(ids) - 1)


async def test_beyond_what_advances_at_once_callers_wait_their_turn(tiny: EmbeddedEngine) -> None:
    async with aclosing(generate(tiny, prompt_of(9), greedy(2000))) as first:
        await anext(first)
        async with aclosing(generate(tiny, prompt_of(8), greedy(2000))) as second:
            await anext(second)
            third = asyncio.create_task(answer(tiny, prompt_of(7), greedy(2)))
            await eventually(lambda: tiny._scheduler.waiting == 1)
            assert (await tiny.health()).generating == 2
        assert (await third)[2] is not None


async def test_who_leaves_while_waiting_costs_nothing(tiny: EmbeddedEngine) -> None:
    async with aclosing(generate(tiny, prompt_of(9), greedy(2000))) as stream:
        await anext(stream)
        scoring = asyncio.create_task(tiny.score([prompt_of(2000)] * 50, [17], adapter=None))
        await eventually(lambda: tiny._scheduler.scoring == 1)
        scoring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scoring
    await eventually(lambda: (tiny._scheduler.scoring, tiny._scheduler.generating) == (0, 0))


async def test_an_adapter_leaves_when_its_work_has_ended(
    tiny: EmbeddedEngine, tiny_directory: Path, tmp_path: Path
) -> None:
    files = random_adapter(tmp_path, tiny_directory, scale=1)
    await tiny.load(files)
    await tiny.load(files)
    async with aclosing(generate(tiny, prompt_of(9), greedy(2000), files.name)) as stream:
        await anext(stream)
        leaving = asyncio.create_task(tiny.unload(files.name))
        await eventually(lambda: not tiny.resident())
        with pytest.raises(AdapterNotLoaded):
            await anext(generate(tiny, prompt_of(9), greedy(1), files.name))
        assert (await anext(stream)).token_ids
        assert not leaving.done()
        # Wanted again before it was gone, it stays.
        await tiny.load(files)
        await leaving
        assert tiny.resident() == {files.name}
        leaving = asyncio.create_task(tiny.unload(files.name))
        await eventually(lambda: not tiny.resident())
    await leaving
    with pytest.raises(AdapterNotLoaded):
        await tiny.unload(files.name)
    with pytest.raises(AdapterNotLoaded):
        await tiny.score([[17]], [17], adapter=files.name)
    async with loaded(tiny, files):
        pass


async def test_a_failure_ends_the_work_at_hand_and_no_more(
    tiny: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = prompt_of(9)
    before = await answer(tiny, prompt, greedy(3))

    def fail(*_arguments: object, **_named: object) -> NoReturn:
        raise RuntimeError("out of memory")

    stream = generate(tiny, prompt, greedy(2000))
    await anext(stream)
    with monkeypatch.context() as broken:
        broken.setattr(tiny._scheduler._model._model, "forward", fail)
        for doing in (anext_forever(stream), answer(tiny, prompt, greedy(3)), tiny.score([prompt], [17], adapter=None)):
            with pytest.raises(EngineUnavailable, match="out of memory"):
                await doing
    assert await answer(tiny, prompt, greedy(3)) == before


async def anext_forever(stream: object) -> None:
    async for _ in stream:  # type: ignore[attr-defined]
        pass


async def test_closing_fails_what_is_unfinished_and_what_comes_after(tiny_directory: Path) -> None:
    from gateway.engines.embedded import EmbeddedEngine  # noqa: PLC0415

    engine: Engine = EmbeddedEngine.open(tiny_directory, max_generating=1)
    running = generate(engine, prompt_of(9), greedy(2000))
    await anext(running)
    waiting = asyncio.create_task(answer(engine, prompt_of(9), greedy(1)))
    scoring = asyncio.create_task(engine.score([prompt_of(9)], [17], adapter=None))
    await asyncio.sleep(0)
    await engine.close()
    late = answer(engine, prompt_of(9), greedy(1))
    for doing in (anext_forever(running), waiting, scoring, late, engine.score([[17]], [17], adapter=None)):
        with pytest.raises(EngineUnavailable, match="closed"):
            await doing
    assert not (await engine.health()).ready
    await engine.close()


@pytest.mark.parametrize("ids", [[], [-1], [49152]])
async def test_ids_that_are_no_tokens_are_refused(tiny: EmbeddedEngine, ids: list[int]) -> None:
    with pytest.raises(EngineRefused, match="token"):
        await anext(generate(tiny, ids, greedy(1)))
    with pytest.raises(ValueError, match="token"):
        await tiny.score([[17]], ids, adapter=None)
    with pytest.raises(ValueError, match="token"):
        await tiny.score([[17], ids], [17], adapter=None)


def test_a_model_without_full_attention_is_refused(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM  # noqa: PLC0415

    from gateway.engines.language_model import LanguageModel  # noqa: PLC0415

    config = MistralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sliding-window"):
        LanguageModel(tmp_path, dtype="fp32", device="cpu")
