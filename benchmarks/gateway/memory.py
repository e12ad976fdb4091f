"""Resident memory of the gateway early in its life and much later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gateway.load import Load, run
from benchmarks.gateway.ours import Gateway
from benchmarks.gateway.processes import running

EARLY, LATE = 20_000, 200_000
STREAM_EVERY = 10
_NO_END_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Resident bytes after so many requests, one in ten of them a stream, all of them attributed."""

    early_requests: int
    early_bytes: int
    late_requests: int
    late_bytes: int

    @property
    def part(self) -> float:
        """By which part it grew: 0.05 for a twentieth."""
        return self.late_bytes / self.early_bytes - 1


def measure(gateway: Gateway, *, early: int, late: int, cores: Sequence[int]) -> Growth:
    """Serve, load, and look twice. 0 < early < late: how many requests are behind it each time."""
    with running(gateway.serve()) as server:

        def bytes_after(first: int, until: int) -> int:
            load = Load(
                asking=gateway.asking(),
                seconds=_NO_END_S,
                first=first,
                requests=until - first,
                stream_every=STREAM_EVERY,
                cores=tuple(cores),
            )
            outcome = run(load)
            assert outcome.answered == until - first, f"not every request was answered: {outcome.failed}"
            gateway.drain()
            return server.rss_bytes()

        return Growth(
            early_requests=early,
            early_bytes=bytes_after(0, early),
            late_requests=late,
            late_bytes=bytes_after(early, late),
        )
