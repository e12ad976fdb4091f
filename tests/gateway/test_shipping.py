"""The task that ships: real databases, a real committer, a real server that comes and goes."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import ledger_server
from gateway.database import Database
from gateway.metrics import LedgerState, Metrics
from gateway.shipping import Shipper
from gateway.transactions import Transactions
from ledger_client import (
    MAX_BATCH_BYTES,
    MAX_FACT_BYTES,
    Accepted,
    Batch,
    Entry,
    Ledger,
    LedgerUnavailable,
    Received,
    RemoteLedger,
    Signer,
    shipped,
    verify_receipt,
)
from ledger_client import metadata as ledger_metadata
from metering import Committer
from metering import metadata as metering_metadata

from ..databases import NewDatabase, opened  # noqa: TID252  the tests are no package of their own
from ..ledger_client.facts import fact, registered  # noqa: TID252
from ..ledger_client.ledger_kit import Elsewhere, Source  # noqa: TID252
from ..ledger_client.serving import serving  # noqa: TID252

ORIGIN, SECOND, LEDGER = "example.com/log", "second.example/log", "ledger.example/log"
SIGNERS = {origin: Signer.generate(origin) for origin in (ORIGIN, SECOND, LEDGER)}
KEY = SIGNERS[LEDGER].verifier
WAIT_S = 60


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def elsewhere(stack: ExitStack, new_database: NewDatabase) -> Elsewhere:
    verifiers = [SIGNERS[origin].verifier for origin in (ORIGIN, SECOND)]
    return Elsewhere(stack.enter_context(opened(new_database)), SIGNERS[LEDGER], verifiers)


class Gateway:
    """As much of one as ships: a log that its committer writes, and what it measures."""

    def __init__(self, stack: ExitStack, database: Database, signer: Signer) -> None:
        self.source = Source(database, signer)
        with database.write() as connection:
            metering_metadata.create_all(connection)
            ledger_metadata.create_all(connection)
        self.metrics = Metrics(self._state)
        committer = stack.enter_context(Committer(database.write, self.source.log))
        self.transactions = Transactions(database, committer, self.metrics)

    async def write(self, *entries: Entry) -> None:
        await self.transactions.commit("test", lambda t: [t.log.append(entry) for entry in entries])

    @property
    def shipped(self) -> int:
        with self.source.database.read() as connection:
            return shipped(connection, LEDGER)

    def measured(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(name, {"ledger": "archive", **labels})
        assert value is not None
        return value

    @asynccontextmanager
    async def shipping(self, ledger: Ledger, **settings: float) -> AsyncIterator[asyncio.Task[None]]:
        settings = {"first_retry_s": 0.01, "longest_retry_s": 0.1, "poll_s": 0.02} | settings
        shipper = Shipper(
            "archive",
            ledger,
            KEY,
            log=self.source.log,
            transactions=self.transactions,
            metrics=self.metrics,
            **settings,  # type: ignore[arg-type]
        )
        task = asyncio.create_task(shipper.run())
        try:
            yield task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def _state(self) -> LedgerState:
        with self.source.database.read() as connection:
            backlog = self.source.log.size(connection) - shipped(connection, LEDGER)
        return LedgerState(
            log_entries=0,
            open_intents=0,
            attribution_backlog=0,
            adapters_resident=0,
            shipping_backlog={"archive": backlog},
        )


@pytest.fixture
def gateway(stack: ExitStack, new_database: NewDatabase) -> Gateway:
    return Gateway(stack, stack.enter_context(opened(new_database)), SIGNERS[ORIGIN])


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


async def until(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)


def held(elsewhere: Elsewhere, origin: str = ORIGIN) -> list[bytes]:
    received = [Received.of(Entry.decode(raw)) for raw in elsewhere.entries]
    return [one.entry.encode() for one in received if one.origin == origin]


async def test_a_ledger_that_is_away_loses_nothing_and_delays_nobody(
    gateway: Gateway, elsewhere: Elsewhere, http: httpx.AsyncClient
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    backlog = "tributary_ledger_shipping_backlog_entries"
    await gateway.write(registered(0))
    async with gateway.shipping(RemoteLedger(f"http://127.0.0.1:{port}", http)):
        for number in range(1, 9):
            await gateway.write(*(registered(number * 100 + more) for more in range(number)))
        failures = "tributary_ledger_shipping_failures_total"
        await until(lambda: gateway.measured(failures, reason="unavailable") > 2)
        assert gateway.measured(backlog) == 37
        for _ in range(2):  # and it comes back, and goes, and comes back
            with serving(elsewhere.app, port):
                await until(lambda: gateway.measured(backlog) == 0)
            await gateway.write(registered(int(time.time() * 1000)))
        with serving(elsewhere.app, port):
            await until(lambda: gateway.measured(backlog) == 0)
        assert gateway.measured("tributary_ledger_shipping_contradicted") == 0
        assert time.time() - gateway.measured("tributary_ledger_shipping_success_timestamp_seconds") < WAIT_S
    assert held(elsewhere) == gateway.source.entries
    assert (elsewhere.fsck(), gateway.source.fsck()) == ([], [])


async def test_two_gateways_ship_at_once(
    gateway: Gateway, elsewhere: Elsewhere, http: httpx.AsyncClient, stack: ExitStack, new_database: NewDatabase
) -> None:
    second = Gateway(stack, stack.enter_context(opened(new_database)), SIGNERS[SECOND])
    with serving(elsewhere.app) as url:
        async with gateway.shipping(RemoteLedger(url, http)), second.shipping(RemoteLedger(url, http)):
            for number in range(30):
                await asyncio.gather(gateway.write(registered(number)), second.write(registered(number)))
            await until(lambda: gateway.shipped == 30 and second.shipped == 30)
    assert held(elsewhere) == gateway.source.entries
    assert held(elsewhere, SECOND) == second.source.entries
    assert (elsewhere.fsck(), gateway.source.fsck(), second.source.fsck()) == ([], [], [])


async def test_one_commit_larger_than_a_batch_goes_in_several(
    gateway: Gateway, elsewhere: Elsewhere, http: httpx.AsyncClient
) -> None:
    room = MAX_FACT_BYTES - len(fact("document.registered", "d00", {"s": ""}).encode())
    large = [fact("document.registered", f"d{number:02}", {"s": "x" * room}) for number in range(70)]
    await gateway.write(*large, *(registered(number) for number in range(1100)))
    with serving(elsewhere.app) as url:
        async with gateway.shipping(RemoteLedger(url, http)):
            await until(lambda: gateway.shipped == 1170)
    assert held(elsewhere) == gateway.source.entries
    with elsewhere.database.read() as connection:
        assert len(list(elsewhere.log.checkpoints(connection))) == 3
    assert (elsewhere.fsck(), gateway.source.fsck()) == ([], [])


class _Unsteady:
    """A ledger whose replies are lost, or delayed by its Retry-After."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.calls: list[float] = []

    async def accept(self, batch: Batch) -> Accepted:
        self.calls.append(time.monotonic())
        accepted = await self.ledger.accept(batch)
        if len(self.calls) % 2:
            raise LedgerUnavailable("the reply was lost", 0.3)
        return accepted

    async def size(self, origin: str) -> int:
        return await self.ledger.size(origin)

    async def receipt(self, origin: str, log_index: int) -> str:
        return await self.ledger.receipt(origin, log_index)


