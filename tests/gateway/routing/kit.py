"""Replicas that do as they are told, small adapters on disk, and a fleet over both."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.engines import AdapterFiles, Delta, GenerationRequest, SamplingParams
from gateway.routing.breaker import BreakerLimits, State
from gateway.routing.fleet import Fleet
from gateway.routing.tries import FleetLimits
from tests.fakes import FakeEngine
from tests.gateway.engines import adapter_kit

SHAPES = {"model.layers.0.self_attn.q_proj": (4, 4), "model.layers.0.self_attn.v_proj": (4, 4)}


@dataclass(kw_only=True)
class Server(FakeEngine):
    """A replica. hold: while it is set, loads wait for its being cleared. loads, unloads: what was asked, in order."""

    hold: asyncio.Event | None = None
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    closed: bool = False

    async def load(self, adapter: AdapterFiles) -> None:
        self.loads.append(adapter.name)
        if self.hold is not None:
            await self.hold.wait()
        await super().load(adapter)

    async def unload(self, name: str) -> None:
        self.unloads.append(name)
        await super().unload(name)

    def restart(self) -> None:
        """What a new process in the old one's place is like: well, and empty."""
        self._resident.clear()
        self.down = False

    async def close(self) -> None:
        self.closed = True
        await super().close()


@dataclass
class Clock:
    """Seconds that pass when they are told to."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Seen:
    """A Watch that remembers."""

    routes: list[tuple[str, str]] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    evictions: list[str] = field(default_factory=list)
    retries: list[str] = field(default_factory=list)
    breakers: dict[str, State] = field(default_factory=dict)
    working: dict[str, bool] = field(default_factory=dict)

    def routed(self, replica: str, reason: str) -> None:
        self.routes.append((replica, reason))

    def loaded(self, replica: str, seconds: float) -> None:
        assert seconds >= 0
        self.loads.append(replica)

    def evicted(self, replica: str) -> None:
        self.evictions.append(replica)

    def retried(self, replica: str) -> None:
        self.retries.append(replica)

    def stands(self, replica: str, *, takes_work: bool, breaker: State) -> None:
        self.breakers[replica] = breaker
        self.working[replica] = takes_work


# No poll happens by itself: a test says when.
LIMITS = FleetLimits(
    poll_s=3600, poll_timeout_s=5, retry_s=20, close_s=0.2, breaker=BreakerLimits(failures=3, first_s=1, limit_s=60)
)


@dataclass
class Stage:
    """A fleet, its servers by name, and what it was seen to do."""

    fleet: Fleet
    servers: Mapping[str, Server]
    clock: Clock
    seen: Seen

    @property
    def loads(self) -> list[str]:
        return [name for server in self.servers.values() for name in server.loads]

    def holder(self, adapter: str) -> str:
        """The one server that holds an adapter."""
        (name,) = [name for name, server in self.servers.items() if adapter in server.resident()]
        return name


@asynccontextmanager
async def staged(
    servers: Mapping[str, Server], *, slots: int = 4, limits: FleetLimits = LIMITS, real_time: bool = False
) -> AsyncIterator[Stage]:
    clock, seen = Clock(), Seen()
    fleet = await Fleet.open(
        {name: opener(server) for name, server in servers.items()},
        slots=slots,
        limits=limits,
        chance=random.Random(7),  # noqa: S311 - a test is repeated from its seed
        clock=time.monotonic if real_time else clock,
        watch=seen,
    )
    try:
        yield Stage(fleet, servers, clock, seen)
    finally:
        await fleet.close()


def opener(server: Server) -> Callable[[], Any]:
    async def opened() -> Server:
        server._check(None)
        return server

    return opened


def servers(count: int, **options: Any) -> dict[str, Server]:
    return {f"r{number}": Server(**options) for number in range(count)}


def adapter(folder: Path, seed: int = 0, base: str = "fake-base") -> AdapterFiles:
    weights = adapter_kit.tensors(SHAPES, seed=seed)
    return AdapterFiles.read(adapter_kit.write(folder / f"{base}-{seed}", weights, base_model_name_or_path=base))


def ask(adapter_name: str | None = None, prompt: str = "Well?") -> GenerationRequest:
    return GenerationRequest(
        request_id="req", model="m", prompt=prompt, adapter=adapter_name, sampling=SamplingParams(max_tokens=20)
    )


async def answer(fleet: Fleet, adapter_name: str | None = None, prompt: str = "Well?") -> str:
    deltas: list[Delta] = [delta async for delta in fleet.generate(ask(adapter_name, prompt))]
    assert deltas[0].prompt_ids is not None
    assert deltas[-1].finish_reason is not None
    return "".join(delta.text for delta in deltas)
