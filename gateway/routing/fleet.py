"""Several replicas of one base model behind the engine protocol.

A request goes where `placement` says; its adapter is loaded there when it is first needed. What fails before the first
delta is tried on another replica, and what fails later is the caller's to hear of.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import structlog

from gateway.engines import (
    AdapterFiles,
    Delta,
    Engine,
    EngineError,
    EngineUnavailable,
    GenerationRequest,
    Health,
    Scores,
)
from gateway.grounding import Message
from gateway.routing.breaker import Breaker
from gateway.routing.lease import Lease
from gateway.routing.loading import Loader
from gateway.routing.placement import Choice, Placement, Tuning
from gateway.routing.replica import OpenEngine, Replica
from gateway.routing.residency import NoRoomError, Residency
from gateway.routing.tries import RETRIED, FleetLimits, NoReplica, Tries
from gateway.routing.watch import Unwatched, Watch

T = TypeVar("T")

log = structlog.get_logger(__name__)


class MixedFleet(EngineError):  # noqa: N818  errors of engines say what is so
    """The operator's fault: two replicas run different base models, or in different number formats."""


class Fleet:
    """An Engine over several. Every replica serves the same base model in the same number format."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        slots: int,
        limits: FleetLimits,
        tuning: Tuning,
        chance: random.Random,
        clock: Callable[[], float],
        watch: Watch,
    ) -> None:
        self._replicas = {replica.name: replica for replica in replicas}
        self._limits = limits
        self._chance = chance
        self._clock = clock
        self._watch = watch
        each = dict.fromkeys(self._replicas, slots)
        self._table = Residency(each, memory=tuning.memory_per_slot * sum(each.values()))
        self._placement = Placement(self._table, sample=chance.sample, tuning=tuning)
        self._loader = Loader(
            self._table, quarantine_s=limits.quarantine_s, clock=clock, watch=watch, changed=self._wake
        )
        self._change = asyncio.Event()
        self._pollers: list[asyncio.Task[None]] = []
        self._closed = False

    @classmethod
    async def open(
        cls,
        replicas: Mapping[str, OpenEngine],
        *,
        slots: int,
        limits: FleetLimits | None = None,
        tuning: Tuning | None = None,
        chance: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        watch: Watch | None = None,
    ) -> Fleet:
        """Open the replicas by name; those that are down are opened when they answer. slots: adapters on each.

        Raises EngineUnavailable when none answers, MixedFleet when they do not serve the same.
        """
        limits = limits or FleetLimits()
        chance = chance or random.Random()  # noqa: S311 - it spreads load, and guards nothing
        made = [
            Replica(name, make, Breaker(limits.breaker, clock=clock, spread=lambda: chance.uniform(0.5, 1)))
            for name, make in replicas.items()
        ]
        fleet = cls(
            made,
            slots=slots,
            limits=limits,
            tuning=tuning or Tuning(),
            chance=chance,
            clock=clock,
            watch=watch or Unwatched(),
        )
        try:
            await fleet.poll()
            fleet._require_one_base()
        except BaseException:
            await fleet.close()
            raise
        fleet._pollers = [asyncio.create_task(fleet._keep_polling(replica)) for replica in made]
        return fleet

    # What it is: what its replicas have in common.

    @property
    def name(self) -> str:
        """See Engine.name."""
        return self._engines()[0].name

    @property
    def version(self) -> str:
        """See Engine.version; of every replica, where they differ."""
        return ", ".join(sorted({engine.version for engine in self._engines()}))

    @property
    def dtype(self) -> str:
        """See Engine.dtype."""
        return self._engines()[0].dtype

    @property
    def base_model(self) -> str:
        """See Engine.base_model."""
        return self._engines()[0].base_model

    @property
    def base_digest(self) -> str:
        """See Engine.base_digest."""
        return self._engines()[0].base_digest

    @property
    def context_tokens(self) -> int:
        """See Engine.context_tokens; what fits every replica."""
        return min(engine.context_tokens for engine in self._engines())

    @property
    def noise_nats(self) -> float:
        """See Engine.noise_nats; of the noisiest replica."""
        return max(engine.noise_nats for engine in self._engines())

    @property
    def options(self) -> frozenset[str]:
        """See Engine.options; what every replica takes."""
        return frozenset.intersection(*(engine.options for engine in self._engines()))

    # What it does.

    async def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """See Engine.render."""
        return await self._once(lambda engine: engine.render(messages, tools), None, counted=False)

    async def tokenize(self, text: str) -> list[int]:
        """See Engine.tokenize."""
        return await self._once(lambda engine: engine.tokenize(text), None, counted=False)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """See Engine.generate. Raises AdapterRejected too, for the adapter is loaded when it is needed."""
        tries = self._tries()
        began = False
        while not began:
            try:
                with await self._lease(request.adapter, tries) as lease:
                    engine = await lease.engine()
                    async with aclosing(engine.generate(request)) as deltas:
                        async with asyncio.timeout(self._limits.first_delta_s):
                            first = await anext(deltas, None)
                        if first is None:
                            raise EngineUnavailable("the engine ended an answer before it began")
                        began = True
                        lease.began()
                        yield first
                        async for delta in deltas:
                            yield delta
            except RETRIED as error:
                self._failed(tries, error, began=began)
            finally:
                self._wake()

    async def score(self, prompts: Sequence[Sequence[int]], answer: Sequence[int], *, adapter: str | None) -> Scores:
        """See Engine.score; on the least busy of the replicas that hold the adapter."""
        return await self._once(lambda engine: engine.score(prompts, answer, adapter=adapter), adapter, least_busy=True)

    async def load(self, adapter: AdapterFiles) -> None:
        """Make an adapter known; it is loaded onto a replica when a request first needs it.

        Raises AdapterRejected when its files changed, or were made for another base. What only an engine can tell, such
        as that it changes nothing, is told when it is first needed.
        """
        adapter.check_base(self.base_model)
        await asyncio.to_thread(adapter.read_weights)
        self._loader.know(adapter)

    async def unload(self, name: str) -> None:
        """See Engine.unload."""
        self._loader.unknow(name)
        while any(self._table.in_flight(replica, name) for replica in self._replicas):
            await self._changed()
        await self._loader.forget(list(self._replicas.values()), name)

    def resident(self) -> frozenset[str]:
        """Adapters that some replica holds; every other that is known takes work too, once it is loaded."""
        return frozenset().union(*(self._table.resident(replica) for replica in self._replicas))

    async def health(self) -> Health:
        """See Engine.health: ready while any replica takes work; as of the last look at each."""
        well = [replica for replica in self._replicas.values() if replica.takes_work and not self._closed]
        seen = [replica.health for replica in well]
        return Health(
            ready=bool(well),
            generating=sum(health.generating for health in seen),
            waiting=sum(health.waiting for health in seen),
            scoring=sum(health.scoring for health in seen),
            kv_used=sum(health.kv_used for health in seen) / max(1, len(seen)),
        )

    def drain(self, replicas: Collection[str]) -> None:
        """Give these replicas no new work, and every other one work again. What they have in hand they finish."""
        for replica in self._replicas.values():
            replica.drain(replica.name in replicas)
            self._show(replica)
        self._wake()

    async def close(self) -> None:
        """Take no new work, let what runs end within close_s, and close every replica."""
        if self._closed:
            return
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.close_s):
                self.drain(self._replicas)
                while any(replica.in_flight for replica in self._replicas.values()):
                    await self._changed()
        for poller in self._pollers:
            poller.cancel()
        await asyncio.gather(*self._pollers, return_exceptions=True)
        await self._loader.close()
        await asyncio.gather(*(replica.close() for replica in self._replicas.values()))

    async def poll(self) -> None:
        """Look at every replica once, now."""
        await asyncio.gather(*map(self._poll, self._replicas.values()))

    # Underneath.

    async def _once(
        self,
        work: Callable[[Engine], Awaitable[T]],
        adapter: str | None,
        *,
        least_busy: bool = False,
        counted: bool = True,
    ) -> T:
        """What some replica returns, tried again where it fails."""
        tries = self._tries()
        while True:
            try:
                with await self._lease(adapter, tries, least_busy=least_busy, counted=counted) as lease:
                    return await work(await lease.engine())
            except RETRIED as error:
                self._failed(tries, error)
            finally:
                self._wake()

    async def _lease(
        self, adapter: str | None, tries: Tries, *, least_busy: bool = False, counted: bool = True
    ) -> Lease:
        """A place at the replica that the request goes to."""
        choice = await self._choose(adapter, tries, least_busy=least_busy)
        tries.where = choice.replica
        if counted:
            self._watch.routed(choice.replica, choice.reason)
        return Lease(self._replicas[choice.replica], adapter, table=self._table, loader=self._loader)

    def _failed(self, tries: Tries, error: EngineError | TimeoutError, *, began: bool = False) -> None:
        """Return if the request may be tried again. Else raise the error."""
        if tries.where and isinstance(error, EngineUnavailable | TimeoutError):
            tries.failed.add(tries.where)
            self._show(self._replicas[tries.where])
        if began:
            raise error
        tries.again(error)

    async def _choose(self, adapter: str | None, tries: Tries, *, least_busy: bool) -> Choice:
        """Where the request goes, once some replica has room for its adapter."""
        while True:
            if adapter is not None:
                self._loader.require(adapter)
            pressures = {
                name: replica.pressure
                for name, replica in self._replicas.items()
                if replica.takes_work and name not in tries.failed
            }
            if self._closed or not pressures:
                raise NoReplica("no replica takes work now")
            choice = self._placement.choose(adapter, pressures, least_busy=least_busy)
            if choice is not None:
                break
            try:
                async with asyncio.timeout(max(0.0, tries.left_s)):
                    await self._changed()
            except TimeoutError:
                raise NoReplica("every slot holds an adapter that is in use") from None
        if adapter is not None and choice.copy_to is not None:
            with suppress(NoRoomError):
                self._loader.start(self._replicas[choice.copy_to], adapter)
        return choice

    async def _keep_polling(self, replica: Replica) -> None:
        while True:
            await asyncio.sleep(self._limits.poll_s * self._chance.uniform(0.75, 1.25))
            try:
                await self._poll(replica)
            except Exception:
                log.exception("poll_failed", replica=replica.name)

    async def _poll(self, replica: Replica) -> None:
        await replica.poll(self._limits.poll_timeout_s, self._check)
        if replica.health.ready:
            self._loader.reconcile(replica)
        self._show(replica)
        self._wake()

    def _show(self, replica: Replica) -> None:
        self._watch.stands(replica.name, takes_work=replica.takes_work, breaker=replica.breaker.state)

    def _engines(self) -> list[Engine]:
        return [replica.engine for replica in self._replicas.values() if replica.opened]

    def _require_one_base(self) -> None:
        """Raise MixedFleet if some replica was found to differ, EngineUnavailable if none answered at all."""
        for replica in self._replicas.values():
            if isinstance(replica.fault, MixedFleet):
                raise replica.fault
        if not self._engines():
            raise EngineUnavailable(f"no replica answers: {', '.join(self._replicas)}")

    def _check(self, engine: Engine) -> None:
        """Raise MixedFleet unless the engine serves what those before it do."""
        for other in self._engines()[:1]:
            for what in ("base_digest", "base_model", "dtype"):
                one, first = getattr(engine, what), getattr(other, what)
                if one != first:
                    raise MixedFleet(
                        f"the replicas of a fleet must be alike, and {what} is {first} on one, {one} on another"
                    )

    def _tries(self) -> Tries:
        return Tries(limits=self._limits, clock=self._clock, watch=self._watch, began_s=self._clock())

    def _wake(self) -> None:
        """Let everyone look again who waits for something to change."""
        self._change.set()
        self._change = asyncio.Event()

    async def _changed(self) -> None:
        await self._change.wait()
