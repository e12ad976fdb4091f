"""The table of residency against a model of it, and what it forgets first."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.routing.residency import NoRoomError, Residency

REPLICAS = ("r0", "r1")
ADAPTERS = tuple(f"lora-{number}" for number in range(6))
PINNED = ADAPTERS[0]
SLOTS = 3

replicas = st.sampled_from(REPLICAS)
adapters = st.sampled_from(ADAPTERS)


class Table(RuleBasedStateMachine):
    """Plain LRU, with what is in flight or pinned kept, is what a memory of one comes to."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Residency(dict.fromkeys(REPLICAS, SLOTS), memory=1, pinned=[PINNED])
        self.held: dict[str, dict[str, int]] = {replica: {} for replica in REPLICAS}
        self.flying: list[tuple[str, str]] = []
        self.recent: list[str] = []  # least recently used first

    def idle(self, replica: str) -> list[str]:
        """What may go, never used first, then by last use; those never used in any order."""
        return [
            adapter
            for adapter in sorted(self.held[replica], key=lambda a: self.recent.index(a) if a in self.recent else -1)
            if self.held[replica][adapter] and adapter != PINNED and (replica, adapter) not in self.flying
        ]

    @rule(replica=replicas, adapter=adapters)
    def admit(self, replica: str, adapter: str) -> None:
        held = self.held[replica]
        excess = max(0, len(held) + 1 - SLOTS) if adapter not in held else 0
        idle = self.idle(replica)
        if excess > len(idle):
            assert not self.table.has_room(replica)
            with pytest.raises(NoRoomError):
                self.table.admit(replica, adapter)
            return
        evicted = self.table.admit(replica, adapter)
        assert len(evicted) == excess
        used = [a for a in evicted if a in self.recent]
        unused = [a for a in idle if a not in self.recent]
        assert used == [a for a in idle if a in self.recent][: len(used)]
        assert not used or len(evicted) - len(used) == len(unused)
        for gone in evicted:
            del held[gone]
        held.setdefault(adapter, 0)

    @rule(replica=replicas, adapter=adapters)
    def begin(self, replica: str, adapter: str) -> None:
        self.table.begin(replica, adapter)
        self.flying.append((replica, adapter))
        if adapter in self.recent:
            self.recent.remove(adapter)
        self.recent.append(adapter)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        flying = data.draw(st.sampled_from(self.flying))
        self.flying.remove(flying)
        self.table.end(*flying)

    @rule(replica=replicas, adapter=adapters)
    def load_ended(self, replica: str, adapter: str) -> None:
        self.table.load_ended(replica, adapter)
        if self.held[replica].get(adapter) == 0:
            self.held[replica][adapter] = self.table.loaded(replica, adapter)
            assert self.table.loaded(replica, adapter) > 0

    @rule(replica=replicas, adapter=adapters, late=st.booleans())
    def drop(self, replica: str, adapter: str, late: bool) -> None:
        load = self.held[replica].get(adapter, 0)
        self.table.drop(replica, adapter, load + late)
        if not late:
            self.held[replica].pop(adapter, None)

    @rule(replica=replicas, said=st.frozensets(adapters))
    def reconcile(self, replica: str, said: frozenset[str]) -> None:
        self.table.reconcile(replica, said)
        held = self.held[replica]
        kept = {adapter: load for adapter, load in held.items() if not load or adapter in said}
        told = {adapter: kept.get(adapter) or self.table.loaded(replica, adapter) for adapter in said}
        self.held[replica] = kept | told

    @rule(replica=replicas)
    def clear(self, replica: str) -> None:
        self.table.clear(replica)
        self.held[replica].clear()

    @invariant()
    def agrees(self) -> None:
        for replica in REPLICAS:
            held = self.held[replica]
            assert self.table.resident(replica) == {adapter for adapter, load in held.items() if load}
            assert self.table.loading(replica) == sum(not load for load in held.values())
            for adapter in ADAPTERS:
                assert (replica in self.table.holders(adapter)) == (adapter in held)
                assert self.table.loaded(replica, adapter) == held.get(adapter, 0)
                assert self.table.in_flight(replica, adapter) == self.flying.count((replica, adapter))
            assert self.table.has_room(replica) == (len(held) + 1 - SLOTS <= len(self.idle(replica)))


