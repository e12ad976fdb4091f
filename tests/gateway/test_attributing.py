"""Attribution off the request path: the jobs, their faults, and what is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway import answers, attributing
from gateway.cli.context import office
from gateway.grounding import Message
from gateway.settings import load
from metering import CommitError, Expected, Transaction
from tests.gateway.kit import CONFIG, Site, until


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_an_attribution_whose_reply_was_lost_is_found_and_not_failed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attributing, "ATTEMPTS_MAX", 1)
    async with site.open() as gateway:
        transactions, commit = gateway.transactions, gateway.transactions.commit
        lost = iter([True])

        async def lose_the_reply(kind: str, work: Callable[[Transaction], Any], *expected: Expected) -> Any:
            done = await commit(kind, work, *expected)
            if kind == "attribution" and next(lost, False):
                raise CommitError("the reply was lost")
            return done

        monkeypatch.setattr(transactions, "commit", lose_the_reply)
        answer = await gateway.pipeline.open(site.caller, site.question(gateway, "guide", mode="inline"))
        assert [delta async for delta in answer.deltas()]
    assert answer.attribution["status"] == "attributed"
    assert len(site.entries("answer.attributed")) == 1
    assert site.check()["suspense"] == 0


async def test_attribution_follows_and_pays_the_owner(site: Site) -> None:
    site.engine.score_as = lambda prompt, answer: [-0.1 if "Petra in 1803" in prompt else -2.0] * len(answer)
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway, "guide", mode="inline"))
        assert [delta async for delta in answer.deltas()]
    assert answer.attribution["status"] == "attributed"
    assert [player["share_ppm"] for player in answer.attribution["players"]] == [1_000_000]
    charge_nano = int(answer.attribution["charge_nano"])
    held = site.check()
    assert held["suspense"] == 0
    assert held["contributor:ada"] == pytest.approx(charge_nano * 0.7, abs=1)
    (record,) = site.entries("answer.attributed")
    assert record["coalitions"] == [[[], -2.0 * 27], [[0], pytest.approx(-0.1 * 27)]]


async def test_a_gateway_that_is_no_worker_leaves_the_job_to_one_that_is(site: Site) -> None:
    working = site.settings
    site.settings = working.model_copy(update={"attribution": working.attribution.model_copy(update={"worker": False})})
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway, "guide"))
        assert [delta async for delta in answer.deltas()]
        await asyncio.sleep(0.2)
        assert (await gateway.transactions.read(answers.pending)) == [answer.request_id]
    site.settings, site.engine.down = working, False
    async with site.open("gateway-2") as gateway:
        await until(lambda: bool(site.entries("answer.attributed")))
    site.check()


async def test_an_answer_that_no_document_helped_pays_no_owner(site: Site) -> None:
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway, "guide", mode="inline"))
        assert [delta async for delta in answer.deltas()]
    assert "do not make the answer more likely" in answer.attribution["reason"]
    assert "contributor:ada" not in site.check()


async def test_a_scorer_that_returns_nonsense_fails_the_job_and_leaves_the_money_in_suspense(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attributing, "RETRY_S", 0)
    site.engine.score_as = lambda _prompt, answer: [float("nan")] * len(answer)
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway, "guide"))
        assert [delta async for delta in answer.deltas()]
        charge_nano = int(answer.attribution["charge_nano"])

        async def status() -> str:
            row = await gateway.transactions.read(lambda c: answers.find(c, answer.request_id))
            return row.status

        async with asyncio.timeout(20):
            while await status() == "pending":
                await asyncio.sleep(0.01)
        row = await gateway.transactions.read(lambda c: answers.find(c, answer.request_id))
    assert (row.status, row.attempts) == ("failed", attributing.ATTEMPTS_MAX)
    assert "NaN" in orjson.loads(row.attribution)["reason"]
    assert site.check()["suspense"] == charge_nano

    site.engine.score_as = lambda prompt, answer: [-0.1 if "Petra in 1803" in prompt else -2.0] * len(answer)
    site.engine.down = False
    with office(site.config) as o, o.write() as transaction:
        answers.retry(transaction.connection, answer.request_id)
    async with site.open() as gateway:
        await until(lambda: bool(site.entries("answer.attributed")))
        row = await gateway.transactions.read(lambda c: answers.find(c, answer.request_id))
    assert (row.status, row.inputs) == ("attributed", None)
    assert site.check()["suspense"] == 0


async def test_an_engine_that_renders_otherwise_by_now_attributes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attributing, "RETRY_S", 0)
    site.engine.delay_s = 0.01
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway, "guide"))
        render = site.engine.render

        async def with_another_template(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[int]:
            return [*await render(messages, tools), 10]

        monkeypatch.setattr(site.engine, "render", with_another_template)
        assert [delta async for delta in answer.deltas()]
        await until(lambda: site.sql("select status from answer") == [("failed",)])
        row = await gateway.transactions.read(lambda c: answers.find(c, answer.request_id))
    assert "does not render the conversation as it was" in orjson.loads(row.attribution)["reason"]
    assert site.check()["suspense"] == int(answer.attribution["charge_nano"])


async def test_a_job_that_a_stop_interrupted_is_done_by_the_next_start(site: Site) -> None:
    site.engine.score_as = lambda prompt, answer: [-0.1 if "Petra in 1803" in prompt else -2.0] * len(answer)
    async with site.open() as gateway:
        gateway.attributor._attribute = _never  # type: ignore[method-assign]
        answer = await gateway.pipeline.open(site.caller, site.question(gateway, "guide"))
        assert [delta async for delta in answer.deltas()]
    assert site.entries("answer.attributed") == []
    site.engine.down = False
    async with site.open():
        await until(lambda: bool(site.entries("answer.attributed")))
    assert site.check()["suspense"] == 0


async def test_an_answer_is_split_by_the_policy_under_which_it_was_given(site: Site) -> None:
    site.engine.score_as = lambda prompt, answer: [-0.1 if "Petra in 1803" in prompt else -2.0] * len(answer)
    async with site.open() as gateway:
        gateway.attributor._attribute = _never  # type: ignore[method-assign]
        answer = await gateway.pipeline.open(site.caller, site.question(gateway, "guide"))
        assert [delta async for delta in answer.deltas()]
    greedy = CONFIG.replace('name = "default"', 'name = "default"\nversion = 2\nfixed = { platform = 1000000 }', 1)
    site.config.write_text(greedy.replace('name = "guide"', 'name = "renamed"'))
    site.settings = load(site.config)
    site.engine.down = False
    async with site.open():
        await until(lambda: bool(site.entries("answer.attributed")))
    assert site.check()["contributor:ada"] == pytest.approx(int(answer.attribution["charge_nano"]) * 0.7, abs=1)
    policies = [(policy["policy"], policy["version"]) for policy in site.entries("policy.published")]
    assert policies == [("default:fake-base", 1), ("default:all-minilm-l6-v2", 1), ("default", 2)]


async def _never(_request_id: str) -> dict[str, Any]:
    raise asyncio.CancelledError


async def test_asking_twice_for_an_attribution_records_it_once(site: Site) -> None:
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway, "guide"))
        assert [delta async for delta in answer.deltas()]
        found = await asyncio.gather(*(gateway.attributor.attribute(answer.request_id) for _ in range(5)))
    assert {one["status"] for one in found} == {"attributed"}
    assert len(site.entries("answer.attributed")) == 1
    site.check()
