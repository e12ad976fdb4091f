from __future__ import annotations

import json
from contextlib import closing

import pytest

from benchmarks.ledger import __main__ as benchmark
from benchmarks.ledger import commits, earnings
from benchmarks.ledger.__main__ import KEYS
from gateway.database import Database
from metering import Grouping, statement
from metering import earnings as earned

from ..databases import NewDatabase  # noqa: TID252  the tests are no package of their own


def test_the_last_line_has_every_figure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks.ledger", "--quick"])
    benchmark.main()
    *table, last = capsys.readouterr().out.splitlines()
    assert any("sqlite, 32 callers" in line for line in table)
    marker, _, figures = last.partition(" ")
    result = json.loads(figures)
    assert marker == "RESULT"
    assert set(KEYS) <= result.keys()
    assert result["lost"] == result["findings"] == 0 < result["kills"]
    assert all(result[key] > 0 for key in KEYS if key != "lost")


def test_one_part_can_be_measured_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--quick", "--only", "earnings", "--databases", "sqlite", "--postings", "3000"]
    monkeypatch.setattr("sys.argv", ["benchmarks.ledger", *arguments])
    benchmark.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1].removeprefix("RESULT "))
    assert result["earnings_postings_sqlite"] == 3000
    assert result["earnings_p99_ms"] > 0
    assert result["records_s_sqlite_32"] is None


def test_every_record_is_counted_and_waits_for_its_transaction(new_database: NewDatabase) -> None:
    figures = commits.through_the_books(new_database, 4, 60)
    assert len(figures.ack_ms) == 60
    assert figures.ack_ms == sorted(figures.ack_ms)
    assert 0 < figures.ack_ms_at(0.5) <= figures.ack_ms_at(0.99) <= figures.ack_ms_at(1)
    assert len(commits.through_the_driver(new_database, 12).ack_ms) == 12


@pytest.mark.parametrize("contributor", [earnings.BUSY, "owner-1", "owner-2"])
def test_what_is_loaded_is_what_the_books_would_keep(new_database: NewDatabase, contributor: str) -> None:
    with new_database() as url, closing(Database(url)) as database:
        earnings.load(database, 6000, 2)
        with database.read() as connection:
            by: tuple[Grouping, ...] = ("document", "adapter", "model", "day")
            ever = {grouping: earned(connection, contributor, None, grouping) for grouping in by}
            january = statement(connection, contributor, "2024-01")
    total_nano = ever["day"].total_nano
    assert total_nano > 0
    assert sum(ever["day"].groups.values()) == sum(ever["model"].groups.values()) == total_nano
    assert None not in ever["day"].groups
    assert None not in ever["model"].groups
    of_items = [ever[kind].groups for kind in ("document", "adapter")]
    assert sum(amount for groups in of_items for item, amount in groups.items() if item) == total_nano
    assert sum(line.amount_nano for line in january.lines) == january.summary.earned_nano > 0
    if contributor != earnings.BUSY:
        assert len(ever["day"].groups) == 24 * 28
