"""Durable records a second, the earnings query, checking a log, and what kills and power cuts lose."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from benchmarks.ledger import commits, earnings, faults, fsck, postgres
from benchmarks.ledger.commits import NewDatabase
from benchmarks.machine import machine

KEYS = (
    "records_s_sqlite_32",
    "records_s_postgres_32",
    "ack_p50_ms_32",
    "earnings_p99_ms",
    "fsck_entries_s",
    "lost",
    "kills",
)
CALLERS = (32, 256)

# As an operator sets a server for ten million postings; the commits need none of it.
_SERVER = {"shared_buffers": "1GB", "work_mem": "64MB", "maintenance_work_mem": "512MB", "max_wal_size": "4GB"}

_Result: TypeAlias = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured. postings: of the large load of each database; part: of the kills and power cuts."""

    records: int
    small_postings: int
    postings: Mapping[str, int]
    queries: int
    entries: int
    part: float


FULL = Sizes(
    records=24_000,
    small_postings=10_000,
    postings={"sqlite": 1_000_000, "postgres": 10_000_000},
    queries=1000,
    entries=200_000,
    part=1.0,
)
QUICK = Sizes(
    records=600,
    small_postings=2_000,
    postings={"sqlite": 6_000, "postgres": 6_000},
    queries=20,
    entries=2_000,
    part=0.01,
)


def main() -> None:
    """Measure, print a table for people, and last the line that scripts read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=__doc__)
    parser.add_argument("--only", choices=list(PARTS), nargs="+", default=list(PARTS), help="the parts to measure")
    parser.add_argument("--databases", choices=["sqlite", "postgres"], nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--postings", type=int, help="of the large load (10,000,000 on PostgreSQL, a tenth on SQLite)")
    parser.add_argument("--quick", action="store_true", help="everything, so small that its figures say nothing")
    arguments = parser.parse_args()

    sizes = QUICK if arguments.quick else FULL
    if arguments.postings is not None:
        sizes = Sizes(**vars(sizes) | {"postings": dict.fromkeys(sizes.postings, arguments.postings)})
    print(machine())
    result: _Result = dict.fromkeys(KEYS)
    with ExitStack() as opened:
        databases: dict[str, NewDatabase] = {}
        if "sqlite" in arguments.databases:
            databases["sqlite"] = sqlite_file
        if "postgres" in arguments.databases:
            server = opened.enter_context(postgres.postgresql(**_SERVER))
            databases["postgres"] = partial(postgres.postgresql_schema, server)
        for part in arguments.only:
            print(flush=True)
            result |= PARTS[part](databases, sizes)
    print("\nRESULT " + json.dumps(result))


def print_commits(databases: Mapping[str, NewDatabase], sizes: Sizes) -> _Result:
    """Records a second through the books, and beside them one a transaction and the bare driver."""
    print("Durable records: a third each admissions, usages and attributions (one adapter, three documents)")
    print(f"{'':34}{'records/s':>10}{'of driver':>10}{'ack p50 ms':>12}{'p99 ms':>9}{'CPU µs':>9}")
    result: _Result = {}
    p50s_ms = []
    for name, new_database in databases.items():
        driver = commits.through_the_driver(new_database, sizes.records // 4)

        def show(what: str, figures: commits.Figures, name: str = name, driver: commits.Figures = driver) -> None:
            ratio = figures.records_s / driver.records_s
            print(
                f"{name + ', ' + what:34}{figures.records_s:10,.0f}{ratio:10.2f}"
                f"{figures.ack_ms_at(0.5):12.2f}{figures.ack_ms_at(0.99):9.2f}{figures.cpu_us:9.0f}",
                flush=True,
            )

        show("driver, one a transaction", driver)
        alone = commits.through_the_books(new_database, CALLERS[0], sizes.records // 8, max_batch=1)
        show(f"{CALLERS[0]} callers, one a transaction", alone)
        for callers in CALLERS:
            figures = commits.through_the_books(new_database, callers, sizes.records)
            show(f"{callers} callers", figures)
            result[f"records_s_{name}_{callers}"] = round(figures.records_s)
            result[f"over_driver_{name}_{callers}"] = round(figures.records_s / driver.records_s, 3)
            result[f"cpu_us_record_{name}_{callers}"] = round(figures.cpu_us)
            if callers == CALLERS[0]:
                p50s_ms.append(figures.ack_ms_at(0.5))
    print("CPU: of this process, without PostgreSQL's own")
    return result | {"ack_p50_ms_32": round(max(p50s_ms), 3)}


def print_earnings(databases: Mapping[str, NewDatabase], sizes: Sizes) -> _Result:
    """The earnings query after a small load and a large one."""
    result: _Result = {}
    for name, new_database in databases.items():
        small = earnings.measure(new_database, sizes.small_postings, sizes.queries)
        postings = sizes.postings[name]
        if not earnings.room_for(postings):
            print(f"{name}: skipped, the disk has no room for {postings:,} postings")
            continue
        large = earnings.measure(new_database, postings, sizes.queries)
        print(f"{name}, milliseconds{'':21}{small.postings:>22,}{large.postings:>22,} postings")
        print(f"{'':40}{'p50':>11}{'p99':>11}{'p50':>11}{'p99':>11}")
        for what, of_small in small.rows_ms().items():
            times = (part for row in (of_small, large.rows_ms()[what]) for part in row)
            print(f"{what:40}" + "".join(f"{time_ms:11.2f}" for time_ms in times))
        print(f"{large.contributors:,} contributors; loaded in {large.load_s:.0f} s\n", flush=True)
        result[f"earnings_p99_ms_{name}"] = round(large.p99_ms, 3)
        result[f"earnings_over_small_{name}"] = round(large.p99_ms / small.p99_ms, 3)
        result[f"earnings_postings_{name}"] = postings
    worst = max((result[key] for key in result if key.startswith("earnings_p99_ms")), default=None)
    return result | {"earnings_p99_ms": worst}


def print_fsck(_databases: Mapping[str, NewDatabase], sizes: Sizes) -> _Result:
    """Checking a log, and verifying receipts."""
    return fsck.measure(sizes.entries)


def print_faults(_databases: Mapping[str, NewDatabase], sizes: Sizes) -> _Result:
    """What kills and power cuts lose."""
    return faults.measure(sizes.part)


@contextmanager
def sqlite_file() -> Iterator[str]:
    """The URL of an SQLite database that does not exist yet."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/bench.db"


PARTS: dict[str, Callable[[Mapping[str, NewDatabase], Sizes], _Result]] = {
    "commits": print_commits,
    "earnings": print_earnings,
    "fsck": print_fsck,
    "faults": print_faults,
}

if __name__ == "__main__":
    main()
