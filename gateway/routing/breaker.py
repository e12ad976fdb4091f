"""A circuit breaker: leaves alone what fails, then asks again with one request. Pure: the clock is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """closed: requests pass. open: none does. half-open: one passes, and how it ends decides."""

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
    """Counts failures in a row; each time that it opens again without a success between, it stays open twice as long.

    Whoever is admitted gets the number of the round, and says with it how it went. What was admitted in an earlier
    round says nothing about now, and is not counted.

    clock: seconds that only grow. spread: a factor above 0 on each wait, so that breakers which opened together do not
    ask together.
    """

    def __init__(
        self, limits: BreakerLimits, *, clock: Callable[[], float], spread: Callable[[], float] = lambda: 1.0
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._spread = spread
        self._round = 0
        self._failures = 0
        self._openings = 0  # since the last success
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

    def admit(self) -> int:
        """Let a request in, and return the round that it belongs to."""
        if not self.admits:
            raise RuntimeError("the breaker admits nothing now")
        self._probing = self.state is State.HALF_OPEN
        return self._round

    def began(self, admitted: int) -> None:
        """An answer began: enough for a half-open breaker to close, and for a closed one not yet a success."""
        if admitted == self._round and self.state is State.HALF_OPEN:
            self.reset()

    def succeeded(self, admitted: int) -> None:
        """All went well."""
        if admitted == self._round:
            self.reset()

    def failed(self, admitted: int) -> None:
        """It failed."""
        if admitted != self._round:
            return
        self._failures += 1
        if self.state is not State.CLOSED or self._failures >= self._limits.failures:
            wait_s = min(self._limits.first_s * 2.0 ** min(self._openings, 32), self._limits.limit_s)
            self._open_until_s = self._clock() + wait_s * self._spread()
            self._openings += 1
            self._next_round()

    def abandoned(self, admitted: int) -> None:
        """It ended without saying anything: its caller left."""
        if admitted == self._round:
            self._probing = False

    def reset(self) -> None:
        """Begin anew: it answered, or is another process than the one that failed."""
        if self._open_until_s is not None:
            self._open_until_s = None
            self._next_round()
        self._failures = self._openings = 0

    def _next_round(self) -> None:
        self._round += 1
        self._failures = 0
        self._probing = False
