"""Which replica takes a request. Pure: no I/O, and chance is handed in.

Replicas that take work, then those that hold the adapter, then the less loaded of two drawn at random. An adapter that
none holds is loaded on one of the first few of its rendezvous order, so that gateways which share replicas agree
without talking; one that outgrows its holders gets a copy on another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Literal, TypeAlias

from gateway.routing.residency import Residency

# base: no adapter was asked for. resident: a replica holds it. home: loaded on one of those at the head of its order.
# overflow: these are too busy or have no room, so loaded further down.
Reason = Literal["base", "resident", "home", "overflow"]
Sample: TypeAlias = Callable[[Sequence[str], int], list[str]]

_KV_FULL = 0.95  # beyond it, the quotient below says nothing more


def pressure(requests: float, kv_used: float = 0.0) -> float:
    """How busy a replica is: its requests, answered and queued, as they weigh.

    A nearly full KV cache, kv_used from 0 to 1, makes each of them wait for room.
    """
    return requests / (1 - min(max(kv_used, 0.0), _KV_FULL))


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What `benchmarks.routing` was used to choose.

    A replica is too busy above a multiple of the fleet's mean pressure, and above `floor` requests: too busy to go on
    alone with its adapters at `copy_stretch`, too busy to take another at `load_stretch`.
    homes: how many replicas at the head of an adapter's order are weighed for its load. spread: an adapter with a
    part p of the uses may have 1 + ⌊p · spread · replicas⌋ copies; each costs a slot that another adapter would have
    had. memory_per_slot: a Residency's memory, in uses for each slot of the fleet.
    """

    copy_stretch: float = 1.25
    load_stretch: float = 2.0
    floor: float = 4.0
    homes: int = 3
    spread: float = 8.0
    memory_per_slot: float = 32.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A replica, and why. copy_to: where a copy of the adapter should be loaded meanwhile, for those who come next."""

    replica: str
    reason: Reason
    copy_to: str | None = None


@lru_cache(maxsize=65536)
def rendezvous(adapter: str, replicas: tuple[str, ...]) -> tuple[str, ...]:
    """The replicas in the order in which an adapter prefers them; without one of them, the others keep their order."""

    def weight(replica: str) -> bytes:
        return blake2b(f"{len(replica)}:{replica}{adapter}".encode(), digest_size=16).digest()

    return tuple(sorted(replicas, key=weight, reverse=True))


class Placement:
    """Decides over one table of residency. sample: draws n of a sequence, as `random.Random(seed).sample` does."""

    def __init__(self, table: Residency, *, sample: Sample, tuning: Tuning | None = None) -> None:
        self._table = table
        self._sample = sample
        self._tuning = tuning or Tuning()

    def choose(self, adapter: str | None, pressures: Mapping[str, float], *, least_busy: bool = False) -> Choice | None:
        """Where a request goes; None when no replica takes work, or none has room for the adapter now.

        pressures: of the replicas that take work, and of no other. least_busy: look at all holders, not at two.
        """
        if not pressures:
            return None
        among = len(pressures) if least_busy else 2
        if adapter is None:
            return Choice(replica=self._quieter(pressures, pressures, among), reason="base")
        table = self._table
        holders = [replica for replica in table.holders(adapter) if replica in pressures]
        if not holders:
            return self._load(adapter, pressures)
        ready = [replica for replica in holders if table.loaded(replica, adapter)]
        replica = self._quieter(ready or holders, pressures, among)
        copy_to = self._copy(adapter, ready, pressures) if len(ready) == len(holders) else None
        return Choice(replica=replica, reason="resident", copy_to=copy_to)

    def _load(self, adapter: str, pressures: Mapping[str, float]) -> Choice | None:
        table = self._table
        order = rendezvous(adapter, tuple(sorted(pressures)))
        roomy = [replica for replica in order if table.has_room(replica)]
        if not roomy:
            return None
        limit = self._too_busy(pressures, self._tuning.load_stretch)
        quiet = [replica for replica in roomy if pressures[replica] <= limit] or roomy
        # A load waits for the loads before it; and what goes should be what the fleet, not one replica, needs least.
        replica = min(
            quiet[: self._tuning.homes], key=lambda replica: (table.loading(replica), table.victim_rank(replica))
        )
        return Choice(replica=replica, reason="home" if replica in order[: self._tuning.homes] else "overflow")

    def _copy(self, adapter: str, holders: Collection[str], pressures: Mapping[str, float]) -> str | None:
        """Another replica for an adapter whose holders are all too busy, if its part of the uses warrants one more."""
        warranted = 1 + int(self._table.share(adapter) * self._tuning.spread * len(pressures))
        limit = self._too_busy(pressures, self._tuning.copy_stretch)
        if len(holders) >= warranted or min(pressures[replica] for replica in holders) <= limit:
            return None
        mean = _mean_pressure(pressures)
        order = rendezvous(adapter, tuple(sorted(pressures)))
        fit = (r for r in order if r not in holders and pressures[r] <= mean and self._table.has_room(r))
        return next(fit, None)

    def _quieter(self, replicas: Collection[str], pressures: Mapping[str, float], among: int) -> str:
        drawn = self._sample(list(replicas), min(among, len(replicas)))
        return min(drawn, key=pressures.__getitem__)

    def _too_busy(self, pressures: Mapping[str, float], stretch: float) -> float:
        return max(self._tuning.floor, stretch * _mean_pressure(pressures))


def _mean_pressure(pressures: Mapping[str, float]) -> float:
    return sum(pressures.values()) / len(pressures)
