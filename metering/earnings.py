"""What a contributor has earned, read from sums that are kept as postings are made, and the postings themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from sqlalchemy import BigInteger, ColumnElement, Connection, cast, func, select, tuple_

from ledger_client import JSON, PeriodError, check_period
from metering._checks import check_whole
from metering.errors import MeteringError
from metering.postings import contributor_account
from metering.store import Line
from metering.tables import account_period_table, earning_table, is_contributors, posting_table

Grouping: TypeAlias = Literal["document", "adapter", "model", "day"]

MAX_PAGE_LINES = 1000

_CURSOR = re.compile(r"(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]{0,8})")


@dataclass(frozen=True, kw_only=True)
class Earnings:
    """What a contributor earned, in nano-USD, in a period (None: ever), and by what.

    groups: from document id, adapter name, served model or UTC day to its part, largest first (days in order); None
    stands for what came through no document or adapter. Their sum is total_nano. Empty when no grouping was asked for.
    """

    contributor: str
    period: str | None
    total_nano: int
    group_by: Grouping | None
    groups: Mapping[str | None, int]

    def as_json(self) -> dict[str, JSON]:
        """Return a JSON object; amounts are decimal strings."""
        return {
            "contributor": self.contributor,
            "period": self.period,
            "total_nano": str(self.total_nano),
            "group_by": self.group_by,
            "groups": [{"key": key, "amount_nano": str(amount)} for key, amount in self.groups.items()],
        }


@dataclass(frozen=True, kw_only=True)
class Page:
    """Postings in log order, and the cursor after the last of them, or None when there are no more."""

    lines: tuple[Line, ...]
    next_after: str | None

    def as_json(self) -> dict[str, JSON]:
        """Return a JSON object; amounts are decimal strings."""
        return {"entries": [line_json(line) for line in self.lines], "next_after": self.next_after}


def earnings(
    connection: Connection, contributor: str, period: str | None = None, group_by: Grouping | None = None
) -> Earnings:
    """Say what a contributor earned, corrections included, in a period `YYYY-MM` (UTC) or ever, grouped if asked.

    Raises MeteringError on a malformed contributor, period or grouping.
    """
    if group_by is not None and group_by not in get_args(Grouping):
        raise MeteringError(f"earnings are grouped by one of {', '.join(get_args(Grouping))}, not {group_by!r}")
    account = contributor_account(contributor)
    sums, by = account_period_table.c, earning_table.c
    of_period = [sums.account == account]
    by_period = [by.account == account, by.dimension == group_by]
    if period is not None:
        checked_period(period)
        of_period.append(sums.period == period)
        by_period.append(by.period == period)
    earned = select(func.sum(sums.earned_nano + sums.corrected_nano)).where(*of_period)
    total_nano = int(connection.scalar(earned) or 0)
    groups: dict[str | None, int] = {}
    if group_by is not None:
        query = select(by.key, cast(func.sum(by.amount_nano), BigInteger)).where(*by_period).group_by(by.key)
        found = sorted((key, amount) for key, amount in connection.execute(query))
        groups |= found if group_by == "day" else sorted(found, key=lambda group: -group[1])
        if rest_nano := total_nano - sum(groups.values()):
            groups[None] = rest_nano
    return Earnings(contributor=contributor, period=period, total_nano=total_nano, group_by=group_by, groups=groups)


def entries(connection: Connection, contributor: str, after: str | None = None, limit: int = 100) -> Page:
    """Return up to `limit` postings of a contributor, newest last, from behind the cursor `after` of an earlier page.

    limit: 1 … MAX_PAGE_LINES. Raises MeteringError on a limit outside, or a cursor that no page gave.
    """
    check_whole("limit", limit, minimum=1, maximum=MAX_PAGE_LINES)
    where = [is_contributors, posting_table.c.account == contributor_account(contributor)]
    if after is not None:
        where.append(tuple_(posting_table.c.log_index, posting_table.c.position) > _place(after))
    lines = stored_lines(connection, *where, limit=limit + 1)
    page = lines[:limit]
    more = len(lines) > limit
    return Page(lines=page, next_after=f"{page[-1].log_index}.{page[-1].position}" if more else None)


def stored_lines(connection: Connection, *where: ColumnElement[bool], limit: int | None = None) -> tuple[Line, ...]:
    """Return postings in log order."""
    columns = posting_table.c
    query = select(posting_table).where(*where).order_by(columns.log_index, columns.position).limit(limit)
    return tuple(Line(**row) for row in connection.execute(query).mappings())


def line_json(line: Line) -> dict[str, JSON]:
    """Return a JSON object; the amount is a decimal string."""
    return {
        "log_index": line.log_index,
        "time": line.time,
        "request_id": line.request_id,
        "role": line.role,
        "kind": line.kind,
        "item": line.item,
        "served_model": line.served_model,
        "amount_nano": str(line.amount_nano),
    }


def checked_period(period: str) -> str:
    """Return the period if it is one. Raises MeteringError."""
    try:
        return check_period(period)
    except PeriodError as error:
        raise MeteringError(str(error)) from None


def _place(cursor: str) -> tuple[int, int]:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise MeteringError(f"a cursor is what an earlier page gave as next_after, not {cursor!r}")
    return int(match[1]), int(match[2])
