"""The gateway's placement, and what it is compared with."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping

from benchmarks.routing.simulation import Machine, Policy
from gateway.routing.placement import Choice, Placement, Tuning, rendezvous
from gateway.routing.residency import Residency

OURS = "ours"
LRU = 1.0


class Ours:
    """The gateway's own. memory: of its Residency; as its Tuning says if None."""

    def __init__(self, machine: Machine, seed: int, memory: float | None = None) -> None:
        tuning = Tuning()
        slots = dict.fromkeys(machine.names(), machine.slots)
        self.table = Residency(slots, memory=memory or tuning.memory_per_slot * sum(slots.values()))
        sample = random.Random(seed).sample  # noqa: S311 - a simulation is repeated from its seed
        self._placement = Placement(self.table, sample=sample, tuning=tuning)

    def choose(self, adapter: str, pressures: Mapping[str, float]) -> Choice | None:
        """See Placement.choose."""
        return self._placement.choose(adapter, pressures)


class _Simple(ABC):
    """A policy that looks at its replicas in some order and takes the first that holds the adapter or has room."""

    def __init__(self, machine: Machine) -> None:
        self.table = Residency(dict.fromkeys(machine.names(), machine.slots), memory=LRU)

    def choose(self, adapter: str, pressures: Mapping[str, float]) -> Choice | None:
        """The first that can take it."""
        for replica in self.order(adapter, pressures):
            if replica in self.table.holders(adapter) or self.table.has_room(replica):
                return Choice(replica=replica, reason="resident")
        return None

    @abstractmethod
    def order(self, adapter: str, pressures: Mapping[str, float]) -> list[str]:
        """Which replica is looked at first, and which then."""


class RoundRobin(_Simple):
    """One replica after the other."""

    _turn = 0

    def order(self, adapter: str, pressures: Mapping[str, float]) -> list[str]:  # noqa: ARG002
        """The next, and round."""
        names = sorted(pressures)
        self._turn += 1
        start = self._turn % len(names)
        return names[start:] + names[:start]


class LeastLoaded(RoundRobin):
    """The replica with the fewest requests; the next in turn of several."""

    def order(self, adapter: str, pressures: Mapping[str, float]) -> list[str]:
        """By load."""
        return sorted(super().order(adapter, pressures), key=pressures.__getitem__)


class ConsistentHashing(_Simple):
    """Where the hash says, however busy it is."""

    def order(self, adapter: str, pressures: Mapping[str, float]) -> list[str]:
        """The home alone."""
        return list(rendezvous(adapter, tuple(sorted(pressures)))[:1])


def policies(machine: Machine, seed: int) -> dict[str, Policy]:
    """Every policy under the name that the table gives it."""
    return {
        OURS: Ours(machine, seed),
        "ours, plain LRU": Ours(machine, seed, memory=LRU),
        "round-robin": RoundRobin(machine),
        "least-loaded": LeastLoaded(machine),
        "consistent hashing": ConsistentHashing(machine),
    }
