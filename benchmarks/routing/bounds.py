"""What no placement can beat, and what none can beat without seeing the future."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def fewest_loads(adapters: Sequence[str], slots: int) -> int:
    """Loads on demand that serving these requests takes at least, on replicas that have so many slots together.

    Whatever a fleet does, the adapters that it holds or loads are at most `slots`, and a request for any other loads
    one: while requests go to replicas in the order in which they come, it is a paging schedule of one cache. Belady's
    rule, which evicts what is needed furthest in the future, loads least; so it does from the best contents to begin
    with, the first distinct adapters that will be asked for.
    """
    never = len(adapters)
    next_use = [never] * len(adapters)
    last: dict[str, int] = {}
    for position in range(len(adapters) - 1, -1, -1):
        next_use[position] = last.get(adapters[position], never)
        last[adapters[position]] = position
    first_uses = sorted(last.items(), key=lambda item: item[1])[:slots]
    held = dict(first_uses)  # adapter → when it is used next
    furthest = [(-use, adapter) for adapter, use in first_uses]
    heapq.heapify(furthest)
    loads = 0
    for position, adapter in enumerate(adapters):
        if adapter not in held:
            loads += 1
            while len(held) >= slots:
                use, victim = heapq.heappop(furthest)
                if held.get(victim) == -use:  # else an old entry, from before its last use
                    del held[victim]
        held[adapter] = next_use[position]
        heapq.heappush(furthest, (-next_use[position], adapter))
    return loads


def without_foresight(popularity: Sequence[float], slots: int) -> float:
    """Part of independent requests that must load, at best, for who knows the popularities and not the future.

    All slots but one keep the most popular adapters, and one takes the rest in turn; optimal on demand (Aho, Denning
    and Ullman 1971). popularity: part of the requests of each adapter, most popular first.
    """
    return 1.0 - sum(popularity[: slots - 1])
