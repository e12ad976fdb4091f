"""A fleet in simulated time: replicas that batch, load adapters one at a time, and may die.

A replica runs up to `max_batch` requests, each of which gets one token a step; a step of b requests takes
`step_s + b · step_request_s`. What the batch has no place for queues, first come first served.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.routing.workload import Request
from gateway.routing.placement import Choice, pressure
from gateway.routing.residency import Residency


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The replicas, all alike. step_s etc.: seconds; load_s: one adapter's load, which no other load overlaps."""

    replicas: int = 8
    slots: int = 32
    load_s: float = 0.25
    step_s: float = 0.025
    step_request_s: float = 0.00075
    max_batch: int = 32

    def names(self) -> list[str]:
        """What the replicas are called."""
        return [f"replica-{number}" for number in range(self.replicas)]

    def alone_s(self, tokens: int) -> float:
        """How long an answer takes on an idle replica that holds its adapter."""
        return tokens * (self.step_s + self.step_request_s)


@dataclass(frozen=True, kw_only=True)
class Death:
    """A replica dies, and comes back empty after a while."""

    replica: str
    at_s: float
    back_s: float


class Policy(Protocol):
    """How a fleet chooses."""

    table: Residency

    def choose(self, adapter: str, pressures: Mapping[str, float]) -> Choice | None:
        """See Placement.choose."""
        ...


@dataclass(kw_only=True)
class Outcome:
    """One request's fate. wait_s: from its arrival until it runs; end_s: when it is answered, None if it was lost."""

    wait_s: float = 0.0
    end_s: float | None = None
    cold: bool = False  # it waited for a load, its own or one under way


@dataclass(eq=False)
class _Replica:
    name: str
    batch: list[tuple[float, int]] = field(default_factory=list)  # (tokens at which it ends, request), a heap
    queue: deque[int] = field(default_factory=deque)
    tokens: float = 0.0  # that a request which ran from the beginning would have
    seen_s: float = 0.0
    version: int = 0
    loads_until_s: float = 0.0
    loading: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    up: bool = True
    life: int = 0

    @property
    def requests(self) -> int:
        return len(self.batch) + len(self.queue) + sum(map(len, self.loading.values()))


