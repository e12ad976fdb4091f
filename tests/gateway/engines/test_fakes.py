"""The engine for faults keeps the protocol's promises, or tests that use it would prove nothing."""

from __future__ import annotations

from contextlib import aclosing

import pytest

from gateway.engines import AdapterNotLoaded, Engine, EngineUnavailable, PromptTooLong
from gateway.grounding import Message

from ...fakes import FakeEngine, encode  # noqa: TID252  the tests are no package of their own
from .engine_kit import answer, generate, greedy


async def test_it_says_its_text_and_obeys_limits_and_stops() -> None:
    engine: Engine = FakeEngine(text="né à Paris.\n\nEnd")
    prompt = await engine.render([Message(role="user", content="Where?")])
    assert await answer(engine, prompt, greedy(99)) == (encode("né à Paris.\n\nEnd"), "né à Paris.\n\nEnd", "stop")
    assert await answer(engine, prompt, greedy(99, stop=("\n\n",))) == (encode("né à Paris."), "né à Paris.", "stop")
    assert await answer(engine, prompt, greedy(3)) == (encode("né"), "né", "length")
    with pytest.raises(PromptTooLong):
        await anext(generate(engine, [0] * 5000, greedy(1)))
    with pytest.raises(AdapterNotLoaded):
        await anext(generate(engine, prompt, greedy(1), "lora-0"))


async def test_it_fails_and_is_abandoned_on_the_record() -> None:
    engine = FakeEngine(text="abc", fail_after=2)
    async with aclosing(generate(engine, [0], greedy(9))) as stream:
        assert [(await anext(stream)).text, (await anext(stream)).text] == ["a", "b"]
        with pytest.raises(EngineUnavailable):
            await anext(stream)
    async with aclosing(generate(engine, [0], greedy(9))) as stream:
        await anext(stream)
    assert (engine.begun, engine.finished, engine.abandoned) == (2, 1, 1)
    assert (await engine.score([[0], [1]], [65, 66], adapter=None)).logprobs.tolist() == [[-1, -1], [-1, -1]]
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await engine.score([[0]], [65], adapter=None)
