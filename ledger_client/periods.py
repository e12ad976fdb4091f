"""Settlement periods, which follow from the log alone, and what a closed period says of each contributor.

A period is a month in UTC, written "2026-10". Months close in order and after they have ended, each by a
`period.closed` entry; what is logged for a closed month thereafter belongs to the first month that is not closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import orjson

from ledger_client.entries import JSON
from ledger_client.merkle import Frontier, leaf_hash

Column: TypeAlias = Literal["earned", "corrected", "paid"]
"""What a line of a statement counts as."""

_PERIOD = re.compile(r"[0-9]{4}-(?:0[1-9]|1[0-2])")
_COLUMNS: dict[str, Column] = {"answer.superseded": "corrected", "payout.recorded": "paid"}


class PeriodError(ValueError):
    """A text that is no period, or a period that cannot be closed yet."""


def check_period(period: str) -> str:
    """Return the period. Raises PeriodError unless it is a month such as "2026-10"."""
    if not isinstance(period, str) or not _PERIOD.fullmatch(period):
        raise PeriodError(f"a period is a month such as 2026-10, not {period!r:.60}")
    return period


def next_period(period: str) -> str:
    """Return the month that follows."""
    year, month = int(check_period(period)[:4]), int(period[5:])
    return f"{year + month // 12:04}-{month % 12 + 1:02}"


def period_of(time: str, last_closed: str | None) -> str:
    """Return the period that an entry of this time belongs to, when last_closed is the last month closed before it.

    time: RFC 3339 in UTC. last_closed: None while no month is closed.
    """
    month = time[:7]
    return month if last_closed is None or month > last_closed else next_period(last_closed)


def check_closing(period: str, time: str, last_closed: str | None) -> None:
    """Raise PeriodError unless a month may be closed at this time: it has ended, and its turn has come."""
    if check_period(period) >= time[:7]:
        raise PeriodError(f"{period} has not ended by {time}")
    if last_closed is not None and period != next_period(last_closed):
        raise PeriodError(f"{period} is closed out of turn: after {last_closed} comes {next_period(last_closed)}")


def column_of(entry_type: str) -> Column:
    """Return what a posting on a contributor's account counts as, by the type of its entry."""
    return _COLUMNS.get(entry_type, "earned")


@dataclass(frozen=True, kw_only=True)
class StatementSummary:
    """One contributor's account over a period, in nano-USD; lines is the number of its postings.

    A period has one for each contributor with a line in it, or with an opening balance that is not 0.
    corrected_nano may have either sign, and paid_nano is at most 0.
    """

    contributor: str
    period: str
    opening_nano: int = 0
    earned_nano: int = 0
    corrected_nano: int = 0
    paid_nano: int = 0
    lines: int = 0

    def __post_init__(self) -> None:
        check_period(self.period)

    @property
    def closing_nano(self) -> int:
        """What the account holds at the end of the period, and opens the next with."""
        return self.opening_nano + self.earned_nano + self.corrected_nano + self.paid_nano

    def as_json(self) -> dict[str, JSON]:
        """Return a JSON object; amounts are decimal strings."""
        return {
            "contributor": self.contributor,
            "period": self.period,
            "opening_nano": str(self.opening_nano),
            "earned_nano": str(self.earned_nano),
            "corrected_nano": str(self.corrected_nano),
            "paid_nano": str(self.paid_nano),
            "closing_nano": str(self.closing_nano),
            "lines": self.lines,
        }

    def encode(self) -> bytes:
        """Return the canonical JSON (RFC 8785) that is a leaf of the statements' tree."""
        # Of ASCII keys, strings and whole numbers orjson writes what RFC 8785 says.
        return orjson.dumps(self.as_json(), option=orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER)


def statements_root(summaries: Iterable[StatementSummary]) -> bytes:
    """Return the RFC 6962 root over the summaries of a period, by contributor, whatever order they come in.

    Raises PeriodError when they are not of one period, or name a contributor twice.
    """
    ordered = sorted(summaries, key=lambda summary: summary.contributor)
    if len({summary.contributor for summary in ordered}) != len(ordered):
        raise PeriodError("a contributor has one statement a period")
    if len({summary.period for summary in ordered}) > 1:
        raise PeriodError("the statements of one root are of one period")
    frontier = Frontier()
    for summary in ordered:
        frontier = frontier.append(leaf_hash(summary.encode()))
    return frontier.root()
