"""Periods: months that close in order, and roots over what they say of contributors."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from ledger_client import EMPTY_ROOT, PeriodError, StatementSummary, next_period, period_of, statements_root
from ledger_client.periods import check_closing, check_period, column_of

MONTHS = st.dates().map(lambda day: f"{day.year:04}-{day.month:02}").filter(lambda month: month < "9999-12")
SUMMARIES = st.builds(
    StatementSummary,
    contributor=st.text("abc-", min_size=1, max_size=5),
    period=st.just("2026-10"),
    opening_nano=st.integers(-(10**20), 10**20),
    earned_nano=st.integers(0, 10**20),
    corrected_nano=st.integers(-(10**20), 10**20),
    paid_nano=st.integers(-(10**20), 0),
    lines=st.integers(0, 10**9),
)


def test_a_month_follows_a_month() -> None:
    assert next_period("2026-10") == "2026-11"
    assert next_period("2026-12") == "2027-01"


@given(MONTHS)
def test_the_next_month_is_later_and_none_lies_between(month: str) -> None:
    following = next_period(month)
    assert month < following == check_period(following)
    assert following[5:] == "01" if month.endswith("12") else int(following[5:]) == int(month[5:]) + 1


@pytest.mark.parametrize("text", ["", "2026", "2026-13", "2026-00", "2026-1", "2026-10-01", "٢٠٢٦-10", "2026-10\n"])
def test_other_spellings_are_no_periods(text: str) -> None:
    with pytest.raises(PeriodError):
        check_period(text)


def test_a_late_entry_belongs_to_the_first_month_that_is_open() -> None:
    assert period_of("2026-10-31T23:59:59.999999Z", None) == "2026-10"
    assert period_of("2026-11-01T00:00:00Z", "2026-09") == "2026-11"
    assert period_of("2026-10-31T23:59:59Z", "2026-10") == "2026-11"
    assert period_of("2025-01-01T00:00:00Z", "2026-12") == "2027-01"


@given(st.lists(MONTHS, max_size=6), st.none() | MONTHS)
def test_no_entry_belongs_to_a_closed_month_or_to_one_before_its_time(times: list[str], closed: str | None) -> None:
    for month in times:
        period = period_of(f"{month}-01T00:00:00Z", closed)
        assert period >= month
        assert closed is None or period > closed


def test_a_month_closes_after_its_end_and_in_its_turn() -> None:
    check_closing("2026-10", "2026-11-01T00:00:00Z", None)
    check_closing("2026-10", "2027-02-01T00:00:00Z", "2026-09")
    for period, time, closed in [
        ("2026-10", "2026-10-31T23:59:59Z", "2026-09"),
        ("2026-10", "2026-12-01T00:00:00Z", "2026-10"),
        ("2026-10", "2026-12-01T00:00:00Z", "2026-08"),
        ("2026-10", "2026-12-01T00:00:00Z", "2026-11"),
        ("soon", "2026-12-01T00:00:00Z", None),
    ]:
        with pytest.raises(PeriodError):
            check_closing(period, time, closed)


def test_a_line_counts_by_its_entry() -> None:
    columns = [column_of(name) for name in ("answer.attributed", "answer.superseded", "payout.recorded")]
    assert columns == ["earned", "corrected", "paid"]


@given(SUMMARIES)
def test_a_summary_is_canonical_and_adds_up(summary: StatementSummary) -> None:
    members = {
        name: str(value) if name.endswith("_nano") else value
        for name, value in {**vars(summary), "closing_nano": summary.closing_nano}.items()
    }
    assert summary.encode() == rfc8785.dumps(members)
    assert summary.closing_nano == sum(
        (summary.opening_nano, summary.earned_nano, summary.corrected_nano, summary.paid_nano)
    )


@given(st.lists(SUMMARIES, max_size=8, unique_by=lambda summary: summary.contributor), st.randoms())
def test_the_root_does_not_depend_on_order(summaries: list[StatementSummary], random: object) -> None:
    shuffled = summaries.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert statements_root(shuffled) == statements_root(summaries)


def test_the_root_is_that_of_rfc_6962() -> None:
    one = StatementSummary(contributor="ada", period="2026-10", earned_nano=5, lines=1)
    two = StatementSummary(contributor="bob", period="2026-10", opening_nano=7)
    leaves = [hashlib.sha256(b"\0" + summary.encode()).digest() for summary in (one, two)]
    assert statements_root([]) == EMPTY_ROOT
    assert statements_root([two, one]) == hashlib.sha256(b"\1" + b"".join(leaves)).digest()


def test_a_root_is_of_one_period_and_names_no_one_twice() -> None:
    one = StatementSummary(contributor="ada", period="2026-10")
    with pytest.raises(PeriodError):
        statements_root([one, replace(one, lines=2)])
    with pytest.raises(PeriodError):
        statements_root([one, replace(one, contributor="bob", period="2026-11")])
