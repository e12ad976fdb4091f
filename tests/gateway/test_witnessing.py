"""Witnesses beside a gateway: they cosign what it commits, and one that is down delays nobody."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from gateway.app import create_app
from gateway.database import Database
from gateway.metrics import LedgerState, Metrics
from gateway.settings import WitnessSection, load
from gateway.witnessing import Witnessing, lag_entries
from ledger_client import (
    Checkpoint,
    Log,
    Note,
    Quorum,
    Signer,
    Witness,
    WitnessSigner,
    WitnessState,
    metadata,
    verify_receipt,
)
from ledger_client.witness_app import create_witness_app
from tests.databases import engine_of
from tests.fakes import FakeEngine
from tests.ledger_client.facts import registered
from tests.ledger_client.serving import serving
from tests.retrieval.kit import HashingEmbedder

SIGNER = Signer.generate("example.com/log")
WITNESSES = {name: WitnessSigner.generate(f"witness.example/{name}") for name in ("w1", "w2", "w3")}
VERIFIERS = tuple(signer.verifier for signer in WITNESSES.values())


class Site:
    """A log of its own, and addresses where witnesses may be."""

    def __init__(self, database: Database) -> None:
        self.database = database
        engine_of(database, metadata)
        self.log = Log(SIGNER, Quorum(witnesses=VERIFIERS, count=2))
        self.metrics = Metrics(
            lambda: LedgerState(log_entries=0, open_intents=0, attribution_backlog=0, adapters_resident=0)
        )
        self.sections: list[WitnessSection] = []

    def grow(self, entries: int) -> int:
        """Commit so many entries, and return the size."""
        for _ in range(entries):
            with self.database.write() as connection:
                draft = self.log.draft(connection)
                draft.append(registered(draft.size))
                draft.seal()
        return self.size()

    def size(self) -> int:
        with self.database.read() as connection:
            return self.log.size(connection)

    def published(self) -> tuple[int, set[str]]:
        with self.database.read() as connection:
            note = Note.parse(self.log.published(connection))
        assert Checkpoint.parse(note.text)
        cosigners = {name for name, signer in WITNESSES.items() if signer.verifier.find(note)}
        return Checkpoint.parse(note.text).size, cosigners

    def lag(self) -> dict[str, int]:
        with self.database.read() as connection:
            return lag_entries(connection, self.log, self.sections)

    def failures(self, name: str) -> float:
        return self.metrics.registry.get_sample_value("tributary_witness_failures_total", {"witness": name}) or 0.0

    @asynccontextmanager
    async def witnessed(self, interval_s: float = 0.05) -> AsyncIterator[None]:
        witnessing = Witnessing(
            witnesses=self.sections,
            interval_s=interval_s,
            database=self.database,
            ledger=self.log,
            metrics=self.metrics,
        )
        task = asyncio.create_task(witnessing.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def site(database: Database) -> Site:
    return Site(database)


@pytest.fixture
def serve(site: Site, tmp_path: Path) -> Iterator[Callable[..., Witness]]:
    """Run a real witness, or an application in its place, and have the log ask it."""
    with ExitStack() as running:

        def serve(name: str, app: Callable[[Scope, Receive, Send], Awaitable[None]] | None = None) -> Witness:
            state = WitnessState.create(tmp_path / f"{name}.db")
            running.callback(state.close)
            witness = Witness(signer=WITNESSES[name], logs=[SIGNER.verifier], state=state)
            url = running.enter_context(serving(app or create_witness_app(witness)))
            site.sections.append(WitnessSection(name=name, url=url, key=WITNESSES[name].verifier_key))
            return witness

        yield serve


async def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)


def absent() -> WitnessSection:
    """A witness at an address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return WitnessSection(name="w3", url=f"http://127.0.0.1:{port}", key=WITNESSES["w3"].verifier_key)


async def test_what_is_committed_is_cosigned(site: Site, serve: Callable[..., Witness]) -> None:
    for name in WITNESSES:
        serve(name)
    site.grow(3)
    async with site.witnessed():
        await until(lambda: site.published() == (3, {"w1", "w2", "w3"}))
        site.grow(4)
        await until(lambda: site.published() == (7, {"w1", "w2", "w3"}))
        await until(lambda: site.lag() == {"w1": 0, "w2": 0, "w3": 0})
    with site.database.read() as connection:
        receipt = site.log.receipt(connection, 5)
    assert verify_receipt(receipt, SIGNER.verifier, witnesses=VERIFIERS, quorum=3).ok
    assert [site.failures(name) for name in WITNESSES] == [0, 0, 0]


async def test_a_witness_that_is_down_keeps_no_other_from_cosigning(site: Site, serve: Callable[..., Witness]) -> None:
    serve("w1")
    serve("w2")
    site.sections.append(absent())
    started_s = time.monotonic()
    async with site.witnessed(0.05):
        for _ in range(5):
            size = site.grow(1)
            await until(lambda size=size: site.published() == (size, {"w1", "w2"}))
        await until(lambda: site.failures("w3") > 0)
        assert site.lag() == {"w1": 0, "w2": 0, "w3": 5}
    # It is left alone for longer each time: 0.05 s, 0.1 s, 0.2 s, … , each at least half as long as it says.
    assert 0.025 * (2 ** (site.failures("w3") - 1) - 1) <= time.monotonic() - started_s


