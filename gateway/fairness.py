"""Fair sharing: who is answered next when more is asked than can be answered at once.

Each key waits in a lane of its own. A turn that becomes free goes to the lane that has had least for its weight
(start-time fair queuing), so that a flood of one key delays nobody but itself. No key holds every turn, and where the
queue is full the longest lane gives way. `Lanes` is the rule, without a clock or a loop; `Turns` makes callers wait.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar, get_args

Ticket = TypeVar("Ticket")
Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)  # the first goes first, in an engine's queue too
# Turns that a lane gets for each that a lane of weight 1 gets, while both wait.
WEIGHTS: dict[Priority, int] = {"high": 16, "normal": 4, "low": 1}
RETRY_MAX_S = 60


class TooBusyError(Exception):
    """More is asked than can be answered soon. retry_after_s: when it is worth asking again."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """Whose lane a request waits in. concurrency: turns that it may hold at once; None leaves it to the gateway."""

    name: str
    priority: Priority = "normal"
    concurrency: int | None = None


@dataclass(kw_only=True, eq=False)
class _Lane(Generic[Ticket]):
    weight: int
    most: int
    held: int = 0
    served_to: float = 0.0  # virtual time until which it has had its part
    waiting: deque[Ticket] = field(default_factory=deque)

    @property
    def excess(self) -> float:
        """How long its queue is for its weight."""
        return len(self.waiting) / self.weight


class Lanes(Generic[Ticket]):
    """The queue as a data structure.

    turns: how many are held at once, at least 1. per_tenant: how many of them one tenant may hold. places: how many
    tickets wait at most, over all lanes.
    """

    def __init__(self, *, turns: int, per_tenant: int, places: int) -> None:
        self._turns = turns
        self._per_tenant = per_tenant
        self._places = places
        self._lanes: dict[str, _Lane[Ticket]] = {}
        self._virtual_time = 0.0
        self.held = 0
        self.waiting = 0

    def enter(self, tenant: Tenant, ticket: Ticket) -> Ticket | None:
        """Take a place in the tenant's lane; returns the ticket that gives way to it, perhaps itself, if any must."""
        lane = self._lanes.get(tenant.name)
        if lane is None:
            lane = self._lanes[tenant.name] = _Lane(weight=1, most=1)
        lane.weight = WEIGHTS[tenant.priority]
        lane.most = min(tenant.concurrency or self._per_tenant, self._per_tenant)
        lane.waiting.append(ticket)
        self.waiting += 1
        startable = self.held < self._turns and lane.held < lane.most and len(lane.waiting) == 1
        if self.waiting <= self._places or startable:
            return None
        longest = max(self._lanes.values(), key=lambda lane: lane.excess)
        self.waiting -= 1
        return longest.waiting.pop()

    def started(self) -> Iterator[tuple[str, Ticket]]:
        """Hand out the turns that are free; yields each tenant's name and ticket."""
        while self.waiting and self.held < self._turns:
            able = [(name, lane) for name, lane in self._lanes.items() if lane.waiting and lane.held < lane.most]
            if not able:
                return
            name, lane = min(able, key=lambda item: max(item[1].served_to, self._virtual_time))
            self._virtual_time = max(lane.served_to, self._virtual_time)
            lane.served_to = self._virtual_time + 1 / lane.weight
            lane.held += 1
            self.held += 1
            self.waiting -= 1
            yield name, lane.waiting.popleft()

    def leave(self, name: str, ticket: Ticket) -> None:
        """Give up a place in the queue, if it is still held."""
        lane = self._lanes.get(name)
        if lane is not None and ticket in lane.waiting:
            lane.waiting.remove(ticket)
            self.waiting -= 1
            self._forget(name, lane)

    def end(self, name: str) -> None:
        """Give a turn back."""
        lane = self._lanes[name]
        lane.held -= 1
        self.held -= 1
        self._forget(name, lane)

    def ahead(self, name: str) -> int:
        """How many tickets wait in a tenant's lane."""
        lane = self._lanes.get(name)
        return len(lane.waiting) if lane else 0

    def _forget(self, name: str, lane: _Lane[Ticket]) -> None:
        """Drop an idle lane once the others have caught up with it, so that asking in bursts gains nothing."""
        if not (lane.held or lane.waiting) and (lane.served_to <= self._virtual_time or not self.waiting):
            del self._lanes[name]


class Turn:
    """The right to be answered. Give it back once; more often does no harm."""

    def __init__(self, turns: Turns, name: str) -> None:
        self._turns: Turns | None = turns
        self._name = name
        self._since_s = time.monotonic()

    def give_back(self) -> None:
        """Let another be answered."""
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.ended(self._name, time.monotonic() - self._since_s)


class Turns:
    """Callers wait here. wait_s: how long at most. on_change: is told how many turns are held and how many wait."""

    def __init__(
        self,
        *,
        turns: int,
        per_tenant: int | None,
        places: int,
        wait_s: float,
        on_change: Callable[[int, int], None] = lambda _held, _waiting: None,
    ) -> None:
        # One key never holds the last quarter, so that another's first request need not wait for a turn to end.
        per_tenant = min(per_tenant or max(1, turns - turns // 4), turns)
        self._lanes: Lanes[asyncio.Future[None]] = Lanes(turns=turns, per_tenant=per_tenant, places=places)
        self._turns = turns
        self._wait_s = wait_s
        self._mean_turn_s = 1.0
        self._on_change = on_change

    @property
    def held(self) -> int:
        """Turns that are held now."""
        return self._lanes.held

    @property
    def waiting(self) -> int:
        """Callers that wait now."""
        return self._lanes.waiting

    async def take(self, tenant: Tenant) -> Turn:
        """Wait for a turn; raises TooBusyError when the queue is full, or none comes in time."""
        ticket = asyncio.get_running_loop().create_future()
        out = self._lanes.enter(tenant, ticket)
        if out is not None and not out.done():
            out.set_exception(self._too_busy(tenant.name, "too many requests wait here already"))
        self._start()
        if not ticket.done():
            try:
                async with asyncio.timeout(self._wait_s):
                    await ticket
            except BaseException as error:
                if ticket.done() and not ticket.cancelled() and ticket.exception() is None:
                    self.ended(tenant.name, None)  # the turn came in the moment in which its caller went
                else:
                    self._lanes.leave(tenant.name, ticket)
                    self._start()
                if isinstance(error, TimeoutError):
                    raise self._too_busy(tenant.name, f"no turn came in {self._wait_s:g} s") from None
                raise
        ticket.result()
        return Turn(self, tenant.name)

    def ended(self, name: str, held_s: float | None) -> None:
        """Take a turn back. held_s: how long it was held, where it was of use."""
        if held_s is not None:
            self._mean_turn_s += (held_s - self._mean_turn_s) / 32
        self._lanes.end(name)
        self._start()

    def _start(self) -> None:
        for name, ticket in self._lanes.started():
            if ticket.done():  # its caller has just gone
                self._lanes.end(name)
            else:
                ticket.set_result(None)
        self._on_change(self.held, self.waiting)

    def _too_busy(self, name: str, why: str) -> TooBusyError:
        wait_s = (self._lanes.ahead(name) + 1) * self._mean_turn_s / self._turns
        return TooBusyError(f"{why}; repeat the request later", min(max(1, math.ceil(wait_s)), RETRY_MAX_S))
