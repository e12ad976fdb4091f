"""Periods and the statements of contributors for them, as they follow from the log alone.

A period is a month in UTC, written `YYYY-MM`. An entry belongs to the month of its time or, where an earlier entry of
the log has closed that month, to the first month that is not closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from ledger_client.entries import JSON, canonical
from ledger_client.merkle import Frontier, leaf_hash

_PERIOD = re.compile(r"[0-9]{4}-(?:0[1-9]|1[0-2])")


class PeriodFormatError(ValueError):
    """A text that is no period."""


def check_period(period: str) -> str:
    """Return the period if it is one. Raises PeriodFormatError."""
    if not isinstance(period, str) or _PERIOD.fullmatch(period) is None:
        raise PeriodFormatError(f"a period is a month such as 2025-01, not {period!r}")
    return period


def period_after(period: str) -> str:
    """Return the month that follows."""
    year, month = int(period[:4]), int(period[5:])
    return f"{year + month // 12:04}-{month % 12 + 1:02}"


def period_of(time: str, last_closed: str | None) -> str:
    """Return the period of an entry with this time in a log whose newest closed period is `last_closed`."""
    return time[:7] if last_closed is None else max(time[:7], period_after(last_closed))


def has_ended(period: str, now: datetime) -> bool:
    """Tell whether a period is over. now: with its zone, in UTC."""
    return f"{now:%Y-%m}" > period


@dataclass(frozen=True, kw_only=True)
class StatementSummary:
    """A contributor's account in one period, in nano-USD; earned + corrected + paid lead from opening to closing.

    paid_nano: at most 0, for what is paid leaves the account. lines: how many postings there were.
    """

    contributor: str
    period: str
    opening_nano: int
    earned_nano: int
    corrected_nano: int
    paid_nano: int
    lines: int

    @property
    def closing_nano(self) -> int:
        """The balance at the end of the period."""
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
        """Return the canonical bytes (RFC 8785), the leaf of the period's statements."""
        return canonical(self.as_json())


def statements_root(summaries: Iterable[StatementSummary]) -> bytes:
    """Return the RFC 6962 root over the statements of a period, given in the order of contributor ids."""
    frontier = Frontier()
    for summary in summaries:
        frontier = frontier.append(leaf_hash(summary.encode()))
    return frontier.root()