async def test_a_witness_that_hangs_keeps_no_other_from_cosigning(site: Site, serve: Callable[..., Witness]) -> None:
    async def hang(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    serve("w1")
    serve("w2")
    serve("w3", hang)
    async with site.witnessed():
        for _ in range(3):
            size = site.grow(1)
            await until(lambda size=size: site.published() == (size, {"w1", "w2"}))


async def test_a_witness_that_comes_back_catches_up(site: Site, serve: Callable[..., Witness]) -> None:
    down = True
    inner: list[Starlette] = []

    async def flapping(scope: Scope, receive: Receive, send: Send) -> None:
        if down:
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b"closed today"})
        else:
            await inner[0](scope, receive, send)

    inner.append(create_witness_app(serve("w1", flapping)))
    site.grow(2)
    async with site.witnessed():
        await until(lambda: site.failures("w1") >= 2)
        assert site.published() == (2, set())
        site.grow(3)
        down = False
        await until(lambda: site.published() == (5, {"w1"}))


async def test_several_gateways_on_one_log_ask_the_same_witnesses(site: Site, serve: Callable[..., Witness]) -> None:
    for name in WITNESSES:
        serve(name)
    async with site.witnessed(0.03), site.witnessed(0.05), site.witnessed(0.07):
        for _ in range(10):
            site.grow(1)
            await asyncio.sleep(0.02)
        await until(lambda: site.published() == (10, {"w1", "w2", "w3"}))
    assert [site.failures(name) for name in WITNESSES] == [0, 0, 0]


async def test_a_log_that_was_rolled_back_is_refused_and_it_shows(
    site: Site, serve: Callable[..., Witness], tmp_path: Path
) -> None:
    witness = serve("w1")
    site.grow(2)
    async with site.witnessed():
        await until(lambda: site.lag() == {"w1": 0})
    restored = Site(Database(f"sqlite:///{tmp_path}/backup.db"))
    restored.sections = site.sections
    restored.grow(1)
    async with restored.witnessed():
        await until(lambda: restored.failures("w1") > 0)
        assert restored.published() == (1, set())
    remembered = witness.last("example.com/log")
    assert remembered
    assert remembered.head.size == 2
    restored.database.close()


async def test_a_log_without_witnesses_asks_nobody(site: Site) -> None:
    witnessing = Witnessing(
        witnesses=[], interval_s=0.01, database=site.database, ledger=site.log, metrics=site.metrics
    )
    await asyncio.wait_for(witnessing.run(), 5)


async def test_a_gateway_serves_its_log_cosigned(tmp_path: Path) -> None:
    Signer.generate("example.com/log").save(tmp_path / "log.key")
    signer = Signer.load(tmp_path / "log.key")
    state = WitnessState.create(tmp_path / "witness.db")
    witness = Witness(signer=WITNESSES["w1"], logs=[signer.verifier], state=state)
    with serving(create_witness_app(witness)) as url:
        config = tmp_path / "tributary.toml"
        config.write_text(
            f"""
            log = {{ origin = "example.com/log", cosign_interval_s = 0.05 }}
            engine = {{ name = "fake-base" }}
            models = [{{ name = "plain", base = "fake-base" }}]
            witnesses = [{{ name = "w1", url = "{url}", key = "{WITNESSES["w1"].verifier_key}" }}]
            """
        )
        settings = load(config)
        database = Database(settings.database.url)
        database.migrate()
        database.close()
        app = create_app(settings, engine=lambda _: FakeEngine(), embedder=lambda _: HashingEmbedder())
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client,
        ):
            gateway = app.state.gateway
            async with asyncio.timeout(30):
                while not WITNESSES["w1"].verifier.find(Note.parse((await client.get("/log/checkpoint")).text)):
                    await asyncio.sleep(0.02)
            metrics = (await client.get("/metrics")).text
            receipt = await gateway.transactions.read(lambda connection: gateway.log.receipt(connection, 0))
    state.close()
    assert 'tributary_witness_lag_entries{witness="w1"} 0.0' in metrics
    assert 'tributary_witness_failures_total{witness="w1"} 0.0' in metrics
    assert verify_receipt(receipt, signer.verifier, witnesses=VERIFIERS[:1]).ok


def test_lag_and_failures_are_metrics_by_configured_name() -> None:
    state = LedgerState(
        log_entries=9, open_intents=0, attribution_backlog=0, adapters_resident=0, witness_lag_entries={"w1": 4}
    )
    metrics = Metrics(lambda: state)
    metrics.witness_failures.labels("w1").inc()
    text = metrics.render().decode()
    assert 'tributary_witness_lag_entries{witness="w1"} 4.0' in text
    assert 'tributary_witness_failures_total{witness="w1"} 1.0' in text
