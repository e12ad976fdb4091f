"""Many callers, few slots, and replicas that die, come back, lose adapters and fail to load them, from a seed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from gateway.engines import AdapterFiles, Delta, EngineUnavailable, GenerationRequest
from gateway.routing.breaker import BreakerLimits
from tests.gateway.routing.kit import LIMITS, Server, adapter, ask, staged

SLOTS = 3


@dataclass(kw_only=True)
class Shaky(Server):
    """A replica that fails by chance, and that sees whether an adapter is taken from under a request."""

    chance: random.Random
    active: Counter[str] = field(default_factory=Counter)
    torn: list[str] = field(default_factory=list)
    most: int = 0

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        self._check(request.adapter)
        name = request.adapter or ""
        self.active[name] += 1
        try:
            if self.chance.random() < 0.05:
                raise EngineUnavailable("by chance")
            async with aclosing(super().generate(request)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self.active[name] -= 1

    async def load(self, adapter: AdapterFiles) -> None:
        if self.chance.random() < 0.05:
            raise EngineUnavailable("no memory, by chance")
        await super().load(adapter)
        self.most = max(self.most, len(self._resident))

    async def unload(self, name: str) -> None:
        if self.active[name]:
            self.torn.append(name)
        await super().unload(name)


async def trouble(made: dict[str, Shaky], chance: random.Random) -> None:
    """One replica after the other dies and comes back empty, or only forgets."""
    while True:
        server = chance.choice(list(made.values()))
        if chance.random() < 0.5:
            server.down = True
            await asyncio.sleep(0.01)
        server.restart()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("seed", range(4))
async def test_every_request_ends_and_nothing_is_taken_from_under_one(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a test is repeated from its seed
    made = {f"r{number}": Shaky(delay_s=0.0005, chance=chance) for number in range(3)}
    files = [adapter(tmp_path, number) for number in range(12)]
    limits = replace(LIMITS, poll_s=0.01, breaker=BreakerLimits(failures=3, first_s=0.001, limit_s=0.01))
    async with staged(made, slots=SLOTS, limits=limits, real_time=True) as stage:
        fleet = stage.fleet
        for one in files:
            await fleet.load(one)
        outcomes: Counter[str] = Counter()

        async def caller(number: int) -> None:
            random_ = random.Random(f"{seed} {number}")  # noqa: S311 - as above
            for _ in range(15):
                name = random_.choice([*files, None, files[0], files[0]])
                request, said = ask(name and name.name), ""
                try:
                    async with aclosing(fleet.generate(request)) as deltas:
                        async for delta in deltas:
                            said += delta.text
                            if random_.random() < 0.05:
                                break
                        else:
                            assert said == "Yes."
                            outcomes["answered"] += 1
                except EngineUnavailable:
                    outcomes["unavailable"] += 1

        troubling = asyncio.create_task(trouble(made, chance))
        async with asyncio.timeout(60):
            await asyncio.gather(*(caller(number) for number in range(12)))
        troubling.cancel()
        assert outcomes["answered"] > 2 * outcomes["unavailable"]
        for server in made.values():
            assert server.torn == []
            assert server.most <= SLOTS
            server.down = False
            server.chance = random.Random()  # noqa: S311 - unused from here on
            server.chance.random = lambda: 1.0  # type: ignore[method-assign]
        await asyncio.sleep(limits.breaker.limit_s)
        await fleet.poll()
        for one in files:
            assert "".join([delta.text async for delta in fleet.generate(ask(one.name))]) == "Yes."
        assert all(replica.in_flight == 0 for replica in fleet._replicas.values())
        assert not fleet._table._in_flight
        assert not fleet._loader._loading
