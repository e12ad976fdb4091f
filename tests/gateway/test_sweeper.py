"""What a gateway that died left open is ended by the others, and what is alive is left alone."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.cli.context import office
from gateway.engines import EngineUnavailable
from gateway.identifiers import new_id
from metering import Books, Budget, Draw, draws
from tests.gateway.kit import CREDIT_NANO, Site, body, until


def admit_elsewhere(site: Site, ago_s: float, gateway_id: str = "elsewhere") -> str:
    """Admit a request as a gateway that died then."""
    request_id = new_id("req")
    books = Books(gateway_id, lambda: datetime.now(UTC) - timedelta(seconds=ago_s))
    with office(site.config) as o, o.write() as transaction:
        books.admit(transaction, site.caller, 5000, request_id)
    return request_id


async def test_what_another_gateway_left_open_is_voided_once_it_is_old(tmp_path: Path) -> None:
    site = Site(tmp_path, "sweep_s = 0.02\nintent_s = 60\nanswer_s = 30")
    old, young = admit_elsewhere(site, 61), admit_elsewhere(site, 50)
    async with site.open("gateway-1") as one, site.open("gateway-2") as two:
        await until(lambda: bool(site.entries("request.voided")))
        await asyncio.sleep(0.2)  # sweeps of both
        swept = [gateway.metrics.render().decode() for gateway in (one, two)]
    (voided,) = site.entries("request.voided")
    assert (voided["request_id"], voided["gateway"], voided["gateway_seq"]) == (old, "elsewhere", 0)
    assert sum("tributary_ledger_swept_intents_total 1.0" in text for text in swept) == 1
    with office(site.config) as o, o.write() as transaction:
        state = transaction.request(young)
        assert state is not None
        o.books.void(transaction, state.intent, "end of the test")
    assert site.check()[site.caller] == CREDIT_NANO


async def test_what_this_gateway_does_not_answer_any_more_is_voided_at_once(tmp_path: Path) -> None:
    site = Site(tmp_path, "sweep_s = 0.02")
    async with site.open():
        lost = admit_elsewhere(site, 0, "gateway-1")
        await until(lambda: bool(site.entries("request.voided")))
    assert [entry["request_id"] for entry in site.entries("request.voided")] == [lost]
    site.check()


async def test_what_is_being_answered_is_never_swept(tmp_path: Path) -> None:
    site = Site(tmp_path, "sweep_s = 0.01")
    site.engine.delay_s = 0.03
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway))
        assert [delta async for delta in answer.deltas()]
    assert site.entries("request.voided") == []
    site.check()


async def test_an_answer_that_takes_too_long_ends_and_is_charged_for_what_it_said(tmp_path: Path) -> None:
    site = Site(tmp_path, "answer_s = 0.4")
    site.engine.delay_s = 0.05
    async with site.serve() as (client, _):
        found = (await client.post("/v1/chat/completions", json=body())).json()
    (usage,) = site.entries("usage.recorded")
    assert found["choices"][0]["finish_reason"] == usage["finish_reason"] == "length"
    assert 1 <= usage["completion_tokens"] < len(site.engine.text)
    assert site.engine.text.startswith(found["choices"][0]["message"]["content"])
    assert site.engine.abandoned == 1
    site.check()


async def test_an_answer_that_never_begins_is_voided(tmp_path: Path) -> None:
    site = Site(tmp_path, "answer_s = 0.2")
    site.engine.delay_s = 60
    async with site.open() as gateway:
        answer = await gateway.pipeline.open(site.caller, site.question(gateway))
        with pytest.raises(EngineUnavailable, match="answer_s"):
            [delta async for delta in answer.deltas()]
    assert len(site.entries("request.voided")) == 1
    assert site.check()[site.caller] == CREDIT_NANO


async def test_old_budget_windows_are_forgotten(tmp_path: Path) -> None:
    site = Site(tmp_path)
    now = datetime.now(UTC)
    month, minute = now.strftime("%Y-%m"), now.strftime("%Y-%m-%dT%H:%M")
    with office(site.config) as o, o.write() as transaction:
        o.books.set_budget(transaction, Budget(subject=site.caller, monthly_nano=5))
        for window in ("2025-01", "2025-01-31T23:59", month, minute):
            transaction.draw(site.caller, window, Draw(spent_nano=7))

    def windows() -> list[str]:
        return [row[0] for row in site.sql("SELECT time_window FROM budget_draw ORDER BY 1")]

    async with site.open() as gateway:
        await until(lambda: windows() == [month, minute])
        drawn = await gateway.transactions.read(lambda c: draws(c, month))
    assert drawn == {site.caller: Draw(spent_nano=7)}


@pytest.mark.parametrize("section", ["intent_s = 600", "answer_s = 900", "sweep_s = 0", "replay_hours = -1"])
def test_limits_that_contradict_each_other_are_refused(tmp_path: Path, section: str) -> None:
    with pytest.raises(Exception, match="limits"):
        Site(tmp_path, section)