async def test_a_reply_that_was_lost_is_given_again_after_the_wait_that_was_asked_for(
    gateway: Gateway, elsewhere: Elsewhere
) -> None:
    unsteady = _Unsteady(elsewhere.ledger)
    async with gateway.shipping(unsteady):
        for number in range(3):
            await gateway.write(registered(number))
            await until(lambda number=number: gateway.shipped == number + 1)  # type: ignore[misc]
    assert held(elsewhere) == gateway.source.entries
    assert len(unsteady.calls) == 6
    for lost, again in zip(unsteady.calls[::2], unsteady.calls[1::2], strict=True):
        assert again - lost >= 0.3
    assert elsewhere.fsck() == []


class _Lying:
    """A ledger that says it holds what it does not."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def accept(self, batch: Batch) -> Accepted:
        return replace(await self.ledger.accept(batch), time="2025-02-01T00:00:01Z")

    size = _Unsteady.size
    receipt = _Unsteady.receipt


async def test_a_ledger_that_contradicts_itself_is_an_alarm_and_gets_no_more(
    gateway: Gateway, elsewhere: Elsewhere
) -> None:
    await gateway.write(registered(0))
    async with gateway.shipping(_Lying(elsewhere.ledger)) as task:
        await asyncio.wait_for(asyncio.shield(task), WAIT_S)  # it ends by itself
    assert gateway.measured("tributary_ledger_shipping_contradicted") == 1
    assert gateway.measured("tributary_ledger_shipping_failures_total", reason="inconsistent") == 1
    assert gateway.shipped == 0


async def test_a_refusal_is_an_alarm_where_it_contradicts_and_is_tried_again(
    gateway: Gateway, elsewhere: Elsewhere, http: httpx.AsyncClient
) -> None:
    await gateway.write(registered(0))
    known, elsewhere.sources = elsewhere.sources, []
    with serving(elsewhere.app) as url:
        async with gateway.shipping(RemoteLedger(url, http)):
            await until(lambda: gateway.measured("tributary_ledger_shipping_failures_total", reason="refused") > 1)
    assert gateway.measured("tributary_ledger_shipping_contradicted") == 0
    elsewhere.sources = known
    with serving(elsewhere.app) as url:
        async with gateway.shipping(RemoteLedger(url, http)):
            await until(lambda: gateway.shipped == 1)
            with elsewhere.database.write() as connection:  # the ledger is replaced by an empty one
                for table in reversed(ledger_metadata.sorted_tables):
                    connection.execute(sa.delete(table))
            await gateway.write(registered(1))
            await until(lambda: gateway.measured("tributary_ledger_shipping_contradicted") == 1)
    assert gateway.shipped == 1


async def test_the_server_refuses_what_is_too_large_and_too_much_at_once(
    elsewhere: Elsewhere, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_server, "MAX_WAITING", 1)
    monkeypatch.setattr(ledger_server, "BODY_TIMEOUT_S", 1)
    with serving(elsewhere.app) as url:
        address = f"{url}/ledger/batches"
        declared = await http.post(address, content=bytes(MAX_BATCH_BYTES + 1))
        assert (declared.status_code, declared.text) == (413, f"a batch has at most {MAX_BATCH_BYTES} bytes\n")

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield bytes(1 << 16)

        async def slow() -> AsyncIterator[bytes]:
            yield b"tributary-batch"
            await asyncio.sleep(30)

        with suppress(httpx.WriteError):  # where the server has closed before all was sent
            assert (await http.post(address, content=endless())).status_code == 413
        waiting = asyncio.create_task(http.post(address, content=slow()))
        await asyncio.sleep(0.3)
        busy = await http.post(address, content=b"")
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "2")
        with pytest.raises(LedgerUnavailable) as unavailable:
            await RemoteLedger(url, http)._ask("POST", "/ledger/batches", b"")
        assert unavailable.value.retry_after_s == 2
        assert (await waiting).status_code == 408
        malformed = await http.post(address, content=b"{}")
        assert (malformed.status_code, malformed.text.split("\n")[0]) == (400, "malformed")
        assert (await http.get(f"{url}/healthz")).json() == {"status": "ok"}
    assert elsewhere.entries == []


async def test_the_server_publishes_its_own_log(
    gateway: Gateway, elsewhere: Elsewhere, http: httpx.AsyncClient
) -> None:
    await gateway.write(registered(0))
    with serving(elsewhere.app) as url:
        await RemoteLedger(url, http).accept(gateway.source.batch(0, 1))
        assert KEY.open((await http.get(f"{url}/log/checkpoint")).text).size == 1
        assert (await http.get(f"{url}/log/key")).text == f"{KEY.verifier_key}\n"
        bundle = (await http.get(f"{url}/log/tile/entries/000.p/1")).content
        assert bundle[2:] == elsewhere.entries[0]
        receipt = await RemoteLedger(url, http).receipt(ORIGIN, 0)
        assert verify_receipt(receipt, KEY).ok
        for missing in ("/log/tile/0/001", "/ledger/receipts/x/y/z", "/ledger", f"/ledger/receipts/{ORIGIN}/-1"):
            assert (await http.get(url + missing)).status_code in {400, 404}


@pytest.mark.parametrize(
    "reply",
    [
        PlainTextResponse("<html>not found</html>", 404),
        PlainTextResponse("conflict", 409),
        PlainTextResponse("tributary-accepted@v1\n", 200),
        PlainTextResponse(b"\xff", 200),
        PlainTextResponse("x" * (1 << 20), 200),
        PlainTextResponse("", 500),
        PlainTextResponse("", 302, {"location": "/elsewhere"}),
        PlainTextResponse("", 503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    ],
    ids=lambda reply: f"{reply.status_code}-{len(reply.body)}",
)
@pytest.mark.parametrize("new_database", ["sqlite"], indirect=True)
async def test_a_reply_that_is_not_a_ledgers_says_no_more_than_not_now(
    gateway: Gateway, http: httpx.AsyncClient, reply: Response
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        await reply(scope, receive, send)

    served: ASGIApp = app
    await gateway.write(registered(0))
    with serving(served) as url, pytest.raises(LedgerUnavailable) as unavailable:
        await RemoteLedger(url, http, timeout_s=5).accept(gateway.source.batch(0, 1))
    assert unavailable.value.retry_after_s is None
