"""Runs that end with SIGKILL: of those who write, and of the database server that they write to.

The power stays on, so what a killed process gave to the kernel arrives: it is recovery that is put to the test here, of
half a transaction, of acknowledgements under way, of requests left open. Power cuts are simulated on SQLite alone; for
PostgreSQL they are left to its own fsync, which every connection of a gateway asks for.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from random import Random
from typing import Any, TypeAlias

import sqlalchemy as sa

import ledger_client
import metering
from gateway.database import Database
from ledger_client import Finding
from metering import Committer, open_intents
from tests.databases import Server, engine_of
from tests.metering.kit import Clock, new_books

from .load import LOG, Acknowledged, findings, lost, recover
from .processes import READY, commit, forks

GATEWAYS = ("gw-1", "gw-2")
MOST_HEARD = 60  # acknowledgements before a strike
LISTEN_S = 0.3
RESTART_S = 60
START_S = 120


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to, after recovery."""

    acknowledged: int
    lost: tuple[Acknowledged, ...]
    findings: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        return not self.lost and not self.findings


@dataclass
class Writer:
    """A process that writes, and what it was heard to acknowledge."""

    process: Any
    told: Connection
    heard: bytearray = field(default_factory=bytearray)

    @classmethod
    def start(cls, url: str, gateway_id: str, seed: int) -> Writer:
        told, telling = Pipe(duplex=False)
        process = forks().Process(target=commit, args=(url, gateway_id, seed, telling), daemon=True)
        process.start()
        telling.close()
        return cls(process=process, told=told)

    @property
    def lines(self) -> int:
        return self.heard.count(b"\n")

    def wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + START_S
        while READY not in self.heard:
            assert time.monotonic() < deadline_s, "a writer did not begin"
            assert self.told.poll(START_S), "a writer did not begin"
            assert self.hear(), f"a writer ended before it began: {bytes(self.heard)!r}"

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> list[Acknowledged]:
        """Hear the rest, and return what was acknowledged. The process is dead, or finds that its database is."""
        while self.hear():
            pass
        self.told.close()
        self.process.join(START_S)
        assert self.process.exitcode is not None, "a writer did not end"
        self.process.close()
        whole, _, _ = self.heard.rpartition(b"\n")
        return [Acknowledged.parse(line) for line in whole.decode().splitlines() if line.encode() + b"\n" != READY]

    def hear(self) -> bool:
        """Hear what there is, or wait for it; False at the end."""
        heard = os.read(self.told.fileno(), 1 << 16)
        self.heard += heard
        return bool(heard)


Strike: TypeAlias = Callable[[Sequence[Writer]], object]
"""Kills something, while the writers write."""


class UnderFire:
    """One ledger whose writers are killed again and again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._database = Database(url)
        engine_of(self._database, ledger_client.metadata, metering.metadata)

    def close(self) -> None:
        self._database.close()

    def run(self, lots: Random, strike: Strike, writers: int = 1) -> Outcome:
        """Keep the ledger busy from so many processes, strike at a time drawn by lot, recover, and look."""
        running = [Writer.start(self.url, gateway, lots.getrandbits(32)) for gateway in GATEWAYS[:writers]]
        for writer in running:
            writer.wait_until_ready()
        self._listen(running, lots.randint(0, MOST_HEARD))
        time.sleep(lots.random() * 0.005)
        strike(running)
        self._listen(running, lots.randint(0, MOST_HEARD // 2))  # of those who still can go on
        for writer in running:
            writer.kill()
        acknowledged = [said for writer in running for said in writer.end()]
        return self.recovered(acknowledged)

    def recovered(self, acknowledged: Sequence[Acknowledged]) -> Outcome:
        """Do what the gateways do when they start again, and compare."""
        with self._reconnected() as connection:
            missing = lost(connection, acknowledged)
        with Committer(self._database.write, LOG) as committer:
            for gateway in GATEWAYS:
                books = new_books(gateway, Clock())
                committer.submit(lambda tx, b=books, g=gateway: recover(b, tx, g)).result()
        with self._database.read() as connection:
            assert not list(open_intents(connection)), "something is pending after the restart"
            found = findings(connection)
        return Outcome(acknowledged=len(acknowledged), lost=tuple(missing), findings=tuple(found))

    def _listen(self, writers: Sequence[Writer], lines: int) -> None:
        """Hear so many lines more from all together, or as many as come."""
        deadline_s = time.monotonic() + LISTEN_S
        due = lines + sum(writer.lines for writer in writers)
        told = {writer.told: writer for writer in writers}
        while told and sum(writer.lines for writer in writers) < due and time.monotonic() < deadline_s:
            for ready in wait(list(told), timeout=0.01):
                if isinstance(ready, Connection) and not told[ready].hear():
                    del told[ready]

    def _reconnected(self) -> Any:
        """A read, once the server takes connections again."""
        deadline_s = time.monotonic() + RESTART_S
        while True:
            try:
                with self._database.read() as connection:
                    connection.exec_driver_sql("SELECT 1")
                return self._database.read()
            except sa.exc.OperationalError:
                self._database.close()
                assert time.monotonic() < deadline_s, "the database did not come back"
                time.sleep(0.02)


# Ways to strike.


def one_writer(writers: Sequence[Writer]) -> None:
    """Kill the first; the others, if any, go on."""
    writers[0].kill()


def whole_server(server: Server) -> Strike:
    """Kill PostgreSQL, every process of it, and start it again."""

    def strike(_writers: Sequence[Writer]) -> None:
        server.kill()
        server.start()

    return strike


def one_of_the_server(server: Server, lots: Random) -> Strike:
    """Kill one process of PostgreSQL, be it a writer's own or the journal's; it ends the others and recovers."""

    def strike(_writers: Sequence[Writer]) -> None:
        _, *children = server.processes()
        os.kill(lots.choice(children), signal.SIGKILL)

    return strike
