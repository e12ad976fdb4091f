"""How often one request is tried, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.engines import AdapterNotLoaded, EngineError, EngineUnavailable
from gateway.routing.breaker import BreakerLimits
from gateway.routing.watch import Watch

# What may go better elsewhere, or here once the adapter is loaded again. Everything else is somebody's fault.
RETRIED = (EngineUnavailable, AdapterNotLoaded, TimeoutError)


@dataclass(frozen=True, kw_only=True)
class FleetLimits:
    """How long and how often a fleet tries.

    tries: of one request; none begins after retry_s. first_delta_s: a try that shows nothing for so long has failed.
    poll_s: between looks at a replica, more or less; poll_timeout_s: for one. close_s: what runs has so long to end.
    """

    tries: int = 3
    retry_s: float = 30.0
    first_delta_s: float = 120.0
    poll_s: float = 2.0
    poll_timeout_s: float = 5.0
    close_s: float = 10.0
    quarantine_s: float = 300.0
    breaker: BreakerLimits = field(default_factory=BreakerLimits)


class NoReplica(EngineUnavailable):
    """No replica takes work now."""


class UnknownAdapter(AdapterNotLoaded):
    """Nobody made the adapter known to the fleet."""


@dataclass(eq=False, kw_only=True)
class Tries:
    """What has been tried for one request. failed: replicas. where: the last of them. began_s: by the clock."""

    limits: FleetLimits
    clock: Callable[[], float]
    watch: Watch
    began_s: float
    failed: set[str] = field(default_factory=set)
    where: str = ""
    count: int = 0
    last: EngineError | None = None

    @property
    def left_s(self) -> float:
        """How long another try may still begin."""
        return self.began_s + self.limits.retry_s - self.clock()

    def again(self, error: EngineError | TimeoutError) -> None:
        """Return if another try may follow this error. Else raise it, so that a gateway's client can understand it."""
        if isinstance(error, NoReplica):
            raise self.last or error
        if isinstance(error, UnknownAdapter):
            raise error
        self.count += 1
        if isinstance(error, AdapterNotLoaded):
            error = EngineUnavailable(f"a replica keeps losing adapter {error.name}")
        elif isinstance(error, TimeoutError):
            error = EngineUnavailable(f"the engine showed nothing for {self.limits.first_delta_s:g} s")
        self.last = error
        if self.count >= self.limits.tries or self.left_s <= 0:
            raise error
        self.watch.retried(self.where)
