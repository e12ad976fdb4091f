"""One replica of a fleet: its engine, once it could be opened, and how it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from gateway.engines import Engine, EngineError, EngineUnavailable, Health
from gateway.routing.breaker import Breaker
from gateway.routing.placement import pressure

OpenEngine = Callable[[], Awaitable[Engine]]

log = structlog.get_logger(__name__)

_NOT_READY = Health(ready=False, generating=0, waiting=0, scoring=0)


class Replica:
    """What the fleet knows of one of its engines. fault: what the last look at it met, if it was no health."""

    def __init__(self, name: str, open_engine: OpenEngine, breaker: Breaker) -> None:
        self.name = name
        self.breaker = breaker
        self.health = _NOT_READY
        self.fault: Exception | None = None
        self.draining = False
        self.in_flight = 0
        self._told_idle = False
        self._open = open_engine
        self._engine: Engine | None = None
        self._others = 0  # requests of other gateways, as of the last poll

    @property
    def opened(self) -> bool:
        """Whether there is an engine to speak of."""
        return self._engine is not None

    @property
    def engine(self) -> Engine:
        """Its engine. Raises EngineUnavailable before it was opened."""
        if self._engine is None:
            raise EngineUnavailable(f"{self.name} has not answered yet")
        return self._engine

    @property
    def takes_work(self) -> bool:
        """Whether a request may go there now: it is well, is not draining, and its breaker lets one in."""
        return self.health.ready and not self.draining and self.breaker.admits

    @property
    def pressure(self) -> float:
        """How busy it is: our own requests as of now, the rest as of the last poll."""
        return pressure(self.in_flight + self._others, self.health.kv_used)

    def drain(self, drained: bool) -> None:
        """Let no new request go there, or let them again."""
        if drained != self.draining:
            log.info("replica_draining" if drained else "replica_back", replica=self.name, in_flight=self.in_flight)
        self.draining, self._told_idle = drained, False

    async def poll(self, timeout_s: float, check: Callable[[Engine], None]) -> None:
        """Ask how it fares; open it first if that is still to be done. Raises nothing that is the engine's fault.

        check: raises EngineError on an engine that must not join.
        """
        health: Health = _NOT_READY
        fault: Exception | None = None
        try:
            if self._engine is None:
                self._engine = await _checked(await self._open(), check)
            async with asyncio.timeout(timeout_s):
                health = await self._engine.health()
        except (EngineError, TimeoutError, OSError) as error:
            fault = error
            if repr(fault) != repr(self.fault):
                log.warning("replica_unavailable", replica=self.name, error=repr(fault))
        if health.ready and not self.health.ready:
            log.info("replica_ready", replica=self.name)
            self.breaker.reset()  # what comes back is not what failed
        self.health, self.fault = health, fault
        if self.draining and not self.in_flight and not self._told_idle:
            log.info("replica_drained", replica=self.name)
            self._told_idle = True
        self._others = max(0, health.generating + health.waiting + health.scoring - self.in_flight)

    async def close(self) -> None:
        """Close its engine, if it was opened."""
        self.health = _NOT_READY
        if self._engine is not None:
            await self._engine.close()


async def _checked(engine: Engine, check: Callable[[Engine], None]) -> Engine:
    try:
        check(engine)
    except EngineError:
        await engine.close()
        raise
    return engine
