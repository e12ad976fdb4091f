"""Several replicas behind the engine protocol, while some of them fail."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.engines import AdapterNotLoaded, AdapterRejected, EngineRefused, EngineUnavailable, PromptTooLong
from gateway.routing.breaker import State
from gateway.routing.fleet import Fleet, MixedFleet
from tests.gateway.routing.kit import LIMITS, Server, adapter, answer, ask, opener, servers, staged


async def test_a_hundred_first_requests_cause_one_load(tmp_path: Path) -> None:
    files = adapter(tmp_path)
    async with staged(servers(4, delay_s=0.001)) as stage:
        await stage.fleet.load(files)
        assert stage.loads == []
        said = await asyncio.gather(*(answer(stage.fleet, files.name) for _ in range(100)))
        assert set(said) == {"Yes."}
        assert stage.loads == [files.name]
        assert stage.seen.loads == [stage.holder(files.name)]
        assert stage.fleet.resident() == {files.name}


async def test_scoring_loads_too_and_goes_where_the_adapter_is(tmp_path: Path) -> None:
    files = adapter(tmp_path)
    async with staged(servers(3)) as stage:
        await stage.fleet.load(files)
        for _ in range(5):
            scores = await stage.fleet.score([[65], [66]], [67, 68], adapter=files.name)
            assert scores.logprobs.shape == (2, 2)
        assert stage.loads == [files.name]


async def test_work_without_an_adapter_is_spread() -> None:
    async with staged(servers(4, delay_s=0.001)) as stage:
        await asyncio.gather(*(answer(stage.fleet) for _ in range(80)))
        assert all(10 <= server.begun <= 30 for server in stage.servers.values())
        assert {reason for _, reason in stage.seen.routes} == {"base"}
        assert await stage.fleet.tokenize("ab") == [97, 98]


async def test_the_coldest_adapter_makes_room_and_none_that_answers(tmp_path: Path) -> None:
    files = [adapter(tmp_path, seed) for seed in range(4)]
    async with staged(servers(1), slots=2) as stage:
        for one in files:
            await stage.fleet.load(one)
        await answer(stage.fleet, files[0].name)
        async with aclosing(stage.fleet.generate(ask(files[1].name))) as held:
            await anext(held)
            for _ in range(3):
                await answer(stage.fleet, files[0].name)
            await answer(stage.fleet, files[2].name)
            await answer(stage.fleet, files[3].name)
            assert stage.fleet.resident() == {files[1].name, files[3].name}
        server = stage.servers["r0"]
        assert server.unloads == [files[0].name, files[2].name]
        assert len(stage.seen.evictions) == 2


async def test_a_request_waits_for_a_slot_and_gives_up_in_time(tmp_path: Path) -> None:
    one, other = adapter(tmp_path, 1), adapter(tmp_path, 2)
    async with staged(servers(1), slots=1, limits=replace(LIMITS, retry_s=0.05)) as stage:
        await stage.fleet.load(one)
        await stage.fleet.load(other)
        async with aclosing(stage.fleet.generate(ask(one.name))) as held:
            await anext(held)
            with pytest.raises(EngineUnavailable, match="every slot"):
                await answer(stage.fleet, other.name)
            waiting = asyncio.create_task(answer(stage.fleet, other.name))
            await asyncio.sleep(0.01)
        assert await waiting == "Yes."
        assert stage.fleet.resident() == {other.name}


async def test_what_fails_before_the_first_delta_is_tried_elsewhere() -> None:
    async with staged(servers(3)) as stage:
        stage.servers["r0"].down = stage.servers["r1"].down = True
        for _ in range(6):
            assert await answer(stage.fleet) == "Yes."
        assert stage.servers["r2"].finished == 6
        assert set(stage.seen.retries) <= {"r0", "r1"}
        assert stage.seen.retries


async def test_tries_end() -> None:
    async with staged(servers(5), limits=replace(LIMITS, tries=3)) as stage:
        for server in stage.servers.values():
            server.down = True
        with pytest.raises(EngineUnavailable, match="told to be down"):
            await answer(stage.fleet)
        assert len(stage.seen.retries) == 2
        stage.clock.now_s += 1
        stage.seen.retries.clear()
        with pytest.raises(EngineUnavailable):
            await stage.fleet.score([[1]], [2], adapter=None)
        assert len(stage.seen.retries) == 2


async def test_no_try_begins_after_the_deadline() -> None:
    async with staged(servers(3)) as stage:

        async def slowly_down(_request: object) -> object:
            stage.clock.now_s += LIMITS.retry_s
            raise EngineUnavailable("at last")
            yield

        for server in stage.servers.values():
            server.generate = slowly_down  # type: ignore[method-assign, assignment]
        with pytest.raises(EngineUnavailable, match="at last"):
            await answer(stage.fleet)
        assert stage.seen.retries == []


async def test_what_fails_after_the_first_delta_is_not_tried_again() -> None:
    async with staged(servers(3, fail_after=2)) as stage:
        stream = stage.fleet.generate(ask())
        said = "".join([(await anext(stream)).text for _ in range(3)])
        with pytest.raises(EngineUnavailable, match="after 2 tokens"):
            await anext(stream)
        assert said == "Ye"
        assert sum(server.begun for server in stage.servers.values()) == 1
        assert stage.seen.retries == []


async def test_a_replica_that_shows_nothing_has_failed() -> None:
    async with staged(servers(2), limits=replace(LIMITS, first_delta_s=0.02)) as stage:

        async def hang(_request: object) -> object:
            await asyncio.Event().wait()
            yield

        stage.servers["r0"].generate = hang  # type: ignore[method-assign, assignment]
        for _ in range(4):
            assert await answer(stage.fleet) == "Yes."
        assert set(stage.seen.retries) == {"r0"}
        stage.servers["r1"].generate = hang  # type: ignore[method-assign, assignment]
        with pytest.raises(EngineUnavailable, match=r"nothing for 0\.02 s"):
            await answer(stage.fleet)


@pytest.mark.parametrize("error", [EngineRefused("no", "tools"), PromptTooLong(tokens=9, limit_tokens=8)])
async def test_what_is_the_callers_fault_is_told_at_once(error: Exception) -> None:
    async with staged(servers(3)) as stage:
        asked = []

        async def refuse(_request: object) -> object:
            asked.append(1)
            raise error
            yield

        for server in stage.servers.values():
            server.generate = refuse  # type: ignore[method-assign, assignment]
        for _ in range(5):
            with pytest.raises(type(error)):
                await answer(stage.fleet)
        assert len(asked) == 5
        assert (await stage.fleet.health()).ready


async def test_a_breaker_opens_asks_again_with_one_and_closes() -> None:
    async with staged(servers(2)) as stage:
        stage.servers["r0"].down = True
        for _ in range(20):
            await answer(stage.fleet)
        assert stage.seen.breakers["r0"] is State.OPEN
        assert len(stage.seen.retries) == 3
        assert stage.servers["r1"].finished == 20
        stage.clock.now_s += 1
        for _ in range(20):
            await answer(stage.fleet)
        assert len(stage.seen.retries) == 4  # one probe, and the wait is twice as long
        stage.clock.now_s += 1
        stage.servers["r0"].down = False
        await asyncio.gather(*(answer(stage.fleet) for _ in range(8)))
        stage.clock.now_s += 1
        await asyncio.gather(*(answer(stage.fleet) for _ in range(20)))
        assert stage.servers["r0"].finished > 0
        await stage.fleet.poll()
        assert stage.seen.breakers["r0"] is State.CLOSED


async def test_a_replica_that_comes_back_is_not_punished_for_the_one_that_died() -> None:
    async with staged(servers(1)) as stage:
        server = stage.servers["r0"]
        server.down = True
        for _ in range(3):
            with pytest.raises(EngineUnavailable):
                await answer(stage.fleet)
        await stage.fleet.poll()
        assert not (await stage.fleet.health()).ready
        server.restart()
        await stage.fleet.poll()
        assert (await stage.fleet.health()).ready
        assert await answer(stage.fleet) == "Yes."


async def test_a_rejected_adapter_is_left_alone_for_a_while(tmp_path: Path) -> None:
    files = adapter(tmp_path)
    async with staged(servers(3, reject="it changes nothing")) as stage:
        await stage.fleet.load(files)
        for _ in range(10):
            with pytest.raises(AdapterRejected, match=f"rejects adapter {files.name}"):
                await answer(stage.fleet, files.name)
        assert stage.loads == [files.name]
        assert stage.fleet.resident() == frozenset()
        for server in stage.servers.values():
            server.reject = None
        stage.clock.now_s += LIMITS.quarantine_s
        assert await answer(stage.fleet, files.name) == "Yes."


async def test_files_that_changed_or_fit_no_base_never_reach_a_replica(tmp_path: Path) -> None:
    async with staged(servers(2)) as stage:
        with pytest.raises(AdapterRejected, match="made for other-base"):
            await stage.fleet.load(adapter(tmp_path, base="other-base"))
        files = adapter(tmp_path)
        with (files.path / "adapter_config.json").open("a") as opened:
            opened.write(" ")
        with pytest.raises(AdapterRejected, match="changed"):
            await stage.fleet.load(files)
        with pytest.raises(AdapterNotLoaded):
            await answer(stage.fleet, files.name)
        assert stage.loads == []


async def test_an_adapter_that_a_replica_lost_is_loaded_again_once(tmp_path: Path) -> None:
    files = adapter(tmp_path)
    async with staged(servers(3, delay_s=0.001)) as stage:
        await stage.fleet.load(files)
        await answer(stage.fleet, files.name)
        stage.servers[stage.holder(files.name)].restart()
        said = await asyncio.gather(*(answer(stage.fleet, files.name) for _ in range(50)))
        assert set(said) == {"Yes."}
        assert stage.loads == [files.name] * 2
        stage.servers[stage.holder(files.name)].restart()
        await stage.fleet.score([[1]], [2], adapter=files.name)
        assert stage.loads == [files.name] * 3


async def test_what_a_replica_says_that_it_holds_is_believed(tmp_path: Path) -> None:
    files, foreign = adapter(tmp_path, 1), adapter(tmp_path, 2)
    async with staged(servers(2)) as stage:
        await stage.fleet.load(files)
        await stage.servers["r0"].load(files)  # as another gateway would
        await stage.servers["r0"].load(foreign)  # as someone would who is none of ours
        await stage.fleet.poll()
        assert stage.fleet.resident() == {files.name}
        await answer(stage.fleet, files.name)
        assert stage.loads == [files.name, foreign.name]
        stage.servers["r0"].restart()
        await stage.fleet.poll()
        assert stage.fleet.resident() == frozenset()


async def test_a_dead_replicas_adapters_are_loaded_elsewhere(tmp_path: Path) -> None:
    files = [adapter(tmp_path, seed) for seed in range(6)]
    async with staged(servers(3), slots=6) as stage:
        for one in files:
            await stage.fleet.load(one)
            await answer(stage.fleet, one.name)
        dead = stage.holder(files[0].name)
        stage.servers[dead].down = True
        said = await asyncio.gather(*(answer(stage.fleet, one.name) for one in files * 3))
        assert set(said) == {"Yes."}
        await stage.fleet.poll()
        before = len(stage.loads)
        await asyncio.gather(*(answer(stage.fleet, one.name) for one in files))
        assert len(stage.loads) == before
        assert (await stage.fleet.health()).ready


async def test_a_load_that_fails_is_tried_on_another_replica(tmp_path: Path) -> None:
    files = adapter(tmp_path)
    async with staged(servers(2)) as stage:
        await stage.fleet.load(files)

        async def break_down(_files: object) -> None:
            raise EngineUnavailable("out of memory")

        await answer(stage.fleet, files.name)
        home = stage.holder(files.name)
        stage.servers[home].restart()
        stage.servers[home].load = break_down  # type: ignore[method-assign, assignment]
        assert await answer(stage.fleet, files.name) == "Yes."
        assert stage.holder(files.name) != home


async def test_a_caller_that_leaves_does_not_end_the_load_that_others_wait_for(tmp_path: Path) -> None:
    files = adapter(tmp_path)
    async with staged(servers(1, hold=asyncio.Event())) as stage:
        await stage.fleet.load(files)
        first, second = (asyncio.create_task(answer(stage.fleet, files.name)) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        assert await asyncio.gather(first, return_exceptions=True)
        hold = stage.servers["r0"].hold
        assert hold is not None
        hold.set()
        assert await second == "Yes."
        assert stage.loads == [files.name]


async def test_an_adapter_that_outgrows_its_replica_is_copied(tmp_path: Path) -> None:
    files = adapter(tmp_path)
    async with staged(servers(3, delay_s=0.005)) as stage:
        await stage.fleet.load(files)
        for _ in range(60):
            async with aclosing(stage.fleet.generate(ask(files.name))) as started:
                await anext(started)
        assert len(stage.loads) == 1
        for _ in range(3):
            await asyncio.gather(*(answer(stage.fleet, files.name) for _ in range(30)))
        assert 2 <= len(stage.loads) <= 3
        assert all(server.loads.count(files.name) <= 1 for server in stage.servers.values())


async def test_draining_lets_work_finish_and_takes_none() -> None:
    async with staged(servers(2, delay_s=0.005)) as stage:
        running = [asyncio.create_task(answer(stage.fleet)) for _ in range(10)]
        await asyncio.sleep(0.001)
        begun = stage.servers["r0"].begun
        assert begun > 0
        with capture_logs() as logged:
            stage.fleet.drain(["r0"])
            await asyncio.gather(*running)
            await stage.fleet.poll()
            await stage.fleet.poll()
        assert [entry["event"] for entry in logged] == ["replica_draining", "replica_drained"]
        for _ in range(5):
            await answer(stage.fleet)
        assert stage.servers["r0"].finished == stage.servers["r0"].begun == begun
        assert not stage.seen.working["r0"]
        stage.fleet.drain([])
        await asyncio.gather(*(answer(stage.fleet) for _ in range(20)))
        assert stage.servers["r0"].begun > begun


async def test_closing_lets_work_finish_and_takes_none() -> None:
    async with staged(servers(2, delay_s=0.005)) as stage:
        running = [asyncio.create_task(answer(stage.fleet)) for _ in range(6)]
        await asyncio.sleep(0.001)
        closing = asyncio.create_task(stage.fleet.close())
        await asyncio.sleep(0)
        with pytest.raises(EngineUnavailable):
            await answer(stage.fleet)
        assert await asyncio.gather(*running) == ["Yes."] * 6
        await closing
        assert all(server.closed for server in stage.servers.values())
        assert not (await stage.fleet.health()).ready


async def test_closing_does_not_wait_for_ever() -> None:
    async with staged(servers(1, text="A long story.", delay_s=0.2)) as stage:
        running = asyncio.create_task(answer(stage.fleet))
        await asyncio.sleep(0.01)
        await stage.fleet.close()
        with pytest.raises(EngineUnavailable):
            await running


async def test_unloading_waits_for_what_runs(tmp_path: Path) -> None:
    files = adapter(tmp_path)
    async with staged(servers(2)) as stage:
        await stage.fleet.load(files)
        async with aclosing(stage.fleet.generate(ask(files.name))) as held:
            await anext(held)
            unloading = asyncio.create_task(stage.fleet.unload(files.name))
            await asyncio.sleep(0.01)
            assert not unloading.done()
            with pytest.raises(AdapterNotLoaded):
                await answer(stage.fleet, files.name)
        await unloading
        assert stage.fleet.resident() == frozenset()
        with pytest.raises(AdapterNotLoaded):
            await stage.fleet.unload(files.name)


async def test_a_fleet_opens_with_some_replicas_down_and_takes_them_in_later() -> None:
    made = servers(3, down=True)
    made["r1"].down = False
    async with staged(made) as stage:
        assert await answer(stage.fleet) == "Yes."
        made["r0"].down = False
        await stage.fleet.poll()
        stage.servers["r1"].down = True
        assert await answer(stage.fleet) == "Yes."


async def test_a_fleet_with_every_replica_down_does_not_open() -> None:
    with pytest.raises(EngineUnavailable, match="no replica answers: r0, r1"):
        async with staged(servers(2, down=True)):
            pass


@pytest.mark.parametrize("differs", [{"base_digest": "1" * 64}, {"dtype": "bf16"}, {"base_model": "other"}])
async def test_a_fleet_of_different_bases_does_not_open(differs: dict[str, str]) -> None:
    made = servers(2) | {"odd": Server(**differs)}
    with pytest.raises(MixedFleet, match=next(iter(differs))):
        await Fleet.open({name: opener(server) for name, server in made.items()}, slots=4, limits=LIMITS)
    assert all(server.closed for server in made.values())


async def test_a_replica_of_another_base_is_not_taken_in_later() -> None:
    made = servers(1) | {"odd": Server(base_digest="1" * 64, down=True)}
    async with staged(made) as stage:
        made["odd"].down = False
        await stage.fleet.poll()
        for _ in range(5):
            await answer(stage.fleet)
        assert made["odd"].begun == 0


async def test_a_fleet_is_what_its_replicas_have_in_common() -> None:
    made = {
        "a": Server(context_tokens=100, noise_nats=0.1, options=frozenset({"n", "tools"}), version="1"),
        "b": Server(context_tokens=200, noise_nats=0.2, options=frozenset({"n"}), version="2"),
    }
    async with staged(made) as stage:
        fleet = stage.fleet
        assert (fleet.context_tokens, fleet.noise_nats, fleet.options) == (100, 0.2, {"n"})
        assert (fleet.name, fleet.version, fleet.base_model) == ("fake", "1, 2", "fake-base")


async def test_health_is_looked_at_in_the_background() -> None:
    async with staged(servers(2), limits=replace(LIMITS, poll_s=0.01)) as stage:
        stage.servers["r0"].down = True
        async with asyncio.timeout(5):
            while stage.seen.working["r0"]:
                await asyncio.sleep(0.005)
        for _ in range(5):
            await answer(stage.fleet)
        assert stage.seen.retries == []
