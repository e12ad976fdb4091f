"""One key, one answer, one charge: whatever is repeated, cut off, crashed or forgotten."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import idempotency
from gateway.cli.context import office
from gateway.idempotency import Claim, RequestInProgressError, look_up
from gateway.identifiers import new_id
from gateway.state import Gateway
from metering import Books, InsufficientCredit
from tests.gateway.kit import Site, body, until

KEY = {"Idempotency-Key": "order 7"}
CHAT = "/v1/chat/completions"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def ask(client: httpx.AsyncClient, headers: dict[str, str] = KEY, **options: Any) -> httpx.Response:
    return await client.post(CHAT, json=body(**options), headers=headers)


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def said(found: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found if chunk["choices"])


async def test_a_repeat_gets_the_first_response_and_costs_nothing(site: Site) -> None:
    async with site.serve() as (client, _):
        first = await ask(client)
        held = site.check()[site.caller]
        again = await ask(client)
        spaced = json.dumps(dict(reversed(body().items())), indent=3)
        spelled = await client.post(CHAT, content=spaced, headers=KEY)
    assert "idempotent-replayed" not in first.headers
    for repeat in (again, spelled):
        assert (repeat.status_code, repeat.headers["idempotent-replayed"]) == (200, "true")
        assert repeat.headers["x-request-id"] == first.headers["x-request-id"]
        assert _without_attribution(repeat) == _without_attribution(first)
    assert site.engine.begun == 1
    assert len(site.entries("usage.recorded")) == 1
    assert site.check()[site.caller] == held


async def test_a_repeat_shows_the_attribution_as_it_is_by_then(site: Site) -> None:
    async with site.serve() as (client, gateway):
        first = (await ask(client, model="guide")).json()["attribution"]
        await gateway.attributor.attribute(first["id"])
        again = (await ask(client, model="guide")).json()["attribution"]
    assert (first["status"], again["status"], again["id"]) == ("pending", "attributed", first["id"])


async def test_a_stream_is_replayed_as_a_stream(site: Site) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with site.serve() as (client, _):
        first, again = chunks(await ask(client, **options)), chunks(await ask(client, **options))
    assert said(first) == said(again) == site.engine.text
    assert {chunk["id"] for chunk in first} == {chunk["id"] for chunk in again}
    assert first[-1]["usage"] == again[-1]["usage"]
    assert first[-2]["choices"] == again[-2]["choices"]
    assert again[-2]["attribution"]["id"] == first[-2]["attribution"]["id"]
    assert site.engine.begun == 1


async def test_completions_and_embeddings_are_replayed_too(site: Site) -> None:
    async with site.serve() as (client, _):
        for route, asked in (
            ("/v1/completions", {"model": "plain", "prompt": "Once"}),
            ("/v1/embeddings", {"model": "vectors", "input": ["a bell", "a pond"]}),
            ("/v1/embeddings", {"model": "vectors", "input": "a bell", "encoding_format": "base64"}),
        ):
            headers = {"Idempotency-Key": json.dumps(asked)}
            first, again = [await client.post(route, json=asked, headers=headers) for _ in range(2)]
            assert _without_attribution(first) == _without_attribution(again)
            assert (first.status_code, again.headers.get("idempotent-replayed")) == (200, "true")
            assert first.headers["x-request-id"] == again.headers["x-request-id"]
    assert len(site.entries("usage.recorded")) == 3


async def test_another_body_or_another_route_is_a_conflict_for_ever(site: Site) -> None:
    async with site.serve() as (client, _):
        await ask(client)
        other = await ask(client, max_tokens=3)
        route = await client.post("/v1/completions", json={"model": "plain", "prompt": "Once"}, headers=KEY)
    for refused in (other, route):
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert site.engine.begun == 1


async def test_a_key_is_its_accounts_alone(site: Site) -> None:
    other = {"Authorization": f"Bearer {site.new_caller()}"}
    async with site.serve() as (client, _):
        mine = await ask(client)
        theirs = await ask(client, KEY | other, max_tokens=3)
    assert (mine.status_code, theirs.status_code) == (200, 200)
    assert mine.headers["x-request-id"] != theirs.headers["x-request-id"]


async def test_of_many_at_once_one_is_answered_and_the_others_told_to_wait(site: Site) -> None:
    site.engine.delay_s = 0.01
    async with site.serve() as (client, _):
        found = await asyncio.gather(*(ask(client) for _ in range(12)))
        refused = [response for response in found if response.status_code == 409]
        assert len(refused) == 11
        assert {response.json()["error"]["code"] for response in refused} == {"request_in_progress"}
        assert {response.headers["retry-after"] for response in refused} == {"1"}
        again = await ask(client)
        assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    assert site.engine.begun == 1
    assert len(site.entries("usage.recorded")) == 1
    assert site.entries("request.voided") == []
    site.check()


async def test_of_two_gateways_that_looked_at_once_one_admits(site: Site) -> None:
    claim = Claim.of(site.caller, "order 7", CHAT, body())
    async with site.open("gateway-1") as one, site.open("gateway-2") as two:
        claims = [await gateway.transactions.read(lambda c: look_up(c, claim)) for gateway in (one, two)]
        assert claims == [claim, claim]
        opened = await asyncio.gather(
            *(
                gateway.pipeline.open(site.caller, site.question(gateway), claim=claim)
                for gateway in (one, two, one, two)
            ),
            return_exceptions=True,
        )
        refused = [error for error in opened if isinstance(error, RequestInProgressError)]
        assert len(refused) == 3, opened
    assert len(site.entries("usage.recorded")) == 1
    site.check()


async def test_a_first_that_failed_frees_the_key_for_the_same_body(site: Site) -> None:
    site.engine.fail_after = 0
    async with site.serve() as (client, _):
        failed = [await ask(client) for _ in range(2)]
        assert [response.status_code for response in failed] == [503, 503]
        site.engine.fail_after = None
        other = await ask(client, max_tokens=3)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
        good = await ask(client)
        again = await ask(client)
    assert good.status_code == 200
    assert len({response.headers["x-request-id"] for response in (*failed, good)}) == 3
    assert again.headers["x-request-id"] == good.headers["x-request-id"]
    assert len(site.entries("request.voided")) == 2
    assert len(site.entries("usage.recorded")) == 1


async def test_of_two_retries_of_a_failed_first_one_is_admitted(site: Site) -> None:
    site.engine.fail_after = 0
    claim = Claim.of(site.caller, "order 7", CHAT, body())
    async with site.open("gateway-1") as one, site.open("gateway-2") as two:
        first = await one.pipeline.open(site.caller, site.question(one), claim=claim)
        await until(lambda: bool(site.entries("request.voided")))
        site.engine.fail_after = None
        retries = [await gateway.transactions.read(lambda c: look_up(c, claim)) for gateway in (one, two)]
        assert [retry.voided for retry in retries if isinstance(retry, Claim)] == [first.request_id] * 2
        opened = await asyncio.gather(
            *(
                gateway.pipeline.open(site.caller, site.question(gateway), claim=retry)
                for gateway, retry in zip((one, two), retries, strict=True)
                if isinstance(retry, Claim)
            ),
            return_exceptions=True,
        )
        assert sorted(type(result).__name__ for result in opened) == ["Answer", "RequestInProgressError"]
    assert len(site.entries("usage.recorded")) == 1
    site.check()


async def test_what_was_never_admitted_leaves_the_key_free(site: Site) -> None:
    poor = {"Authorization": f"Bearer {site.new_caller(credit_nano=1)}"}
    async with site.serve() as (client, gateway):
        assert (await ask(client, KEY | poor)).status_code == 402
        assert (await ask(client, KEY | poor, max_tokens=3)).json()["error"]["code"] == "insufficient_quota"
        claim = Claim.of(f"caller:{new_id('acct')}", "k", CHAT, body())
        with pytest.raises(InsufficientCredit):
            await gateway.pipeline.open(claim.account, site.question(gateway), claim=claim)
        assert await gateway.transactions.read(lambda c: look_up(c, claim)) == claim
    assert site.engine.begun == 0


async def test_a_gateway_that_died_before_it_answered_frees_the_key(site: Site) -> None:
    claim, lost = Claim.of(site.caller, "order 7", CHAT, body()), new_id("req")
    other = Books("gateway-2", lambda: datetime.now(UTC))  # nobody here sweeps what it has just admitted
    async with site.serve() as (client, _):
        with office(site.config) as o, o.write() as transaction:
            intent = other.admit(transaction, site.caller, 5000, lost)
            claim.take(transaction, lost)
        early = await ask(client)
        assert (early.status_code, early.json()["error"]["code"]) == (409, "request_in_progress")
        with office(site.config) as o, o.write() as transaction:
            other.void(transaction, intent, "the gateway stopped before the answer was metered")
        assert (await ask(client)).status_code == 200
    assert [entry["request_id"] for entry in site.entries("request.voided")] == [lost]


@pytest.mark.parametrize("read", [0, 3])
async def test_what_a_client_that_left_was_charged_for_is_what_it_finds(site: Site, read: int) -> None:
    site.engine.delay_s = 0.02
    async with site.serve() as (client, gateway):
        claim = Claim.of(site.caller, "order 7", CHAT, body())
        answer = await gateway.pipeline.open(site.caller, site.question(gateway), claim=claim)
        deltas = answer.deltas()
        for _ in range(read):
            await anext(deltas)
        answer.abandon()
        await until(lambda: bool(site.entries("usage.recorded")))
        found = (await ask(client)).json()
    (usage,) = site.entries("usage.recorded")
    assert found["choices"][0]["finish_reason"] == usage["finish_reason"] == "cancelled"
    assert found["choices"][0]["message"]["content"] == site.engine.text[: usage["completion_tokens"]]
    assert found["usage"]["completion_tokens"] == usage["completion_tokens"]


@pytest.mark.parametrize("limits", ["replay_hours = 0", "sweep_s = 0.02"])
async def test_a_response_that_is_not_kept_never_runs_again(tmp_path: Path, limits: str) -> None:
    site = Site(tmp_path, limits)
    async with site.serve() as (client, gateway):
        first = await ask(client)
        await _grow_old(site, gateway)
        again, other = await ask(client), await ask(client, max_tokens=3)
        request_id = first.headers["x-request-id"]
        assert (again.status_code, again.json()["error"]["code"]) == (410, "response_expired")
        assert again.headers["x-request-id"] == request_id
        assert request_id in again.json()["error"]["message"]
        assert other.status_code == 409
        for route in ("attributions", "receipts"):
            assert (await client.get(f"/v1/{route}/{request_id}")).status_code == 200
    assert site.engine.begun == 1
    assert site.sql("SELECT media_type, response FROM idempotency") == [(None, None)]


async def _grow_old(site: Site, gateway: Gateway) -> None:
    """Let a day pass for what is kept, and wait for the sweep."""
    site.sql("UPDATE idempotency SET created_at = '2025-01-01T00:00:00.000Z'")

    async def is_erased() -> bool:
        return not await gateway.transactions.read(lambda c: idempotency.is_kept_from_before(c, "9"))

    await until(is_erased)


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "caf\xe9"])
async def test_a_key_that_cannot_be_one_is_refused(site: Site, key: str) -> None:
    async with site.serve() as (client, _):
        refused = await client.post(CHAT, json=body(), headers=[(b"Idempotency-Key", key.encode("latin-1"))])
        twice = await client.post(CHAT, json=body(), headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")])
    for response in (refused, twice):
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_idempotency_key")
    assert site.engine.begun == 0


async def test_without_a_key_nothing_is_kept(site: Site) -> None:
    async with site.serve() as (client, _):
        first, second = [await ask(client, {}) for _ in range(2)]
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert site.sql("SELECT * FROM idempotency") == []


documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(documents, documents)
def test_a_claim_is_of_what_the_body_says_however_it_is_written(one: Any, other: Any) -> None:
    claim = Claim.of("caller:a", "k", CHAT, one)
    assert Claim.of("caller:a", "k", CHAT, _turned(one)) == claim
    assert (Claim.of("caller:a", "k", CHAT, other) == claim) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )
    assert Claim.of("caller:a", "k", "/v1/completions", one).body_digest != claim.body_digest


def _turned(document: Any) -> Any:
    """The same document with the members of every object in another order."""
    if isinstance(document, dict):
        return {key: _turned(value) for key, value in reversed(document.items())}
    return [_turned(value) for value in document] if isinstance(document, list) else document


def _without_attribution(response: httpx.Response) -> dict[str, Any]:
    found = response.json()
    return {name: value for name, value in found.items() if name != "attribution"}