TestTable = Table.TestCase


@given(st.lists(st.tuples(adapters, st.booleans()), max_size=60), st.sampled_from([1, 8, 1000]))
def test_within_the_slots_and_nothing_that_runs_goes(steps: list[tuple[str, bool]], memory: int) -> None:
    table = Residency({"r": SLOTS}, memory=memory, pinned=[PINNED])
    table.admit("r", PINNED)
    running: list[str] = []
    for adapter, stays in steps:
        try:
            evicted = table.admit("r", adapter)
        except NoRoomError:
            assert len({*running, PINNED}) == SLOTS
            continue
        assert not {PINNED, *running} & set(evicted)
        table.load_ended("r", adapter)
        table.begin("r", adapter)
        if stays:
            running.append(adapter)
        else:
            table.end("r", adapter)
        assert len([a for a in ADAPTERS if "r" in table.holders(a)]) <= SLOTS


def test_what_is_asked_for_often_outlives_what_was_asked_for_last() -> None:
    often, last, new = ADAPTERS[1:4]
    for memory, goes in ((1, often), (100, last)):
        table = Residency({"r": 2}, memory=memory)
        for adapter in (often, often, often, last):
            table.admit("r", adapter)
            table.load_ended("r", adapter)
            table.begin("r", adapter)
            table.end("r", adapter)
        assert table.admit("r", new) == [goes]


def test_what_was_asked_for_often_long_ago_goes() -> None:
    often, now, new = ADAPTERS[1:4]
    table = Residency({"r": 2}, memory=10)
    for adapter in [often] * 50 + [now] * 50:
        table.admit("r", adapter)
        table.load_ended("r", adapter)
        table.begin("r", adapter)
        table.end("r", adapter)
    assert table.admit("r", new) == [often]


def test_a_share_is_the_part_of_the_uses_and_nothing_lasts_for_ever() -> None:
    table = Residency({"r": 8}, memory=200)
    drawn = random.Random(1).choices(ADAPTERS, weights=[50, 25, 10, 8, 5, 2], k=50_000)  # noqa: S311 - from a seed
    for adapter in drawn:
        table.begin("r", adapter)
        table.end("r", adapter)
    assert table.share(ADAPTERS[0]) == pytest.approx(0.5, abs=0.1)
    assert table.share(ADAPTERS[1]) == pytest.approx(0.25, abs=0.1)
    assert sum(map(table.share, ADAPTERS)) == pytest.approx(1, rel=1e-6)
    assert table.share("lora-never") == 0


def test_what_is_being_loaded_does_not_go() -> None:
    table = Residency({"r": 1}, memory=1)
    table.admit("r", ADAPTERS[0])
    assert not table.has_room("r")
    with pytest.raises(NoRoomError):
        table.admit("r", ADAPTERS[1])
    table.load_ended("r", ADAPTERS[0])
    assert table.admit("r", ADAPTERS[1]) == [ADAPTERS[0]]


def test_others_may_have_loaded_beyond_the_slots() -> None:
    table = Residency({"r": 2}, memory=1)
    table.reconcile("r", frozenset(ADAPTERS[:4]))
    assert len(table.admit("r", ADAPTERS[5])) == 3
    assert len([a for a in ADAPTERS if "r" in table.holders(a)]) == 2


@pytest.mark.parametrize("wrong", [{"slots": {"r": 0}, "memory": 1}, {"slots": {"r": 1}, "memory": 0.5}])
def test_what_can_hold_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Residency(**wrong)  # type: ignore[arg-type]
