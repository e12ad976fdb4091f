"""Spills: what is equal among more values than one would hold."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger_client import spill
from ledger_client.spill import Group, Spill

RECORDS = st.lists(st.tuples(st.binary(max_size=1), st.integers(0, 2**63 - 1), st.booleans()), max_size=60)


@pytest.fixture(params=[24, 240, 10**6])
def _held_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, now and then, or never do records go to files."""
    monkeypatch.setattr(spill, "_HELD_BYTES", request.param)


def expected(records: list[tuple[bytes, int, bool]]) -> list[Group]:
    groups: defaultdict[bytes, Group] = defaultdict(lambda: Group([], []))
    for value, number, marked in sorted(records):
        groups[value][marked].append(number)
    return sorted(groups.values())


@pytest.mark.usefixtures("_held_bytes")
@given(records=RECORDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_groups_are_those_of_a_dict(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[bytes, int, bool]]
) -> None:
    filled = Spill(tmp_path_factory.mktemp("spill"), "records")
    for value, number, marked in records:
        filled.add(value, number, marked=marked)
    groups = expected(records)
    assert sorted(filled.repeated()) == [group for group in groups if len(group.numbers) + len(group.marked) > 1]
    matched = (1, 1)
    assert sorted(filled.unmatched()) == [
        group for group in groups if group.marked and (len(group.numbers), len(group.marked)) != matched
    ]


def test_few_records_never_touch_the_disk(tmp_path: Path) -> None:
    filled = Spill(tmp_path / "is not there", "records")
    for number in range(1000):
        filled.add(b"%d" % (number % 999), number)
    assert list(filled.repeated()) == [Group([0, 999], [])]
