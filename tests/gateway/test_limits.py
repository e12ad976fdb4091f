"""Budgets as callers meet them, and as operators set them: no number of requests at once gets past one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from gateway.auth import create_key
from gateway.cli.context import office
from metering import Budget, budgets
from tests.gateway.kit import Site, body


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def limit(site: Site, subject: str, **limits: int) -> None:
    with office(site.config) as o, o.write() as transaction:
        o.books.set_budget(transaction, Budget(subject=subject, **limits))


async def ask(client: httpx.AsyncClient, **options: object) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=body(**options))


async def test_a_month_that_is_spent_refuses_until_the_next(site: Site) -> None:
    limit(site, site.key_id, monthly_nano=40_000)
    async with site.serve() as (client, _):
        good = await ask(client, max_tokens=30)
        refused = await ask(client, max_tokens=30)
    assert good.status_code == 200
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (429, "insufficient_quota", "monthly_budget_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 31 * 86_400 + 1
    assert site.engine.begun == 1
    assert site.check()[site.caller] > 0


@pytest.mark.parametrize(
    ("limits", "kind"), [({"requests_per_minute": 0}, "requests"), ({"tokens_per_minute": 4095}, "tokens")]
)
async def test_a_minute_that_is_full_is_told_as_openai_tells_it(site: Site, limits: dict[str, int], kind: str) -> None:
    limit(site, site.caller, **limits)
    async with site.serve() as (client, _):
        refused = await ask(client)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (429, kind, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert site.engine.begun == 0
    assert site.entries("request.voided") == []


async def test_an_embedding_takes_the_tokens_that_it_has(site: Site) -> None:
    limit(site, site.key_id, tokens_per_minute=4)
    async with site.serve() as (client, _):
        asked = {"model": "vectors", "input": "one two three"}
        codes = [(await client.post("/v1/embeddings", json=asked)).status_code for _ in range(2)]
    assert codes in ([200, 429], [200, 200])  # the second, in a minute of its own
    assert len(site.entries("usage.recorded")) == codes.count(200)


async def test_many_requests_at_once_do_not_overspend_a_month(site: Site) -> None:
    site.engine.delay_s = 0.005
    most_nano = 4096 + 30 * 999  # a full context, 30 tokens of it emitted
    limit(site, site.caller, monthly_nano=5 * most_nano)
    async with site.serve() as (client, _):
        found = await asyncio.gather(*(ask(client, max_tokens=30) for _ in range(20)))
    codes = [response.status_code for response in found]
    charged = sum(int(entry["charge_nano"]) for entry in site.entries("usage.recorded"))
    assert set(codes) == {200, 429}
    assert codes.count(200) >= 5
    assert charged <= 5 * most_nano
    site.check()


async def test_keys_of_one_account_share_its_budget_and_its_answers(site: Site) -> None:
    with office(site.config) as o, o.write() as transaction:
        other = create_key(transaction.connection, role="caller", name="second", account=site.caller)
    limit(site, site.caller, monthly_nano=40_000)
    async with site.serve() as (client, _):
        first = await ask(client, max_tokens=30)
        client.headers["Authorization"] = f"Bearer {other.secret}"
        assert (await ask(client, max_tokens=30)).status_code == 429
        assert (await client.get(f"/v1/attributions/{first.headers['x-request-id']}")).status_code == 200


async def test_a_budget_that_is_lifted_limits_nothing(site: Site) -> None:
    limit(site, site.key_id, requests_per_minute=0)
    limit(site, site.key_id)
    async with site.serve() as (client, gateway):
        assert (await ask(client)).status_code == 200
        assert await gateway.transactions.read(budgets) == {}