class Simulation:
    """Runs one policy over one list of requests."""

    def __init__(self, machine: Machine, policy: Policy, requests: Sequence[Request], death: Death | None) -> None:
        self._machine = machine
        self._policy = policy
        self._requests = requests
        self._replicas = {name: _Replica(name) for name in machine.names()}
        self._at: dict[int, str] = {}  # request → replica
        self._waiting: deque[int] = deque()  # for a replica with room
        self._events: list[tuple[float, int, str, str, int]] = []
        self._order = itertools.count()
        self._now_s = 0.0
        self.outcomes = [Outcome() for _ in requests]
        self.load_starts: list[int] = []  # which request each load on demand was for
        self.copies = 0
        self.deferred = 0  # requests that found no replica with room, and so went after some that came later
        if death is not None:
            self._at_time(death.at_s, "die", death.replica)
            self._at_time(death.at_s + death.back_s, "back", death.replica)

    def run(self) -> None:
        """Run until every request has been answered or lost."""
        handle = {"end": self._end, "loaded": self._loaded, "die": self._die, "back": self._back}
        arriving = 0
        while arriving < len(self._requests) or self._events:
            if arriving < len(self._requests) and (
                not self._events or self._requests[arriving].at_s <= self._events[0][0]
            ):
                self._now_s = self._requests[arriving].at_s
                if not self._dispatch(arriving):
                    self._waiting.append(arriving)
                    self.deferred += 1
                arriving += 1
            else:
                self._now_s, _, kind, subject, number = heapq.heappop(self._events)
                handle[kind](subject, number)

    def _at_time(self, at_s: float, kind: str, subject: str, number: int = 0) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), kind, subject, number))

    def _dispatch(self, number: int) -> bool:
        adapter = self._requests[number].adapter
        table = self._policy.table
        pressures = {r.name: pressure(r.requests) for r in self._replicas.values() if r.up}
        choice = self._policy.choose(adapter, pressures)
        if choice is None:
            return False
        replica = self._replicas[choice.replica]
        if adapter not in replica.loading and not table.loaded(replica.name, adapter):
            self._load(replica, adapter)
            self.load_starts.append(number)
        table.begin(replica.name, adapter)
        self._at[number] = replica.name
        if table.loaded(replica.name, adapter):
            self._join(replica, number)
        else:
            self.outcomes[number].cold = True
            replica.loading[adapter].append(number)
        if choice.copy_to is not None:
            self._load(self._replicas[choice.copy_to], adapter)
            self.copies += 1
        return True

    def _load(self, replica: _Replica, adapter: str) -> None:
        self._policy.table.admit(replica.name, adapter)
        replica.loads_until_s = max(self._now_s, replica.loads_until_s) + self._machine.load_s
        _ = replica.loading[adapter]
        self._at_time(replica.loads_until_s, "loaded", f"{replica.name} {adapter}", replica.life)

    def _loaded(self, subject: str, life: int) -> None:
        name, adapter = subject.split()
        replica = self._replicas[name]
        if life == replica.life:
            self._policy.table.load_ended(name, adapter)
            for number in replica.loading.pop(adapter):
                self._join(replica, number)

    def _join(self, replica: _Replica, number: int) -> None:
        self._advance(replica)
        if len(replica.batch) < self._machine.max_batch:
            self._start(replica, number)
        else:
            replica.queue.append(number)
        self._next_end(replica)

    def _start(self, replica: _Replica, number: int) -> None:
        request = self._requests[number]
        self.outcomes[number].wait_s = self._now_s - request.at_s
        heapq.heappush(replica.batch, (replica.tokens + request.tokens, number))

    def _advance(self, replica: _Replica) -> None:
        """Give the batch the tokens of the time that passed."""
        if replica.batch:
            replica.tokens += (self._now_s - replica.seen_s) / self._step_s(replica)
        replica.seen_s = self._now_s

    def _step_s(self, replica: _Replica) -> float:
        return self._machine.step_s + len(replica.batch) * self._machine.step_request_s

    def _next_end(self, replica: _Replica) -> None:
        replica.version += 1
        if replica.batch:
            left = max(0.0, replica.batch[0][0] - replica.tokens)
            self._at_time(self._now_s + left * self._step_s(replica), "end", replica.name, replica.version)

    def _end(self, name: str, version: int) -> None:
        replica = self._replicas[name]
        if version != replica.version:
            return
        self._advance(replica)
        replica.tokens, number = heapq.heappop(replica.batch)
        self.outcomes[number].end_s = self._now_s
        self._leave(name, number)
        if replica.queue:
            self._start(replica, replica.queue.popleft())
        self._next_end(replica)
        self._retry_waiting()

    def _leave(self, name: str, number: int) -> None:
        self._policy.table.end(name, self._requests[number].adapter)
        del self._at[number]

    def _retry_waiting(self) -> None:
        for _ in range(len(self._waiting)):
            number = self._waiting.popleft()
            if not self._dispatch(number):
                self._waiting.append(number)

    def _die(self, name: str, _number: int) -> None:
        """What runs is lost, for its first token is out; what waits goes elsewhere."""
        replica = self._replicas[name]
        lost = [number for _, number in replica.batch]
        again = [*replica.queue, *itertools.chain.from_iterable(replica.loading.values())]
        for number in (*lost, *again):
            self._leave(name, number)
        self._policy.table.clear(name)
        self._replicas[name] = _Replica(name, up=False, life=replica.life + 1, version=replica.version + 1)
        self._waiting.extendleft(reversed(again))
        self._retry_waiting()

    def _back(self, name: str, _number: int) -> None:
        self._replicas[name].up = True
        self._replicas[name].seen_s = self._now_s
        self._retry_waiting()
