"""One engine over the stand-in, which fails as a real server cannot be made to. tests/vllm has the real one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.engines import (
    AdapterFiles,
    AdapterNotLoaded,
    AdapterRejected,
    Delta,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    PromptTooLong,
    SamplingParams,
)
from gateway.engines.vllm import VllmEngine
from gateway.grounding import Message
from tests.stand_in.kit import Server, stand_in

from ..adapter_kit import tensors, write  # noqa: TID252  the tests are no installed package

SHAPES = {f"model.layers.{n}.self_attn.{kind}_proj": (8, 8) for n in range(2) for kind in "qv"}


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with stand_in("--context", "512", "--chunks", "16") as server:
        yield server


async def opened(server: Server, **options: Any) -> VllmEngine:
    return await VllmEngine.open(
        server.url, **{"base_model": "smollm2-135m", "base_digest": "00" * 32, "silence_s": 0.5} | options
    )


@pytest.fixture
async def engine(server: Server) -> AsyncIterator[VllmEngine]:
    engine = await opened(server)
    yield engine
    await engine.close()


@pytest.fixture
def adapter(tmp_path: Path) -> AdapterFiles:
    return AdapterFiles.read(write(tmp_path / "adapter", tensors(SHAPES)))


def ask(**changed: Any) -> GenerationRequest:
    asked = GenerationRequest(
        request_id="req_7",
        model="guide",
        messages=(Message(role="user", content="Who cast the bell?"),),
        sampling=SamplingParams(max_tokens=100, temperature=0),
        stream=True,
    )
    return replace(asked, **changed)


async def answered(engine: VllmEngine, **changed: Any) -> list[Delta]:
    return [delta async for delta in engine.generate(ask(**changed))]


def text(deltas: list[Delta]) -> str:
    events = b"".join(delta.raw or b"" for delta in deltas).split(b"\n\n")[:-1]
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert {chunk["model"] for chunk in chunks} == {"guide"}
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-req_7"}
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


async def test_what_it_says_of_itself(engine: VllmEngine) -> None:
    assert (engine.name, engine.version, engine.context_tokens) == ("vllm", "vllm/0.32.0", 512)
    assert "tools" in engine.options
    assert "prompt_logprobs" not in engine.options
    assert (await engine.health()).ready


async def test_streamed_and_whole_it_is_the_same_answer(engine: VllmEngine) -> None:
    streamed = await answered(engine)
    (whole,) = await answered(engine, stream=False)
    assert streamed[0].prompt_ids == whole.prompt_ids == tuple(await engine.render(ask().messages or ()))
    assert tuple(i for delta in streamed for i in delta.token_ids) == whole.token_ids
    said = json.loads(whole.raw or b"")
    assert said["choices"][0]["message"]["content"] == text(streamed)
    assert "usage" not in said
    (again,) = await answered(engine, messages=None, prompt=whole.prompt_ids, stream=False)
    assert again.token_ids == whole.token_ids


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", ["error", "busy", "event", "cut", "hang", "stall"])
async def test_every_failure_is_the_engines_and_the_next_answer_is_well(
    server: Server, engine: VllmEngine, fault: Any, stream: bool
) -> None:
    await server.fail(fault)
    deltas: list[Delta] = []

    async def failing() -> None:
        async for delta in engine.generate(ask(stream=stream)):
            deltas.append(delta)  # noqa: PERF401  what came before the failure counts

    with pytest.raises(EngineUnavailable):
        await failing()
    if stream and fault in ("event", "cut", "stall"):
        assert deltas[0].prompt_ids
        assert all(delta.finish_reason is None for delta in deltas)
    else:
        assert deltas == []
    assert (await answered(engine))[-1].finish_reason is not None


async def test_a_dead_server_is_unavailable_and_not_ready(server: Server, engine: VllmEngine) -> None:
    await server.kill()
    with pytest.raises(EngineUnavailable, match="does not answer"):
        await answered(engine)
    with pytest.raises(EngineUnavailable):
        await engine.score([[1]], [2], adapter=None)
    assert not (await engine.health()).ready
    with pytest.raises(EngineUnavailable):
        await opened(server)


async def test_connections_are_kept(server: Server, engine: VllmEngine) -> None:
    for stream in (True, False) * 5:
        await answered(engine, stream=stream)
    # The engine's, and the one that asks.
    assert (await server.state())["connections"] == 2


async def test_a_connection_that_was_closed_meanwhile_is_not_an_error(server: Server, engine: VllmEngine) -> None:
    await answered(engine)
    await server.kill()
    await server.start()
    assert (await answered(engine))[-1].finish_reason is not None


async def test_who_leaves_early_stops_the_server(server: Server, engine: VllmEngine) -> None:
    await server.pace(chunk_ms=100)
    async with aclosing(engine.generate(ask())) as deltas:
        await anext(deltas)
        assert (await server.state())["active"][""] == 1
    async with asyncio.timeout(5):
        while (await server.state())["active"][""]:
            await asyncio.sleep(0.01)


async def test_closing_ends_what_is_under_way(server: Server, engine: VllmEngine) -> None:
    await server.pace(chunk_ms=100)
    deltas = engine.generate(ask())
    await anext(deltas)
    await engine.close()
    with pytest.raises(EngineUnavailable):
        [_ async for _ in deltas]
    with pytest.raises(EngineUnavailable):
        await answered(engine)
    await engine.close()


async def test_what_is_not_openais_is_not_passed_on(server: Server, engine: VllmEngine) -> None:
    with pytest.raises(EngineRefused):
        await answered(engine, options={"prompt_logprobs": 0})
    assert "/v1/chat/completions" not in (await server.state())["count"]


async def test_a_prompt_that_is_too_long_is_told_with_its_length(engine: VllmEngine) -> None:
    with pytest.raises(PromptTooLong) as caught:
        await answered(engine, messages=None, prompt=(5,) * 700)
    assert (caught.value.tokens, caught.value.limit_tokens) == (700, 511)
    with pytest.raises(PromptTooLong):
        await answered(engine, messages=None, prompt=(5,) * 512)
    with pytest.raises(PromptTooLong):
        await engine.score([[5] * 510], [1, 2, 3], adapter=None)


async def test_an_adapter_answers_in_its_own_way_until_it_is_unloaded(
    server: Server, engine: VllmEngine, adapter: AdapterFiles
) -> None:
    with pytest.raises(AdapterNotLoaded):
        await answered(engine, adapter=adapter.name)
    await asyncio.gather(*(engine.load(adapter) for _ in range(5)))
    assert (await server.state())["loads"] == [adapter.name]
    assert engine.resident() == {adapter.name}
    base, adapted = await answered(engine), await answered(engine, adapter=adapter.name)
    assert text(base) != text(adapted)
    await engine.unload(adapter.name)
    assert engine.resident() == frozenset()
    assert (await server.state())["adapters"] == {}
    with pytest.raises(AdapterNotLoaded):
        await engine.score([[1]], [2], adapter=adapter.name)
    with pytest.raises(AdapterNotLoaded):
        await engine.unload(adapter.name)


async def test_an_adapter_is_unloaded_when_its_last_answer_is_given(
    server: Server, engine: VllmEngine, adapter: AdapterFiles
) -> None:
    await engine.load(adapter)
    await server.pace(chunk_ms=20)
    deltas = engine.generate(ask(adapter=adapter.name))
    await anext(deltas)
    unloading = asyncio.create_task(engine.unload(adapter.name))
    await asyncio.sleep(0.05)
    assert engine.resident() == frozenset()
    assert (await server.state())["unloads"] == []
    assert [delta async for delta in deltas][-1].finish_reason is not None
    await unloading
    assert (await server.state())["unloads"] == [adapter.name]


async def test_an_adapter_that_the_server_forgot_is_resident_no_more(
    server: Server, engine: VllmEngine, adapter: AdapterFiles
) -> None:
    await engine.load(adapter)
    await server.fail("lost")
    with pytest.raises(AdapterNotLoaded):
        await answered(engine, adapter=adapter.name)
    assert engine.resident() == frozenset()
    await engine.load(adapter)
    await server.kill()
    await server.start()
    with pytest.raises(AdapterNotLoaded):
        await answered(engine, adapter=adapter.name)
    await engine.load(adapter)
    assert (await answered(engine, adapter=adapter.name))[-1].finish_reason


async def test_an_adapter_that_an_earlier_gateway_loaded_is_taken_over(server: Server, adapter: AdapterFiles) -> None:
    for _ in range(2):
        engine = await opened(server)
        await engine.load(adapter)
        await engine.close()
    assert (await server.state())["loads"] == [adapter.name]


async def test_an_adapter_is_refused_by_its_files_or_by_the_server(
    server: Server, engine: VllmEngine, adapter: AdapterFiles
) -> None:
    await server.fail("error", work="load")
    with pytest.raises(AdapterRejected, match="vLLM does not take"):
        await engine.load(adapter)
    small = await opened(server, max_rank=4)
    with pytest.raises(AdapterRejected, match="up to 4"):
        await small.load(adapter)
    await small.close()
    (adapter.path / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterRejected, match="changed after"):
        await engine.load(adapter)
    assert engine.resident() == frozenset()


PROMPTS = [[1, 2, 3, 4], [1, 2, 3, 9], [1, 2, 3, 4], list(range(100, 140))]
ANSWER = [7, 8, 9]


async def test_both_ways_of_scoring_agree(server: Server, engine: VllmEngine) -> None:
    quick = await engine.score(PROMPTS, ANSWER, adapter=None)
    assert (await server.state())["count"]["/inference/v1/generate"] == 1 + 3  # the probe, and each prompt once
    async with stand_in("--context", "512", "--no-scale-out") as plain:
        other = await opened(plain)
        standard = await other.score(PROMPTS, ANSWER, adapter=None)
        await other.close()
    assert quick.logprobs.shape == (4, 3)
    np.testing.assert_array_equal(quick.logprobs, standard.logprobs)
    np.testing.assert_array_equal(quick.logprobs[0], quick.logprobs[2])
    assert standard.tokens_processed == 7 + 7 + 43
    assert quick.tokens_processed <= standard.tokens_processed + 3


@pytest.mark.parametrize("fault", ["garbage", "nan", "error"])
async def test_rubbish_from_the_prefix_cache_is_scored_again_without_it(
    server: Server, engine: VllmEngine, fault: Any
) -> None:
    expected = await engine.score(PROMPTS, ANSWER, adapter=None)
    before = (await server.state())["count"]["/v1/completions"]
    await server.fail(fault, work="score", times=1)
    found = await engine.score(PROMPTS, ANSWER, adapter=None)
    np.testing.assert_array_equal(found.logprobs, expected.logprobs)
    assert (await server.state())["count"]["/v1/completions"] == before + 1


async def test_rubbish_from_the_standard_route_is_not_taken() -> None:
    async with stand_in("--no-scale-out") as plain:
        engine = await opened(plain)
        for fault in ("garbage", "nan", "busy", "cut"):
            await plain.fail(fault, work="score")  # type: ignore[arg-type]
            with pytest.raises(EngineUnavailable):
                await engine.score([[1, 2]], ANSWER, adapter=None)
        await engine.close()


async def test_a_score_by_a_lost_adapter_says_so(server: Server, engine: VllmEngine, adapter: AdapterFiles) -> None:
    await engine.load(adapter)
    await server.fail("lost", work="score")
    with pytest.raises(AdapterNotLoaded):
        await engine.score(PROMPTS, ANSWER, adapter=adapter.name)
    assert engine.resident() == frozenset()


async def test_health_is_asked_for_at_most_once_a_second(server: Server, engine: VllmEngine) -> None:
    await server.pace(chunk_ms=100)
    deltas = engine.generate(ask())
    await anext(deltas)
    found = await asyncio.gather(*(engine.health() for _ in range(50)))
    assert {(health.ready, health.generating) for health in found} == {(True, 1)}
    assert (await server.state())["count"]["/metrics"] == 1
    await deltas.aclose()


async def test_a_name_that_is_not_served_is_told_with_those_that_are(server: Server) -> None:
    with pytest.raises(EngineUnavailable, match=r"'other'; it serves: stand-in"):
        await opened(server, served_name="other")
