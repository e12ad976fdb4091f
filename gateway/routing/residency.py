"""Which adapters each replica holds, and which of them makes room for another. Pure: no clock and no I/O."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping


class NoRoomError(RuntimeError):
    """Every adapter on the replica is pinned or has requests in flight."""


class Residency:
    """The adapters on each replica, within its slots.

    The adapter that goes is the least recently used, where each use is remembered until `memory` further uses of any
    adapter have halved its weight: an adapter that is asked for often outlives one that was asked for last. A memory
    of 1 is plain LRU. Counting in uses, not seconds, makes the order the same at every traffic.

    An adapter takes its slot when its load begins, and goes neither before the load has ended, nor while requests are
    in flight, nor ever if it is pinned.
    """

    def __init__(self, slots: Mapping[str, int], *, memory: float, pinned: Iterable[str] = ()) -> None:
        if memory < 1 or not all(number > 0 for number in slots.values()):
            raise ValueError("a replica has at least one slot, and a use is remembered for at least one more")
        self._slots = dict(slots)
        self._memory = memory
        self._pinned = frozenset(pinned)
        # For each replica: adapter → the number of its load, 0 until it has ended.
        self._held: dict[str, dict[str, int]] = {replica: {} for replica in slots}
        self._loads = 0
        self._in_flight: Counter[tuple[str, str]] = Counter()
        self._uses = 0
        # log2 of the sum over an adapter's uses of 2^(use / memory): all decay alike, so their order needs no clock.
        self._heat: dict[str, float] = {}

    # What is so.

    def holders(self, adapter: str) -> list[str]:
        """Replicas that hold the adapter, or are loading it."""
        return [replica for replica, held in self._held.items() if adapter in held]

    def loaded(self, replica: str, adapter: str) -> int:
        """The number of the load by which the replica holds the adapter; 0 while it does not."""
        return self._held[replica].get(adapter, 0)

    def resident(self, replica: str) -> frozenset[str]:
        """Adapters that the replica has loaded. Any thread may ask."""
        held = tuple(self._held[replica].items())
        return frozenset(adapter for adapter, load in held if load)

    def in_flight(self, replica: str, adapter: str) -> int:
        """Requests that need the adapter on the replica now."""
        return self._in_flight[replica, adapter]

    def has_room(self, replica: str) -> bool:
        """Whether another adapter can be admitted now."""
        held = self._held[replica]
        excess = len(held) + 1 - self._slots[replica]
        return excess <= 0 or sum(self._may_go(replica, adapter) for adapter in held) >= excess

    def loading(self, replica: str) -> int:
        """How many adapters are being loaded onto the replica."""
        return sum(not load for load in self._held[replica].values())

    def share(self, adapter: str) -> float:
        """The adapter's part of the uses that a full memory holds, from 0 to 1: too little at first, never too much."""
        remembered = math.exp2(self._rank(adapter) - self._uses / self._memory)
        return remembered * (1 - math.exp2(-1 / self._memory))

    def victim_rank(self, replica: str) -> float:
        """How warm the adapter is that would make room on the replica; -inf where a slot is free, inf without room."""
        held = self._held[replica]
        if len(held) < self._slots[replica]:
            return -math.inf
        return min((self._rank(adapter) for adapter in held if self._may_go(replica, adapter)), default=math.inf)

    # What happens.

    def begin(self, replica: str, adapter: str) -> None:
        """A request goes to the replica for the adapter."""
        self._in_flight[replica, adapter] += 1
        self._uses += 1
        now = self._uses / self._memory
        high, low = max(self._rank(adapter), now), min(self._rank(adapter), now)
        self._heat[adapter] = high + math.log2(1 + math.exp2(low - high))

    def end(self, replica: str, adapter: str) -> None:
        """The request is over."""
        self._in_flight[replica, adapter] -= 1
        if self._in_flight[replica, adapter] <= 0:
            del self._in_flight[replica, adapter]

    def admit(self, replica: str, adapter: str) -> list[str]:
        """Give the adapter a slot, to be loaded; returns those evicted for it. Raises NoRoomError, changing nothing."""
        held = self._held[replica]
        if adapter in held:
            return []
        # Others may have loaded beyond the slots, and then more than one goes.
        idle = sorted((other for other in held if self._may_go(replica, other)), key=self._rank)
        excess = max(0, len(held) + 1 - self._slots[replica])
        if excess > len(idle):
            raise NoRoomError(f"all {len(held)} adapters on {replica} are in use")
        for evicted in idle[:excess]:
            del held[evicted]
        held[adapter] = 0
        return idle[:excess]

    def load_ended(self, replica: str, adapter: str) -> None:
        """The adapter is loaded, and takes work."""
        if self._held[replica].get(adapter) == 0:
            self._held[replica][adapter] = self._next_load()

    def drop(self, replica: str, adapter: str, load: int = 0) -> None:
        """The replica does not hold the adapter by that load: it has lost it, or, for 0, the load failed."""
        if self._held[replica].get(adapter) == load:
            del self._held[replica][adapter]

    def clear(self, replica: str) -> None:
        """The replica holds nothing: it is gone."""
        self._held[replica].clear()

    def reconcile(self, replica: str, resident: frozenset[str]) -> None:
        """Believe what the replica says that it has loaded. What is being loaded here is not decided yet."""
        held = self._held[replica]
        for adapter in [adapter for adapter, load in held.items() if load and adapter not in resident]:
            del held[adapter]
        for adapter in resident:
            held[adapter] = held.get(adapter) or self._next_load()

    def forget(self, adapter: str) -> None:
        """The adapter is nobody's any more."""
        for held in self._held.values():
            held.pop(adapter, None)
        self._heat.pop(adapter, None)

    def _next_load(self) -> int:
        self._loads += 1
        return self._loads

    def _may_go(self, replica: str, adapter: str) -> bool:
        return (
            bool(self._held[replica][adapter]) and adapter not in self._pinned and not self._in_flight[replica, adapter]
        )

    def _rank(self, adapter: str) -> float:
        return self._heat.get(adapter, -math.inf)
