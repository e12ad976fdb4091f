"""Turns: whoever floods waits for itself, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth import share_key
from gateway.cli.context import office
from gateway.fairness import WEIGHTS, Lanes, Priority, Tenant, TooBusyError, Turns
from tests.gateway.kit import Site, body

FLOOD, QUIET = Tenant(name="flood"), Tenant(name="quiet")


def serve(arrivals: list[tuple[float, Tenant]], *, turns: int, places: int, seed: int) -> dict[str, list[float]]:
    """What each tenant waited, in seconds of a made-up clock, on an engine whose answers take about a second."""
    lanes: Lanes[int] = Lanes(turns=turns, per_tenant=turns - turns // 4, places=places)
    chance = random.Random(seed)  # noqa: S311  a seed that repeats
    came = dict(enumerate(arrivals))
    events = [(time, number, "") for number, (time, _) in came.items()]
    heapq.heapify(events)
    waits: dict[str, list[float]] = {}
    while events:
        time, number, ended = heapq.heappop(events)
        if ended:
            lanes.end(ended)
        else:
            lanes.enter(came[number][1], number)
        for name, ticket in lanes.started():
            waits.setdefault(name, []).append(time - came[ticket][0])
            heapq.heappush(events, (time + chance.uniform(0.5, 1.5), ticket, name))
    assert lanes.held == lanes.waiting == 0
    return waits


def test_a_flood_delays_nobody_but_itself() -> None:
    quiet = [(i * 0.7, QUIET) for i in range(300)]
    flood = [(i * 0.002, FLOOD) for i in range(50_000)]
    alone = serve(quiet, turns=16, places=64, seed=1)
    beside = serve(quiet + flood, turns=16, places=64, seed=1)
    assert len(beside["quiet"]) == 300, "none of the quiet one's was sent away"
    # Both are answered in 0.5 to 1.5 s once their turn comes; with its quarter kept free it comes at once.
    assert max(alone["quiet"]) == 0
    assert max(beside["quiet"]) == 0
    assert len(beside["flood"]) > 1000, "and the flood has all the rest"


def test_while_all_wait_turns_go_by_weight() -> None:
    lanes: Lanes[str] = Lanes(turns=1, per_tenant=1, places=10_000)
    priorities: tuple[Priority, ...] = ("low", "normal", "high")
    for priority in priorities:
        for _ in range(1000):
            lanes.enter(Tenant(name=priority, priority=priority), priority)
    got: Counter[str] = Counter()
    for _ in range(sum(WEIGHTS.values()) * 10):
        for name, _ in list(lanes.started()):
            got[name] += 1
            lanes.end(name)
    share = got.total() / sum(WEIGHTS.values())
    for priority in priorities:
        assert got[priority] == pytest.approx(WEIGHTS[priority] * share, abs=2)


@given(
    st.lists(
        st.tuples(st.sampled_from(["enter", "end", "leave"]), st.sampled_from("abc"), st.sampled_from([None, 1, 2])),
        max_size=80,
    ),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_no_bound_is_passed_and_no_ticket_is_lost(
    steps: list[tuple[str, str, int | None]], turns: int, places: int
) -> None:
    lanes: Lanes[int] = Lanes(turns=turns, per_tenant=turns, places=places)
    waiting: dict[int, str] = {}
    held: Counter[str] = Counter()
    for number, (what, name, most) in enumerate(steps):
        if what == "enter":
            waiting[number] = name
            out = lanes.enter(Tenant(name=name, concurrency=most), number)
            if out is not None:
                del waiting[out]
        elif what == "end" and held[name]:
            held[name] -= 1
            lanes.end(name)
        elif what == "leave" and (mine := [ticket for ticket, of in waiting.items() if of == name]):
            del waiting[mine[0]]
            lanes.leave(name, mine[0])
        for of, ticket in list(lanes.started()):
            assert waiting.pop(ticket) == of
            held[of] += 1
        assert held.total() == lanes.held <= turns
        assert len(waiting) == lanes.waiting <= places


async def test_a_turn_that_does_not_come_in_time_is_given_up() -> None:
    turns = Turns(turns=1, per_tenant=None, places=9, wait_s=0.02)
    turn = await turns.take(FLOOD)
    with pytest.raises(TooBusyError, match=r"no turn came in 0\.02 s") as error:
        await turns.take(QUIET)
    assert error.value.retry_after_s >= 1
    assert (turns.held, turns.waiting) == (1, 0)
    turn.give_back()
    turn.give_back()
    assert turns.held == 0


async def test_a_caller_who_goes_frees_its_place_and_its_turn() -> None:
    turns = Turns(turns=1, per_tenant=None, places=9, wait_s=60)
    first = await turns.take(FLOOD)
    going, staying = (asyncio.create_task(turns.take(QUIET)) for _ in range(2))
    await asyncio.sleep(0)
    # The turn comes in the very moment in which the one it comes to is cancelled.
    first.give_back()
    going.cancel()
    (await asyncio.wait_for(staying, 5)).give_back()
    assert going.cancelled()
    assert (turns.held, turns.waiting) == (0, 0)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, "concurrent = 2\nqueue = 1\nqueue_s = 20")


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=body())


async def test_beyond_the_queue_callers_are_told_when_to_come_again(site: Site) -> None:
    site.engine.delay_s = 0.01
    async with site.serve() as (client, gateway):
        replies = await asyncio.gather(*(ask(client) for _ in range(6)))
        metrics = gateway.metrics.render().decode()
    statuses = Counter(reply.status_code for reply in replies)
    assert statuses == {200: 3, 429: 3}
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert refused.json()["error"]["code"] == "too_busy"
    assert int(refused.headers["retry-after"]) >= 1
    assert "tributary_requests_answering 0.0" in metrics
    assert site.engine.begun == 3
    assert len(site.entries("usage.recorded")) == 3
    assert site.entries("request.voided") == []
    site.check()


async def test_a_key_of_concurrency_one_is_answered_one_at_a_time(site: Site) -> None:
    with office(site.config) as o, o.write() as transaction:
        share_key(transaction.connection, site.key_id, concurrency=1, priority="high")
    site.engine.delay_s = 0.005
    async with site.serve() as (client, gateway):
        asking = [asyncio.create_task(ask(client)) for _ in range(2)]
        most = 0
        while not all(task.done() for task in asking):
            most = max(most, (await gateway.engine.health()).generating)
            await asyncio.sleep(0.001)
    assert [task.result().status_code for task in asking] == [200, 200]
    assert most <= 1
