"""Power cuts on SQLite, from fixed seeds: nothing acknowledged is lost, unless SQLite is told to sync less."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from random import Random

import apsw
import pytest

from .disk import SECTOR_BYTES, Disk
from .powercut import run


@pytest.mark.parametrize("part", range(3))
def test_a_power_cut_loses_nothing_that_was_acknowledged(part: int) -> None:
    acknowledged = 0
    for seed in range(part * 10, part * 10 + 10):
        outcome = run(seed)
        assert outcome.clean, f"seed {seed}: {outcome}"
        acknowledged += outcome.acknowledged
    assert acknowledged > 50


def test_with_less_syncing_acknowledged_records_are_lost() -> None:
    outcomes = [run(seed, "NORMAL") for seed in range(20)]
    assert sum(bool(outcome.lost) for outcome in outcomes) >= 3


def test_the_disk_keeps_what_was_synced_and_draws_lots_for_the_rest(tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    disk = Disk(before)
    connection = apsw.Connection(str(before / "a.db"), vfs=disk.name)
    connection.execute(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (number INTEGER)"
    ).fetchall()
    connection.execute("INSERT INTO t VALUES (1)")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("INSERT INTO t VALUES (2)")
    assert disk.files["a.db-wal"].dirty
    seen = set()
    for seed in range(40):
        after = tmp_path / str(seed)
        after.mkdir()
        disk.after_cut(Random(seed), after)  # noqa: S311 - lots, and no secrets
        with sqlite3.connect(after / "a.db") as left:
            seen.add(tuple(number for (number,) in left.execute("SELECT number FROM t")))
    assert seen == {(1,), (1, 2)}
    with suppress(apsw.Error):  # the disk is off
        connection.close()


def test_the_disk_goes_off_at_the_step_that_it_is_told(tmp_path: Path) -> None:
    disk = Disk(tmp_path, cut_after=3)
    connection = apsw.Connection(str(tmp_path / "a.db"), vfs=disk.name)
    with pytest.raises(apsw.Error):
        connection.execute("CREATE TABLE t (number INTEGER)")
    assert (disk.off, disk.steps) == (True, 4)
    with pytest.raises(apsw.Error):
        connection.execute("SELECT * FROM sqlite_schema").fetchall()
    assert (tmp_path / "a.db").stat().st_size % SECTOR_BYTES == 0
