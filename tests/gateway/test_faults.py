"""A database that is gone, full, locked or read-only: the engine is never asked, and what was acknowledged stays."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest
import sqlalchemy as sa

from gateway import database
from gateway.identifiers import new_id
from gateway.state import Gateway
from metering import CommitError
from tests.gateway.kit import Site, body, until

Fault: TypeAlias = Callable[[Gateway, Site], AbstractAsyncContextManager[None]]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 100)
    return Site(tmp_path, "sweep_s = 3600")


@asynccontextmanager
async def locked(_gateway: Gateway, site: Site) -> AsyncIterator[None]:
    """Another process holds the write lock."""
    other = sqlite3.connect(site.folder / "tributary.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.close()


@asynccontextmanager
async def read_only(gateway: Gateway, _site: Site) -> AsyncIterator[None]:
    """Nothing may be written, as on a file system that was remounted."""
    with on_every_connection(gateway, "PRAGMA query_only=ON", "PRAGMA query_only=OFF"):
        yield


@asynccontextmanager
async def full(gateway: Gateway, site: Site) -> AsyncIterator[None]:
    """The file may not grow by a page, and no page has room for another intent."""
    with sqlite3.connect(site.folder / "tributary.db") as reader:
        pages = reader.execute("PRAGMA page_count").fetchone()[0]
    reader.close()
    fillers, refused = [], 0
    with on_every_connection(gateway, f"PRAGMA max_page_count={pages}", "PRAGMA max_page_count=1000000"):
        while refused < 30:  # the smallest intents there are; where their ids go in an index is chance
            try:
                work = partial(gateway.books.admit, account=site.caller, maximum_nano=0, request_id=new_id("req"))
                fillers.append(await gateway.transactions.commit("intent", work))
                refused = 0
            except CommitError:
                refused += 1
        yield
    for intent in fillers:
        await gateway.transactions.commit("void", partial(gateway.books.void, intent=intent, reason="filler"))


@asynccontextmanager
async def gone(gateway: Gateway, site: Site) -> AsyncIterator[None]:
    """The volume is not there any more."""
    gateway.transactions._database.engine.dispose()
    file = site.folder / "tributary.db"
    kept = {path: path.with_name(f"away.{path.name}") for path in site.folder.glob("tributary.db*")}
    for path, there in kept.items():
        path.rename(there)
    file.mkdir()
    yield
    file.rmdir()
    for path, there in kept.items():
        there.rename(path)


@contextmanager
def on_every_connection(gateway: Gateway, begin: str, end: str) -> Iterator[None]:
    pragma = begin

    def apply(connection: sqlite3.Connection, _record: object, _proxy: object) -> None:
        connection.execute(pragma)

    sa.event.listen(gateway.transactions._database.engine, "checkout", apply)
    yield
    pragma = end


@pytest.mark.parametrize("fault", [locked, read_only, full, gone])
async def test_requests_are_refused_before_the_engine_works_for_them(site: Site, fault: Fault) -> None:
    async with site.serve() as (client, gateway):
        first = await client.post("/v1/chat/completions", json=body())
        await gateway.attributor.attribute(first.headers["x-request-id"])
        held, worked = site.check(), (site.engine.begun, list(site.embedder.texts))
        async with fault(gateway, site):
            for route, asked in (
                ("/v1/chat/completions", body()),
                ("/v1/chat/completions", body(stream=True)),
                ("/v1/completions", {"model": "plain", "prompt": "Once"}),
                ("/v1/embeddings", {"model": "vectors", "input": "a bell"}),
            ):
                for headers in ({}, {"Idempotency-Key": route}):
                    refused = await client.post(route, json=asked, headers=headers)
                    assert refused.status_code == 503, refused.text
                    assert refused.json()["error"]["code"] == "ledger_unavailable"
                    assert "insert" not in refused.text.lower()
            assert (site.engine.begun, site.embedder.texts) == worked
        assert site.check() == held
        again = await client.post("/v1/chat/completions", json=body(), headers={"Idempotency-Key": "x"})
        assert again.status_code == 200
    assert len(site.entries("usage.recorded")) == 2
    site.check()


async def test_an_answer_that_could_not_be_recorded_is_not_called_complete(site: Site) -> None:
    site.engine.delay_s = 0.02
    async with site.serve() as (client, gateway):
        asked = asyncio.create_task(client.post("/v1/chat/completions", json=body(), headers={"Idempotency-Key": "x"}))
        await until(lambda: site.engine.begun == 1)
        async with locked(gateway, site):
            refused = await asked
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "ledger_unavailable")
        assert site.entries("usage.recorded") == []
    site.engine.delay_s = 0
    async with site.serve() as (client, _):
        again = await client.post("/v1/chat/completions", json=body(), headers={"Idempotency-Key": "x"})
        assert (again.status_code, "idempotent-replayed" in again.headers) == (200, False)
    assert len(site.entries("request.voided")) == 1
    site.check()
