"""Faults, staged with an engine that fails on command: whatever happens, the money is right and nothing is lost."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import sqlalchemy as sa

from gateway.cli.context import office
from gateway.database import DatabaseError
from gateway.engines import EngineUnavailable, PromptTooLong, SamplingParams
from gateway.identifiers import new_id
from metering import CommitError, InsufficientCredit
from tests.gateway.kit import CREDIT_NANO, Site, until


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
