"""Runs of the write path on SQLite that end with a power cut, and what the disk holds afterwards."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import sqlalchemy as sa

import ledger_client
import metering
from gateway.database import Database
from ledger_client import Finding
from metering import CommitError, Committer, Transaction, open_intents
from tests.databases import engine_of
from tests.metering.kit import Clock, new_books

from . import apsw_driver
from .disk import Disk
from .load import LOG, Acknowledged, Caller, Step, findings, fund, lost, recover

assert apsw_driver.Dialect  # importing it makes the URLs known
GATEWAY = "gw-1"
FILE = "ledger.db"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to. acknowledged: how much was. findings: of the checkers, after the restart."""

    acknowledged: int
    lost: tuple[Acknowledged, ...]
    findings: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        return not self.lost and not self.findings


def run(seed: int, synchronous: str = "FULL", most_steps: int = 500) -> Outcome:
    """Keep a ledger busy until the power is cut, start again on what is left, and look.

    seed: decides what is asked, when the cut comes and what it takes. most_steps: writes and syncs before the cut.
    synchronous: what SQLite runs with; the gateway's own FULL, or another to see it lose.
    """
    lots = Random(seed)  # noqa: S311 - lots, and no secrets
    with tempfile.TemporaryDirectory() as before, tempfile.TemporaryDirectory() as after:
        if lots.random() < 0.9:
            shutil.copy(_template(), f"{before}/{FILE}")
        disk = Disk(Path(before), cut_after=lots.randint(1, most_steps))
        acknowledged = _busy(disk, lots, synchronous)
        disk.after_cut(lots, Path(after))
        return _restarted(f"sqlite:///{after}/{FILE}", acknowledged)


def _busy(disk: Disk, lots: Random, synchronous: str) -> list[Acknowledged]:
    """Run callers, some at a time, until nothing commits any more. Returns what they were told."""
    database = Database(f"sqlite+apsw:///{disk.folder}/{FILE}?vfs={disk.name}")
    # A low threshold copies the journal into the database file now and then, and begins the journal anew.
    pragmas = (f"synchronous={synchronous}", f"wal_autocheckpoint={lots.choice((1, 10, 40, 1000))}")
    sa.event.listen(
        database.engine, "connect", lambda connection, _: [connection.execute(f"PRAGMA {p}") for p in pragmas]
    )
    books = new_books(GATEWAY, Clock())
    acknowledged: list[Acknowledged] = []
    try:
        try:
            engine_of(database, ledger_client.metadata, metering.metadata)
        except sa.exc.OperationalError:
            return []  # cut before there was a table
        with Committer(database.write, LOG, max_batch=lots.choice((1, 4, 256))) as committer:
            try:
                acknowledged.append(committer.submit(lambda tx: fund(books, tx)).result())
                callers = [Caller(books, lots) for _ in range(lots.randint(1, 12))]
                while True:
                    busy = lots.sample(callers, lots.randint(1, len(callers)))
                    futures = _together(committer, [caller.next() for caller in busy])
                    acknowledged += [caller.done(future.result()) for caller, future in zip(busy, futures, strict=True)]
            except CommitError:
                assert disk.off
    finally:
        database.close()
    return acknowledged


def _together(committer: Committer, steps: Sequence[Step]) -> list[Any]:
    """Submit steps so that they wait together, whatever the threads do; returns their futures, resolved."""
    entered, opened = threading.Event(), threading.Event()

    def gate(_transaction: Transaction) -> None:
        entered.set()
        opened.wait()

    held = committer.submit(gate)
    entered.wait()
    futures = [committer.submit(step.work, step.expected) for step in steps]
    opened.set()
    for future in (held, *futures):
        future.exception()
    return futures


def _restarted(url: str, acknowledged: Sequence[Acknowledged]) -> Outcome:
    """Open what is left with the driver that gateways use, recover, write on, and check."""
    database = Database(url)
    try:
        engine_of(database, ledger_client.metadata, metering.metadata)
        with database.read() as connection:
            missing = lost(connection, acknowledged)
        if not missing:
            books = new_books(GATEWAY, Clock())
            with Committer(database.write, LOG) as committer:
                committer.submit(lambda tx: recover(books, tx, GATEWAY)).result()
                committer.submit(lambda tx: fund(books, tx)).result()
        with database.read() as connection:
            assert missing or not list(open_intents(connection))
            found = findings(connection)
    finally:
        database.close()
    return Outcome(acknowledged=len(acknowledged), lost=tuple(missing), findings=tuple(found))


@cache
def _template() -> Path:
    """A database with tables and nothing in them, made once."""
    folder = Path(tempfile.mkdtemp())
    database = Database(f"sqlite:///{folder}/{FILE}")
    engine_of(database, ledger_client.metadata, metering.metadata)
    database.close()
    return folder / FILE
