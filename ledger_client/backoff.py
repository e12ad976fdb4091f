"""How long to leave alone what fails."""

from __future__ import annotations

import random


class Backoff:
    """Waits that grow: each about twice as long as the one before, up to a limit."""

    def __init__(self, *, first_s: float, limit_s: float) -> None:
        self._first_s = first_s
        self._limit_s = limit_s
        self._failures = 0

    def failed(self) -> float:
        """Count a failure and return the seconds to wait, between half and all of the step's length."""
        step_s = min(self._first_s * 2.0 ** min(self._failures, 32), self._limit_s)
        self._failures += 1
        return step_s * random.uniform(0.5, 1)  # noqa: S311 - spreads retries, guards nothing

    def succeeded(self) -> None:
        """Begin anew."""
        self._failures = 0
