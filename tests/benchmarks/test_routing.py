from __future__ import annotations

import json
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.routing import __main__ as benchmark
from benchmarks.routing.bounds import fewest_loads, without_foresight
from benchmarks.routing.policies import OURS, policies
from benchmarks.routing.simulation import Death, Machine, Simulation
from benchmarks.routing.workload import Load, generate, popularity

SMALL = Load(requests=1500, adapters=60, rate_s=6)
MACHINE = Machine(replicas=4, slots=8)


def run(name: str, death: Death | None = None, load: Load = SMALL) -> Simulation:
    simulation = Simulation(MACHINE, policies(MACHINE, 1)[name], generate(load, 1), death)
    simulation.run()
    return simulation


def test_the_last_line_has_every_figure_and_is_the_same_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["benchmarks.routing", "--quick"])
        benchmark.main()
        lines.append(capsys.readouterr().out.splitlines()[-1])
    assert lines[0] == lines[1]
    marker, _, figures = lines[0].partition(" ")
    result = json.loads(figures)
    assert marker == "RESULT"
    assert result["best_possible"] <= result["cold_load_rate"] < result["cold_load_rate_least_loaded"]
    assert result["best_possible_p99_wait_s"] <= result["p99_wait_s"] <= result["p99_wait_s_least_loaded"]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(1, 3))
def test_no_schedule_loads_less_than_the_bound(asked: list[int], slots: int) -> None:
    """Held against every choice of evictions from every beginning."""
    names = [str(number) for number in asked]
    distinct = sorted(set(names))

    def fewest(position: int, held: frozenset[str]) -> int:
        if position == len(names):
            return 0
        name = names[position]
        if name in held:
            return fewest(position + 1, held)
        if len(held) < slots:
            return 1 + fewest(position + 1, held | {name})
        return 1 + min(fewest(position + 1, held - {gone} | {name}) for gone in held)

    beginnings = [frozenset(held) for held in combinations(distinct, min(slots, len(distinct)))]
    assert fewest_loads(names, slots) == min(fewest(0, held) for held in beginnings)


def test_without_foresight_the_tail_is_what_must_be_loaded() -> None:
    assert without_foresight([0.5, 0.25, 0.15, 0.1], 3) == pytest.approx(0.25)
    assert without_foresight(popularity(Load(adapters=10)).tolist(), 11) == pytest.approx(0)


@pytest.mark.parametrize("name", list(policies(MACHINE, 1)))
def test_every_request_is_answered_in_no_less_than_its_time(name: str) -> None:
    simulation = run(name)
    for request, outcome in zip(generate(SMALL, 1), simulation.outcomes, strict=True):
        assert outcome.end_s is not None
        assert outcome.wait_s >= 0
        alone_s = MACHINE.alone_s(request.tokens)
        assert outcome.end_s - request.at_s >= outcome.wait_s + alone_s * (1 - 1e-9)
    bound = fewest_loads([request.adapter for request in generate(SMALL, 1)], MACHINE.replicas * MACHINE.slots)
    assert simulation.deferred or len(simulation.load_starts) >= bound
    assert not simulation.deferred or name == "consistent hashing", "the bound is of requests in order"


def test_one_request_alone_takes_its_load_and_its_tokens() -> None:
    load = Load(requests=1, adapters=1)
    (outcome,) = run(OURS, load=load).outcomes
    (request,) = generate(load, 1)
    assert outcome.cold
    assert outcome.wait_s == pytest.approx(MACHINE.load_s)
    assert outcome.end_s == pytest.approx(request.at_s + MACHINE.load_s + MACHINE.alone_s(request.tokens))


@pytest.mark.parametrize("name", list(policies(MACHINE, 1)))
def test_a_death_loses_only_what_ran_there(name: str) -> None:
    at_s = generate(SMALL, 1)[750].at_s
    simulation = run(name, Death(replica="replica-0", at_s=at_s, back_s=20))
    lost = [
        request.at_s
        for request, outcome in zip(generate(SMALL, 1), simulation.outcomes, strict=True)
        if outcome.end_s is None
    ]
    assert len(lost) <= MACHINE.max_batch
    assert all(arrived_s <= at_s for arrived_s in lost)


def test_requests_come_in_order_by_zipfs_law_and_drift_moves_ranks() -> None:
    load = Load(requests=20_000, adapters=100)
    requests = generate(load, 3)
    assert all(one.at_s <= other.at_s for one, other in pairwise(requests))
    counts = sorted((sum(r.adapter == name for r in requests) for name in {r.adapter for r in requests}), reverse=True)
    assert counts[0] / len(requests) == pytest.approx(popularity(load)[0], rel=0.1)
    assert requests == generate(load, 3) != generate(load, 4)
    moved = generate(Load(requests=20_000, adapters=100, drift=3), 3)
    assert moved[:5000] != moved[-5000:]
    assert {r.adapter for r in moved} <= {r.adapter for r in requests}
