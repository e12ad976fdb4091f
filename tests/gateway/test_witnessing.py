"""Witnesses beside a gateway: they cosign what it commits, and one that is down delays nobody."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from gateway.database import Database
from gateway.metrics import LedgerState, Metrics
from gateway.settings import WitnessSection
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
from tests.ledger_client.facts import registered
from tests.ledger_client.serving import serving

SIGNER = Signer.generate("example.com/log")
WITNESSES = {name: WitnessSigner.generate(f"witness.example/{name}") for name in ("w1", "w2", "w3")}
VERIFIERS = tuple(signer.verifier for signer in WITNESSES.values())


class Site:
    """A log of its own, and addresses where witnesses may be."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        metadata.create_all(self.database.engine)
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
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(f"sqlite:///{tmp_path}/log.db")
    yield site
    site.database.close()


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
    async with site.witnessed():
        for _ in range(5):
            size = site.grow(1)
            await until(lambda size=size: site.published() == (size, {"w1", "w2"}))
        await until(lambda: site.failures("w3") > 0)
        assert site.lag() == {"w1": 0, "w2": 0, "w3": 5}
    assert site.failures("w3") < 5  # it is left alone for longer each time


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
    restored = Site(f"sqlite:///{tmp_path}/backup.db")
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


def test_lag_and_failures_are_metrics_by_configured_name() -> None:
    state = LedgerState(
        log_entries=9, open_intents=0, attribution_backlog=0, adapters_resident=0, witness_lag_entries={"w1": 4}
    )
    metrics = Metrics(lambda: state)
    metrics.witness_failures.labels("w1").inc()
    text = metrics.render().decode()
    assert 'tributary_witness_lag_entries{witness="w1"} 4.0' in text
    assert 'tributary_witness_failures_total{witness="w1"} 1.0' in text
