"""A circuit breaker: leaves alone what fails, then asks again with one request. Pure: the clock is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """closed: requests pass. open: none does. half-open: one at a time passes, and its end decides."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


@dataclass(frozen=True, kw_only=True)
class BreakerLimits:
    """failures: how many in a row open it. first_s, limit_s: how long it stays open at first, and at most."""

    failures: int = 3
    first_s: float = 1.0
    limit_s: float = 60.0

    def __post_init__(self) -> None:
        if self.failures < 1 or not 0 < self.first_s <= self.limit_s:
            raise ValueError("a breaker opens after at least one failure, for a positive time")


class Breaker:
    """Counts failures in a row. Whoever was let in by `admit` says how it ended, exactly once.

    clock: seconds that only grow. spread: factor between 0.5 and 1 on each wait, so that breakers that opened together
    do not ask together.
    """

    def __init__(
        self, limits: BreakerLimits, *, clock: Callable[[], float], spread: Callable[[], float] = lambda: 1.0
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._spread = spread
        self._failures = 0
        self._openings = 0  # since the last success; the wait doubles with each
        self._open_until_s: float | None = None  # None while closed
        self._probing = False

    @property
    def state(self) -> State:
        """The state now; an open breaker becomes half-open by the clock alone."""
        if self._open_until_s is None:
            return State.CLOSED
        return State.OPEN if self._clock() < self._open_until_s else State.HALF_OPEN

    @property
    def admits(self) -> bool:
        """Whether `admit` would let a request in."""
        return self.state is State.CLOSED or (self.state is State.HALF_OPEN and not self._probing)

    def admit(self) -> None:
        """Let a request in; in the half-open state it is the one that decides."""
        if not self.admits:
            raise RuntimeError("the breaker admits nothing now")
        self._probing = self.state is State.HALF_OPEN

    def succeeded(self) -> None:
        """What was let in went well. A straggler from before the breaker opened says nothing about now."""
        if self.state is not State.OPEN:
            self.reset()

    def failed(self) -> None:
        """What was let in failed."""
        self._failures += 1
        if self.state is State.HALF_OPEN or (self.state is State.CLOSED and self._failures >= self._limits.failures):
            wait_s = min(self._limits.first_s * 2.0 ** min(self._openings, 32), self._limits.limit_s)
            self._open_until_s = self._clock() + wait_s * self._spread()
            self._openings += 1
        self._probing = False

    def abandoned(self) -> None:
        """What was let in ended without a verdict: its caller left."""
        self._probing = False

    def reset(self) -> None:
        """Begin anew: it answered, or is another process than the one that failed."""
        self._failures = self._openings = 0
        self._open_until_s = None
        self._probing = False
