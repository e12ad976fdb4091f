"""Acknowledged records lost to power cuts and kills: none, where SQLite syncing less loses some.

SQLite is cut off its power on a simulated disk and killed; PostgreSQL's clients, single processes and whole server are
killed. Alone: python -m benchmarks.ledger.faults.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from random import Random

from tests.databases import NewDatabase, Server, postgresql_schema, sqlite_file
from tests.simulation import kills, powercut

POWER_CUTS = 160
KILLS_SQLITE = 60
KILLS_CLIENT = 180
KILLS_PROCESS = 15
KILLS_SERVER = 15
CONTROLS = 60
RUNS_A_LEDGER = 6  # a longer log takes longer to check

Told = Callable[[str], object]


@dataclass(kw_only=True)
class Counts:
    """What so many runs came to. losing_runs: in how many of them something acknowledged was lost."""

    runs: int = 0
    acknowledged: int = 0
    lost: int = 0
    losing_runs: int = 0
    findings: int = 0

    def add(self, outcome: kills.Outcome | powercut.Outcome) -> None:
        """Count one run."""
        self.runs += 1
        self.acknowledged += outcome.acknowledged
        self.lost += len(outcome.lost)
        self.losing_runs += bool(outcome.lost)
        self.findings += len(outcome.findings)

    def plus(self, other: Counts) -> Counts:
        """Return both together."""
        return Counts(**{name: count + asdict(other)[name] for name, count in asdict(self).items()})


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Runs on each database, and of the negative control: SQLite with synchronous=NORMAL."""

    sqlite: Counts
    postgresql: Counts
    control: Counts


def faults(tell: Told = print, part: float = 1.0) -> Faults:
    """Run them all and return the counts. tell: takes a line of progress now and then. part: of the runs, for a try."""
    counted = partial(_counted, tell)
    cuts = counted("SQLite, power cut", _cuts(_share(POWER_CUTS, part), "FULL"))
    control = counted("SQLite, power cut with synchronous=NORMAL", _cuts(_share(CONTROLS, part), "NORMAL"))
    killed = counted("SQLite, writers killed", _kills(sqlite_file, _share(KILLS_SQLITE, part), kills.one_writer))
    with Server() as server:
        schema = partial(postgresql_schema, server.url)
        clients = counted("PostgreSQL, writers killed", _kills(schema, _share(KILLS_CLIENT, part), kills.one_writer))
        one = kills.one_of_the_server(server, Random(1))  # noqa: S311 - lots, and no secrets
        single = counted("PostgreSQL, one process killed", _kills(schema, _share(KILLS_PROCESS, part), one))
        every = kills.whole_server(server)
        whole = counted("PostgreSQL, every process killed", _kills(schema, _share(KILLS_SERVER, part), every))
    return Faults(sqlite=cuts.plus(killed), postgresql=clients.plus(single).plus(whole), control=control)


def _counted(tell: Told, what: str, outcomes: Iterator[kills.Outcome | powercut.Outcome]) -> Counts:
    counts, started_s = Counts(), time.monotonic()
    for outcome in outcomes:
        counts.add(outcome)
        if counts.runs % 20 == 0:
            tell(f"{what}: {_line(counts)}, {(time.monotonic() - started_s) / counts.runs:.2f} s a run")
    tell(f"{what}: {_line(counts)}, {time.monotonic() - started_s:.0f} s in all")
    return counts


def _cuts(runs: int, synchronous: str) -> Iterator[powercut.Outcome]:
    return (powercut.run(seed, synchronous) for seed in range(runs))


def _kills(new_database: NewDatabase, runs: int, strike: kills.Strike) -> Iterator[kills.Outcome]:
    lots = Random(runs)  # noqa: S311 - lots, and no secrets
    while runs > 0:
        with new_database() as url, closing(kills.UnderFire(url)) as ledger:
            for _ in range(min(runs, RUNS_A_LEDGER)):
                yield ledger.run(lots, strike, writers=lots.randint(1, 2))
        runs -= RUNS_A_LEDGER


def _share(runs: int, part: float) -> int:
    return max(round(runs * part), 1)


def _line(counts: Counts) -> str:
    return (
        f"{counts.runs} runs, {counts.acknowledged} acknowledged, {counts.lost} lost in {counts.losing_runs} runs, "
        f"{counts.findings} findings"
    )


def measure(part: float = 1.0) -> dict[str, int]:
    """Print what is lost; returns the figures of bench-ledger that this file measures. part: of the runs, for a try.

    kills: the runs, power cuts among them, of the database that has fewer.
    """
    counted = faults(partial(print, file=sys.stderr, flush=True), part)
    for name, counts in (
        ("SQLite", counted.sqlite),
        ("PostgreSQL", counted.postgresql),
        ("SQLite with synchronous=NORMAL", counted.control),
    ):
        print(f"{name}: {_line(counts)}", flush=True)
    return {
        "lost": counted.sqlite.lost + counted.postgresql.lost,
        "findings": counted.sqlite.findings + counted.postgresql.findings,
        "kills": min(counted.sqlite.runs, counted.postgresql.runs),
        "control_lost": counted.control.lost,
    }


def main() -> None:
    """Print what is lost, and fail unless it is nothing, and the control's something."""
    figures = measure()
    assert figures["lost"] == figures["findings"] == 0 < figures["control_lost"]


if __name__ == "__main__":
    main()
