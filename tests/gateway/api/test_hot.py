"""A hot route answers as FastAPI would have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app import create_app
from tests.gateway.kit import Site, body

CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
# Ids, times and log indexes differ from answer to answer; an id also decides whose the last nano-USD of a split is.
OF_THE_MOMENT = re.compile(r'[a-z]+_[a-z2-7]{26}|"[a-z_]*(?:_at|created|log_index)":[0-9.]+|(?<="amount_nano":")[0-9]+')
HEADERS_OF_THE_MOMENT = {"x-request-id", "x-tributary-request-id"}
Sent = dict[str, Any]
ASKED: dict[str, Sent] = {
    "chat": {"url": CHAT, "json": body()},
    "stream": {"url": CHAT, "json": body(stream=True, stream_options={"include_usage": True})},
    "completion": {"url": COMPLETION, "json": {"model": "plain", "prompt": "Who?"}},
    "response": {"url": RESPONSE, "json": {"model": "plain", "input": "Who?"}},
    "no key": {"url": CHAT, "json": body(), "headers": {"authorization": ""}},
    "unknown key": {"url": CHAT, "json": body(), "headers": {"authorization": "Bearer nobody"}},
    "no JSON": {"url": CHAT, "content": b"{"},
    "unknown field": {"url": CHAT, "json": body(colour="red")},
    "unknown model": {"url": COMPLETION, "json": {"model": "none", "prompt": "Who?"}},
    "too long": {"url": COMPLETION, "json": {"model": "plain", "prompt": "Who? " * 1000}},
    "two keys": {"url": CHAT, "json": body(), "headers": [("idempotency-key", "a"), ("idempotency-key", "b")]},
}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def answered(site: Site, *, hot: bool) -> dict[str, tuple[int, dict[str, str], str]]:
    app = create_app(site.settings, engine=lambda _: site.engine, embedder=lambda _: site.embedder)
    if not hot:
        app.heat()
    site.engine.down = False
    found = {}
    async with app.router.lifespan_context(app):
        own = {"authorization": f"Bearer {site.secret}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://site", headers=own) as client:
            for name, asked in ASKED.items():
                reply = await client.post(**asked)
                headers = {k: "" if k in HEADERS_OF_THE_MOMENT else v for k, v in reply.headers.items()}
                headers.pop("content-length", None)
                found[name] = reply.status_code, headers, OF_THE_MOMENT.sub("…", reply.text)
    return found


async def test_a_hot_route_answers_as_fastapi_would(site: Site) -> None:
    hot, cold = await answered(site, hot=True), await answered(site, hot=False)
    assert hot == cold
    assert [hot[name][0] for name in ("chat", "no key", "no JSON", "unknown model")] == [200, 401, 400, 404]


@pytest.mark.parametrize("hot", [True, False])
async def test_what_is_our_fault_is_told_and_raised_for_the_server(site: Site, *, hot: bool) -> None:
    app = create_app(site.settings, engine=lambda _: site.engine, embedder=lambda _: site.embedder)
    if not hot:
        app.heat()
    async with app.router.lifespan_context(app):
        app.state.gateway.pipeline.open = None
        own = {"authorization": f"Bearer {site.secret}"}
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://site", headers=own) as client:
            reply = await client.post(CHAT, json=body())
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://site", headers=own) as client:
            with pytest.raises(TypeError):
                await client.post(CHAT, json=body())


async def test_other_methods_of_a_hot_path_are_refused(site: Site) -> None:
    async with site.serve() as (client, _):
        assert (await client.get(CHAT)).status_code == 405


def test_what_is_hot_is_documented(site: Site) -> None:
    app = create_app(site.settings)
    assert app.hot == {CHAT, COMPLETION, "/v1/embeddings", RESPONSE}
    assert app.hot <= app.openapi()["paths"].keys()
