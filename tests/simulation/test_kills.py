"""SIGKILL under load, of those who write and of the server that they write to: all that was acknowledged is stored."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import httpx
import pytest

from gateway.auth import create_key
from gateway.cli.context import office
from gateway.database import Database
from gateway.identifiers import new_id
from gateway.settings import load
from ledger_client import Entry, Signer, fsck, fsck_derived
from metering import balance, balances, fsck_books, open_intents
from tests.databases import NewDatabase, Server

from .kills import UnderFire, one_of_the_server, one_writer, whole_server
from .processes import forks, serve

CONFIG = """
[database]
url = "{url}"

[engine]
name = "fake-base"

[[policies]]
name = "default"

[[models]]
name = "plain"
base = "fake-base"
price = {{ prompt = "0.001", completion = "1.000" }}
"""
START_S = 120
CLIENTS = 4


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server to kill, which is therefore never the one of DATABASE_URL."""
    with Server() as server:
        yield server


@pytest.mark.parametrize("writers", [1, 2])
def test_a_writer_that_is_killed_loses_nothing(new_database: NewDatabase, writers: int) -> None:
    lots = Random(writers)  # noqa: S311 - lots, and no secrets
    with new_database() as url, closing(UnderFire(url)) as ledger:
        outcomes = [ledger.run(lots, one_writer, writers) for _ in range(6)]
    assert all(outcome.clean for outcome in outcomes), outcomes
    assert sum(outcome.acknowledged for outcome in outcomes) > 6


def test_a_server_of_which_one_process_is_killed_loses_nothing(server: Server) -> None:
    lots = Random(3)  # noqa: S311 - lots, and no secrets
    with closing(UnderFire(server.url.render_as_string(hide_password=False))) as ledger:
        outcomes = [ledger.run(lots, one_of_the_server(server, lots), writers=2) for _ in range(2)]
    assert all(outcome.clean for outcome in outcomes), outcomes


def test_a_server_that_is_killed_whole_loses_nothing(server: Server) -> None:
    lots = Random(4)  # noqa: S311 - lots, and no secrets
    with closing(UnderFire(server.url.render_as_string(hide_password=False))) as ledger:
        outcomes = [ledger.run(lots, whole_server(server), writers=2) for _ in range(2)]
    assert all(outcome.clean for outcome in outcomes), outcomes


class Site:
    """A gateway's folder, and a caller with credit."""

    def __init__(self, folder: Path, url: str) -> None:
        self.config = folder / "tributary.toml"
        self.config.write_text(CONFIG.format(url=url))
        Signer.generate("tributary.local/log").save(folder / "log.key")
        database = Database(load(self.config).database.url)
        database.migrate()
        database.close()
        with office(self.config) as o, o.write() as transaction:
            key = create_key(transaction.connection, role="caller", name="me")
            o.books.grant_credit(transaction, key.principal.subject, 10**12, "test", new_id("grant"))
        self.caller, self.secret = key.principal.subject, key.secret
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """A gateway that answers, killed at the end of the block."""
        process = forks().Process(target=serve, args=(self.config, self.port), daemon=True)
        process.start()
        try:
            deadline_s = time.monotonic() + START_S
            while True:
                assert process.is_alive(), f"the gateway ended with {process.exitcode}"
                assert time.monotonic() < deadline_s, "the gateway did not start"
                try:
                    if httpx.get(f"{self.url}/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.02)
            yield
        finally:
            process.kill()
            process.join()

    def ask(self, answered: list[str], *, stream: bool) -> None:
        """Ask one question after the other until the gateway is gone; note the answers that came whole."""
        question = {"model": "plain", "max_tokens": 40, "messages": [{"role": "user", "content": "Who cast the bell?"}]}
        headers = {"Authorization": f"Bearer {self.secret}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=START_S) as client:
            while True:
                try:
                    answer = client.post("/v1/chat/completions", json=question | {"stream": stream})
                except httpx.TransportError:
                    return
                assert answer.status_code == 200, answer.text
                answered.append(answer.headers["x-request-id"])

    def check(self, answered: list[str]) -> None:
        """What a client received is in the log, nothing is reserved any more, and every law holds."""
        with office(self.config) as o, o.database.read() as connection:
            charged = {
                entry.subject
                for entry in (Entry.decode(raw) for _, raw in o.log.entries(connection))
                if entry.type == "usage.recorded"
            }
            assert set(answered) <= charged, "I7"
            assert list(open_intents(connection)) == []
            assert balance(connection, self.caller).pending_nano == 0
            found = fsck(
                o.log.entries(connection), o.log.checkpoints(connection), dict(balances(connection)), o.signer.verifier
            )
            assert [*found, *fsck_derived(connection), *fsck_books(connection, o.log)] == []


def test_a_gateway_that_is_killed_keeps_every_answer_that_a_client_has(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    lots = Random(5)  # noqa: S311 - lots, and no secrets
    answered: list[str] = []
    with new_database() as url:
        site = Site(tmp_path, url)
        for _ in range(2):
            before = len(answered)
            with site.running():
                clients = [
                    threading.Thread(target=site.ask, args=(answered,), kwargs={"stream": number % 2 == 0})
                    for number in range(CLIENTS)
                ]
                for client in clients:
                    client.start()
                deadline_s = time.monotonic() + START_S
                while len(answered) < before + CLIENTS and time.monotonic() < deadline_s:
                    time.sleep(0.005)
                time.sleep(lots.random() * 0.05)
            for client in clients:
                client.join()
            assert len(answered) > before
        with site.running():  # whose start voids what the last one left
            pass
        site.check(answered)
