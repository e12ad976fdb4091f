"""A fleet over vLLM's protocol: stand-in servers as processes of their own, killed and started again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.engines import AdapterFiles, Engine, EngineUnavailable
from gateway.engines.vllm import VllmEngine
from gateway.routing.fleet import Fleet
from tests.gateway.routing.kit import LIMITS, Seen, adapter, ask
from tests.stand_in.kit import Server, stand_in

BASE = "stand-in"


@asynccontextmanager
async def over(*flags: str, count: int = 2, slots: int = 3) -> AsyncIterator[tuple[Fleet, dict[str, Server], Seen]]:
    async with AsyncExitStack() as stack:
        made = {f"r{n}": await stack.enter_async_context(stand_in(*flags, "--model", BASE)) for n in range(count)}

        def opening(server: Server) -> object:
            async def opened() -> Engine:
                return await VllmEngine.open(server.url, base_model=BASE, base_digest="0" * 64)

            return opened

        seen = Seen()
        fleet = await Fleet.open(
            {name: opening(server) for name, server in made.items()},  # type: ignore[misc]
            slots=slots,
            limits=replace(LIMITS, poll_s=0.2),
            chance=random.Random(3),  # noqa: S311 - a test is repeated from its seed
            watch=seen,
        )
        stack.push_async_callback(fleet.close)
        yield fleet, made, seen


async def answer(fleet: Fleet, name: str | None = None) -> int:
    """How many tokens were said."""
    return sum([len(delta.token_ids) async for delta in fleet.generate(ask(name))])


async def known(fleet: Fleet, folder: Path, count: int) -> list[AdapterFiles]:
    files = [adapter(folder, seed, base=BASE) for seed in range(count)]
    for one in files:
        await fleet.load(one)
    return files


async def test_adapters_are_loaded_once_and_evicted_within_the_slots(tmp_path: Path) -> None:
    async with over("--load-ms", "20") as (fleet, made, seen):
        files = await known(fleet, tmp_path, 10)
        await asyncio.gather(*(answer(fleet, files[0].name) for _ in range(40)))
        assert sum([len((await server.state())["loads"]) for server in made.values()]) == 1
        for one in files:
            assert await answer(fleet, one.name) > 0
            await fleet.score([[1, 2]], [3], adapter=one.name)
        states = [await server.state() for server in made.values()]
        assert sum(len(state["loads"]) for state in states) == 10 == len(seen.loads)
        assert all(len(state["adapters"]) <= 3 for state in states)
        assert sum(len(state["unloads"]) for state in states) == len(seen.evictions) >= 4


async def test_a_server_that_is_killed_and_comes_back_empty_serves_again(tmp_path: Path) -> None:
    async with over() as (fleet, made, seen):
        files = await known(fleet, tmp_path, 4)
        for one in files:
            await answer(fleet, one.name)
        await made["r0"].kill()
        for _ in range(3):
            assert all(await asyncio.gather(*(answer(fleet, one.name) for one in files[:3])))
        await made["r0"].start()
        async with asyncio.timeout(10):
            while not seen.working["r0"] or len(seen.working) < 2:
                await asyncio.sleep(0.05)
        await made["r1"].kill()
        for one in files[1:]:
            assert await answer(fleet, one.name) > 0
        await made["r0"].kill()
        with pytest.raises(EngineUnavailable):
            await answer(fleet)


async def test_an_adapter_that_somebody_took_out_is_loaded_again(tmp_path: Path) -> None:
    async with over(count=1) as (fleet, made, _):
        (one,) = await known(fleet, tmp_path, 1)
        await answer(fleet, one.name)
        await made["r0"].kill()
        await made["r0"].start()
        async with asyncio.timeout(10):
            while not (await fleet.health()).ready:
                await asyncio.sleep(0.05)
        assert await answer(fleet, one.name) > 0
        assert (await made["r0"].state())["loads"] == [one.name]
