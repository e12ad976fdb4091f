"""Simulate histories for as long as one likes: python -m tests.simulation --seeds 0:1000."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tests.databases import NewDatabase, postgresql, postgresql_schema, sqlite_file

from .seeds import STEPS, SimulationFailed, run_seed


@contextmanager
def _databases(kind: str) -> Iterator[NewDatabase]:
    if kind == "sqlite":
        yield sqlite_file
        return
    with postgresql() as server:
        yield partial(postgresql_schema, server)


def _range(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last) if last else int(first) + 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_range, default=range(100), help="one seed, or FIRST:END; 0:100 unless given")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each history; {STEPS} unless given")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    asked = parser.parse_args()
    happened: Counter[str] = Counter()
    entries = 0
    started_s = time.monotonic()
    with _databases(asked.database) as new_database:
        for done, seed in enumerate(asked.seeds, start=1):
            try:
                report = run_seed(seed, asked.steps, new_database, asked.database)
            except SimulationFailed as failure:
                sys.stderr.write(f"\n{failure}\n")
                return 1
            happened += report.happened
            entries += report.size
            rate = done / (time.monotonic() - started_s)
            progress = f"{done} of {len(asked.seeds)} seeds, {rate:.1f} a second, {entries} entries; seed {seed}"
            sys.stdout.write(f"\r{progress} ended in {report.root[:16]}")
            sys.stdout.flush()
    sys.stdout.write("\n" + ", ".join(f"{what}: {often}" for what, often in happened.most_common()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
