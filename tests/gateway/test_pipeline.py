"""Faults, staged with an engine that fails on command: whatever happens, the money is right and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from gateway import answers, pipeline
from gateway.cli.context import office
from gateway.database import DatabaseError
from gateway.engines import EngineUnavailable, PromptTooLong, SamplingParams
from gateway.grounding import Message
from gateway.identifiers import new_id
from gateway.settings import load
from metering import CommitError, Expected, InsufficientCredit, Transaction
from tests.gateway.kit import CONFIG, CREDIT_NANO, Site, until


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_the_last_byte_goes_only_when_the_usage_is_in_the_log(site: Site) -> None:
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway))
        text = "".join([delta.text async for delta in answer.deltas()])
        usage = site.entries("usage.recorded")
    assert text == site.engine.text
    assert [entry["request_id"] for entry in usage] == [answer.request_id]
    assert usage[0]["completion_tokens"] == len(text)
    assert int(usage[0]["charge_nano"]) == len(answer.prompt_ids) + 1000 * len(text)
    site.check()


async def test_an_answer_that_nobody_else_took_part_in_is_split_as_it_is_charged(site: Site) -> None:
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway))
        [delta async for delta in answer.deltas()]
        metered = site.entries("usage.recorded"), site.entries("answer.attributed")
    shown = answer.attribution
    assert (shown["status"], shown["players"]) == ("not_applicable", [])
    assert [entry["request_id"] for entries in metered for entry in entries] == 2 * [answer.request_id]
    assert metered[1][0]["usage_index"] == shown["log_index"] - 1
    assert [(line["account"], int(line["amount_nano"])) for line in shown["split"]] == [
        (line["account"], int(line["amount_nano"])) for line in metered[1][0]["split"]
    ]
    (kept,) = site.sql("SELECT status, inputs, record_index, attempts, attribution FROM answer")
    assert kept[:4] == ("not_applicable", None, shown["log_index"], 0)
    assert orjson.loads(kept[4]) == shown
    assert site.check()["suspense"] == 0


async def test_an_engine_that_fails_midway_is_paid_for_what_it_said(site: Site) -> None:
    site.engine.fail_after = 5
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway))
        with pytest.raises(EngineUnavailable):
            [delta async for delta in answer.deltas()]
    (usage,) = site.entries("usage.recorded")
    assert (usage["completion_tokens"], usage["finish_reason"]) == (5, "error")
    site.check()


async def test_an_engine_that_fails_at_once_costs_nothing(site: Site) -> None:
    site.engine.fail_after = 0
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway))
        with pytest.raises(EngineUnavailable):
            [delta async for delta in answer.deltas()]
    assert site.entries("usage.recorded") == []
    assert [entry["reason"] for entry in site.entries("request.voided")] == ["engine_error"]
    assert site.check()[site.caller] == CREDIT_NANO


@pytest.mark.parametrize("read", [0, 1, 5])
async def test_a_client_that_leaves_pays_for_what_was_generated(site: Site, read: int) -> None:
    site.engine.delay_s = 0.02
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway))
        deltas = answer.deltas()
        for _ in range(read):
            await anext(deltas)
        answer.abandon()
        await until(lambda: bool(site.entries("usage.recorded")))
    (usage,) = site.entries("usage.recorded")
    assert usage["finish_reason"] == "cancelled"
    assert max(read, 1) <= usage["completion_tokens"] < len(site.engine.text)
    site.check()


async def test_a_prompt_that_is_too_long_is_refused_and_reserves_nothing(site: Site) -> None:
    site.engine.context_tokens = 10
    async with site.open() as gateway:
        with pytest.raises(PromptTooLong):
            await gateway.pipeline.open(site.caller, site.question(gateway))
    assert [entry["reason"] for entry in site.entries("request.voided")] == ["PromptTooLong"]
    assert site.check()[site.caller] == CREDIT_NANO


async def test_no_credit_means_no_work(site: Site) -> None:
    async with site.open() as gateway:
        with pytest.raises(InsufficientCredit):
            await gateway.pipeline.open(f"caller:{new_id('acct')}", site.question(gateway))
    assert site.engine.prompts == []
    assert site.entries("request.voided") == []


async def test_credit_cannot_be_reserved_twice(site: Site) -> None:
    site.engine.delay_s = 0.01
    async with site.open() as gateway:
        long = replace(site.question(gateway), sampling=SamplingParams(max_tokens=10_000, temperature=0))
        opened = await asyncio.gather(
            *(gateway.pipeline.open(site.caller, long) for _ in range(40)), return_exceptions=True
        )
        admitted = [answer for answer in opened if not isinstance(answer, BaseException)]
        refused = [error for error in opened if isinstance(error, InsufficientCredit)]
        assert len(admitted) == CREDIT_NANO // (4096 * 1000) == 24
        assert len(admitted) + len(refused) == 40
        for answer in admitted:
            assert [delta async for delta in answer.deltas()]
    site.check()


async def test_stopping_the_gateway_meters_what_is_under_way(site: Site) -> None:
    site.engine.delay_s = 0.02
    async with site.open() as gateway:
        for _ in range(3):
            answer = await gateway.pipeline.open(site.caller, site.question(gateway))
            await anext(answer.deltas())
    assert len(site.entries("usage.recorded")) == 3
    site.check()


async def test_a_crash_between_admission_and_metering_is_voided_at_the_next_start(site: Site) -> None:
    with office(site.config) as o, o.write() as transaction:
        o.books.admit(transaction, site.caller, 5000, new_id("req"))
    async with site.open():
        pass
    (voided,) = site.entries("request.voided")
    assert "stopped before" in voided["reason"]
    assert site.check()[site.caller] == CREDIT_NANO


async def test_a_commit_that_fails_is_told_and_the_answer_is_not_called_complete(site: Site) -> None:
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway))
        committer = gateway.pipeline._transactions._committer
        begin, committer._begin = committer._begin, _fail
        with pytest.raises(CommitError):
            [delta async for delta in answer.deltas()]
        committer._begin = begin
    assert site.entries("usage.recorded") == []
    async with site.open():  # the next start ends what the failure left open
        pass
    assert len(site.entries("request.voided")) == 1
    site.check()


async def test_a_failed_commit_is_voided_as_soon_as_the_ledger_is_back(site: Site) -> None:
    async with site.open() as gateway:
        # The first sweep commits too, and would take the failure that is meant for the usage.
        swept = 'tributary_ledger_commit_seconds_count{record="sweep"} 1.0'
        await until(lambda: swept in gateway.metrics.render().decode())
        committer = gateway.pipeline._transactions._committer
        begin, failures = committer._begin, iter([OSError("disk")])

        def fail_once() -> AbstractContextManager[sa.Connection]:
            if error := next(failures, None):
                raise error
            return begin()

        answer = await gateway.pipeline.open(site.caller, site.question(gateway))
        committer._begin = fail_once
        with pytest.raises(CommitError):
            [delta async for delta in answer.deltas()]
        await until(lambda: bool(site.entries("request.voided")))
        site.check()


async def test_a_second_gateway_of_the_same_id_is_refused_and_voids_nothing(site: Site) -> None:
    site.engine.delay_s = 0.02
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway))
        with pytest.raises(DatabaseError, match="'gateway-1' runs on this database"):
            async with site.open():
                pass
        assert [delta async for delta in answer.deltas()]
    assert site.entries("request.voided") == []
    site.check()


async def test_a_key_of_another_log_is_refused(site: Site) -> None:
    site.settings = site.settings.model_copy(update={"log": site.settings.log.model_copy(update={"origin": "other"})})
    with pytest.raises(DatabaseError, match=r"log\.origin is 'other'"):
        async with site.open():
            pass


async def test_an_attribution_whose_reply_was_lost_is_found_and_not_failed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "ATTEMPTS_MAX", 1)
    async with site.open() as gateway:
        transactions, commit = gateway.pipeline._transactions, gateway.pipeline._transactions.commit
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


async def test_a_text_that_the_embedder_would_not_see_whole_is_refused_unpaid(site: Site) -> None:
    site.embedder.max_tokens = 3
    async with site.open() as gateway:
        one, another = [gateway.router.names.resolve("vectors", "embedding", new_id("req")) for _ in range(2)]
        embedded = await gateway.embeddings.embed(site.caller, one, ["one two three"])
        assert embedded.usage.prompt_tokens == 3
        with pytest.raises(PromptTooLong, match="4 tokens"):
            await gateway.embeddings.embed(site.caller, another, ["one", "one two three four"])
    assert len(site.entries("usage.recorded")) == 1
    assert site.check()["suspense"] == 0


def _fail() -> AbstractContextManager[sa.Connection]:
    raise OSError("no space left on device")


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


async def test_an_answer_that_no_document_helped_pays_no_owner(site: Site) -> None:
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway, "guide", mode="inline"))
        assert [delta async for delta in answer.deltas()]
    assert "do not make the answer more likely" in answer.attribution["reason"]
    assert "contributor:ada" not in site.check()


async def test_a_scorer_that_returns_nonsense_fails_the_job_and_leaves_the_money_in_suspense(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "RETRY_S", 0)
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
    assert (row.status, row.attempts) == ("failed", pipeline.ATTEMPTS_MAX)
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
    monkeypatch.setattr(pipeline, "RETRY_S", 0)
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
        gateway.pipeline._attribute = _never  # type: ignore[method-assign]
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
        gateway.pipeline._attribute = _never  # type: ignore[method-assign]
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
        found = await asyncio.gather(*(gateway.pipeline.attribute(answer.request_id) for _ in range(5)))
    assert {one["status"] for one in found} == {"attributed"}
    assert len(site.entries("answer.attributed")) == 1
    site.check()
