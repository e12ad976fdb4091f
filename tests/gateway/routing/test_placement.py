"""Laws of rendezvous hashing and of the choice among replicas."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.placement import Placement, Tuning, pressure, rendezvous
from gateway.routing.residency import Residency

REPLICAS = tuple(f"r{number}" for number in range(6))
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@given(names, st.lists(names, min_size=1, max_size=8, unique=True), st.data())
def test_without_a_replica_the_others_keep_their_order(adapter: str, replicas: list[str], data: st.DataObject) -> None:
    order = rendezvous(adapter, tuple(sorted(replicas)))
    assert sorted(order) == sorted(replicas)
    gone = data.draw(st.sampled_from(replicas))
    left = tuple(sorted(set(replicas) - {gone}))
    assert rendezvous(adapter, left) == tuple(replica for replica in order if replica != gone)


def test_homes_are_spread_evenly() -> None:
    homes = Counter(rendezvous(f"lora-{number}", REPLICAS)[0] for number in range(6000))
    assert all(850 < count < 1150 for count in homes.values())


def placement(slots: int = 2, seed: int = 1, **tuning: float) -> tuple[Placement, Residency]:
    table = Residency(dict.fromkeys(REPLICAS, slots), memory=100)
    sample = random.Random(seed).sample  # noqa: S311 - a test is repeated from its seed
    return Placement(table, sample=sample, tuning=Tuning(**tuning)), table


def hold(table: Residency, replica: str, adapter: str) -> None:
    table.admit(replica, adapter)
    table.load_ended(replica, adapter)


pressures = st.dictionaries(
    st.sampled_from(REPLICAS),
    st.builds(pressure, st.integers(0, 50), st.floats(0, 1)),
    max_size=len(REPLICAS),
)


@given(pressures, st.lists(st.tuples(st.sampled_from(REPLICAS), st.integers(0, 5)), max_size=20), st.integers(0, 5))
def test_the_choice_takes_work_and_holds_the_adapter_if_any_does(
    well: dict[str, float], held: list[tuple[str, int]], wanted: int
) -> None:
    choosing, table = placement()
    for replica, number in held:
        hold(table, replica, f"lora-{number}")
    adapter = f"lora-{wanted}"
    choice = choosing.choose(adapter, well)
    holders = [replica for replica in table.holders(adapter) if replica in well]
    if not well:
        assert choice is None
        return
    assert choice is not None
    assert choice.replica in well
    assert (choice.reason == "resident") == bool(holders)
    assert choice.replica in holders or not holders
    assert choice.copy_to is None or (choice.copy_to in well and choice.copy_to not in holders)
    base = choosing.choose(None, well)
    assert base is not None
    assert base.replica in well
    assert base.reason == "base"


def test_of_two_replicas_the_less_loaded_takes_it() -> None:
    choosing, table = placement()
    for replica in ("r0", "r1"):
        hold(table, replica, "lora")
    well = dict.fromkeys(REPLICAS, pressure(9)) | {"r1": pressure(3)}
    assert {choosing.choose("lora", well).replica for _ in range(20)} == {"r1"}  # type: ignore[union-attr]
    well["r1"] = pressure(3, 0.9)
    assert {choosing.choose("lora", well).replica for _ in range(20)} == {"r0"}  # type: ignore[union-attr]


def test_the_most_loaded_is_never_chosen_and_the_least_is_by_who_looks_at_all() -> None:
    choosing, _ = placement()
    well = {replica: pressure(number) for number, replica in enumerate(REPLICAS)}
    drawn = Counter(choosing.choose(None, well).replica for _ in range(600))  # type: ignore[union-attr]
    assert drawn["r5"] == 0
    assert drawn["r0"] > drawn["r1"] > drawn["r2"] > drawn["r3"] > drawn["r4"] > 0
    assert {choosing.choose(None, well, least_busy=True).replica for _ in range(20)} == {"r0"}  # type: ignore[union-attr]


def test_a_loaded_holder_goes_before_one_that_still_loads() -> None:
    choosing, table = placement()
    hold(table, "r0", "lora")
    table.admit("r1", "lora")
    well = dict.fromkeys(REPLICAS, pressure(0)) | {"r0": pressure(40)}
    choice = choosing.choose("lora", well)
    assert choice is not None
    assert (choice.replica, choice.copy_to) == ("r0", None)


def test_two_gateways_agree_where_an_adapter_is_loaded() -> None:
    well = dict.fromkeys(REPLICAS, pressure(0))
    for number in range(50):
        adapter = f"lora-{number}"
        chosen = {placement(seed=seed)[0].choose(adapter, well) for seed in range(5)}
        assert {choice.replica for choice in chosen if choice} == {rendezvous(adapter, REPLICAS)[0]}


def test_removing_a_replica_moves_only_its_adapters() -> None:
    well = dict.fromkeys(REPLICAS, pressure(0))
    left = {replica: busy for replica, busy in well.items() if replica != "r2"}
    for number in range(200):
        choosing, _ = placement()
        before, after = choosing.choose(f"lora-{number}", well), choosing.choose(f"lora-{number}", left)
        assert before is not None
        assert after is not None
        assert after == before or before.replica == "r2"


def test_a_load_goes_where_none_is_under_way_and_the_coldest_goes() -> None:
    choosing, table = placement(slots=2, homes=2)
    order = rendezvous("lora", REPLICAS)
    well = dict.fromkeys(REPLICAS, pressure(0))
    for replica, adapter, uses in ((0, "a", 2), (0, "b", 2), (1, "c", 2), (1, "cold", 1)):
        hold(table, order[replica], adapter)
        for _ in range(uses):
            table.begin(order[replica], adapter)
            table.end(order[replica], adapter)
    assert choosing.choose("lora", well).replica == order[1]  # type: ignore[union-attr]
    assert table.admit(order[1], "loading") == ["cold"]
    assert choosing.choose("lora", well).replica == order[0]  # type: ignore[union-attr]


def test_a_load_overflows_where_its_homes_are_too_busy_or_full_and_waits_where_all_are_full() -> None:
    choosing, table = placement(slots=1, homes=1)
    order = rendezvous("lora", REPLICAS)
    well = dict.fromkeys(REPLICAS, pressure(2)) | {order[0]: pressure(30)}
    choice = choosing.choose("lora", well)
    assert choice is not None
    assert (choice.replica, choice.reason) == (order[1], "overflow")
    for replica in REPLICAS:
        assert choosing.choose("lora", well) is not None
        hold(table, replica, "other")
        table.begin(replica, "other")
    assert choosing.choose("lora", well) is None


def test_an_adapter_has_as_many_copies_as_its_part_of_the_uses_warrants() -> None:
    choosing, table = placement(slots=4, spread=0.5)
    hold(table, "r0", "hot")
    hold(table, "r0", "tepid")
    for number in range(2000):
        adapter = "tepid" if number % 10 == 0 else "hot"
        table.begin("r0", adapter)
        table.end("r0", adapter)
    busy = dict.fromkeys(REPLICAS, pressure(1))
    for _ in range(10):
        busy |= {replica: pressure(30) for replica in table.holders("hot")}
        choice = choosing.choose("hot", busy)
        assert choice is not None
        if choice.copy_to is not None:
            hold(table, choice.copy_to, "hot")
    assert len(table.holders("hot")) == 3 == 1 + int(table.share("hot") * 0.5 * 6)
    quiet = dict.fromkeys(REPLICAS, pressure(1)) | {"r0": pressure(30)}
    assert choosing.choose("tepid", quiet).copy_to is None  # type: ignore[union-attr]


def test_a_quiet_fleet_copies_nothing() -> None:
    choosing, table = placement(slots=4)
    hold(table, "r0", "hot")
    for _ in range(2000):
        table.begin("r0", "hot")
        table.end("r0", "hot")
    quiet = dict.fromkeys(REPLICAS, pressure(0)) | {"r0": pressure(4)}
    assert choosing.choose("hot", quiet).copy_to is None  # type: ignore[union-attr]
