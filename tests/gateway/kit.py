"""A gateway's folder with books, a caller with credit, and an engine that fails on command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from gateway.app import create_app, open_gateway
from gateway.auth import create_key
from gateway.cli.context import office
from gateway.cli.material import ingest_paths
from gateway.database import Database
from gateway.engines import SamplingParams
from gateway.exchange import Question
from gateway.grounding import Message
from gateway.identifiers import new_id
from gateway.settings import load
from gateway.state import Gateway
from ledger_client import Entry, Signer, fsck, fsck_derived
from metering import balance, balances
from retrieval import Terms
from tests.fakes import FakeEngine
from tests.retrieval.kit import HashingEmbedder

CONFIG = """
[engine]
name = "fake-base"

[[policies]]
name = "default"

[[models]]
name = "plain"
base = "fake-base"
price = { prompt = "0.001", completion = "1.000" }

[[models]]
name = "guide"
base = "fake-base"
corpora = ["town"]
price = { prompt = "0.001", completion = "1.000" }

[[models]]
name = "vectors"
kind = "embedding"
base = "all-minilm-l6-v2"
price = { prompt = "1.000" }
"""
CREDIT_NANO = 100_000_000


class Site:
    """A folder with books, a caller with credit, and an engine to fail. limits: lines of the section [limits]."""

    def __init__(self, folder: Path, limits: str = "") -> None:
        self.folder = folder
        self.config = folder / "tributary.toml"
        self.config.write_text(f"{CONFIG}\n[limits]\n{limits}\n")
        self.engine = FakeEngine(text="The bell was cast by Petra.")
        Signer.generate("tributary.local/log").save(folder / "log.key")
        self.embedder = HashingEmbedder()
        self.settings = load(self.config)
        database = Database(self.settings.database.url)
        database.migrate()
        database.close()
        page = folder / "bell.md"
        page.write_text("# The bell\nThe bell was cast by Petra in 1803.\n")
        with office(self.config) as o:
            with o.write() as transaction:
                o.registry.add_contributor(transaction, "ada", "Ada")
                made = create_key(transaction.connection, role="caller", name="me")
                self.caller, self.secret = made.principal.subject, made.secret
                self.key_id = made.principal.key_id
                self.operator = create_key(transaction.connection, role="operator", name="op").secret
                o.books.grant_credit(transaction, self.caller, CREDIT_NANO, "test", new_id("grant"))
            ingest_paths(o, self.embedder, [page], Terms(corpus="town", owner="ada", licence="CC0-1.0"))

    @asynccontextmanager
    async def open(self, gateway_id: str = "gateway-1") -> AsyncIterator[Gateway]:
        server = self.settings.server.model_copy(update={"id": gateway_id})
        settings = self.settings.model_copy(update={"server": server})
        async with open_gateway(settings, engine=lambda _: self.engine, embedder=lambda _: self.embedder) as gateway:
            yield gateway

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[tuple[httpx.AsyncClient, Gateway]]:
        """The application and a client with the caller's key, without a socket between them."""
        self.engine.down = False
        app: FastAPI = create_app(self.settings, engine=lambda _: self.engine, embedder=lambda _: self.embedder)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            headers = {"Authorization": f"Bearer {self.secret}"}
            async with httpx.AsyncClient(transport=transport, base_url="http://site", headers=headers) as client:
                yield client, app.state.gateway

    def new_caller(self, name: str = "other", credit_nano: int = CREDIT_NANO) -> str:
        """Another caller's key, with an account and credit of its own."""
        with office(self.config) as o, o.write() as transaction:
            made = create_key(transaction.connection, role="caller", name=name)
            o.books.grant_credit(transaction, made.principal.subject, credit_nano, "test", new_id("grant"))
        return made.secret

    def question(self, gateway: Gateway, model: str = "plain", **options: Any) -> Question:
        served = gateway.catalogue.find(model, "chat")
        return Question(
            model=served,
            corpora=served.corpora,
            top_k=served.top_k,
            messages=(Message(role="user", content="Who cast the bell?"),),
            sampling=SamplingParams(max_tokens=100, temperature=0),
            **options,
        )

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """What a statement returns, run beside whoever else is at the database."""
        with office(self.config) as o, o.database.write() as connection:
            done = connection.exec_driver_sql(statement)
            return [tuple(row) for row in done] if done.returns_rows else []

    def entries(self, kind: str) -> list[dict[str, Any]]:
        with office(self.config) as o, o.database.read() as connection:
            found = [Entry.decode(raw) for _, raw in o.log.entries(connection)]
        return [dict(entry.data) for entry in found if entry.type == kind]

    def check(self) -> dict[str, int]:
        """Every invariant holds and nothing is reserved; returns the balances."""
        with office(self.config) as o, o.database.read() as connection:
            held = dict(balances(connection))
            notes, read = o.log.checkpoints(connection), partial(o.log.entry, connection)
            found = fsck(o.log.entries(connection), notes, held, o.signer.verifier, read=read)
            found += fsck_derived(connection)
            assert found == []
            assert balance(connection, self.caller).pending_nano == 0
        return held


def body(model: str = "plain", **options: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": model, "messages": [{"role": "user", "content": "Who cast the bell?"}], "temperature": 0} | options


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.01)
