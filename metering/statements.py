"""What a contributor has earned, and the postings that say so."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Literal, TypeAlias

from sqlalchemy import ColumnElement, Connection, case, func, select, tuple_
from sqlalchemy.sql.expression import null

from ledger_client import JSON
from metering._checks import check_whole
from metering.errors import MeteringError
from metering.postings import contributor_account
from metering.store import Line, posting_table

Grouping: TypeAlias = Literal["document", "adapter", "model", "day"]

MAX_PAGE_LINES = 1000

_PERIOD = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")
_CURSOR = re.compile(r"(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]{0,8})")

_columns = posting_table.c
_GROUP_KEYS: Mapping[str, ColumnElement[str | None]] = MappingProxyType(
    {
        "document": case((_columns.kind == "document", _columns.item), else_=null()),
        "adapter": case((_columns.kind == "adapter", _columns.item), else_=null()),
        "model": _columns.served_model,
        "day": func.substr(_columns.time, 1, 10),
    }
)


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
        return {"entries": [_line_json(line) for line in self.lines], "next_after": self.next_after}


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A contributor's account in one period, a month in UTC; all amounts in nano-USD."""

    contributor: str
    period: str
    opening_nano: int
    lines: tuple[Line, ...]

    @property
    def total_nano(self) -> int:
        """What the lines sum to."""
        return sum(line.amount_nano for line in self.lines)

    @property
    def closing_nano(self) -> int:
        """The balance at the end of the period."""
        return self.opening_nano + self.total_nano

    def as_json(self) -> dict[str, JSON]:
        """Return a JSON object; amounts are decimal strings."""
        return {
            "contributor": self.contributor,
            "period": self.period,
            "opening_nano": str(self.opening_nano),
            "lines": [_line_json(line) for line in self.lines],
            "total_nano": str(self.total_nano),
            "closing_nano": str(self.closing_nano),
        }

    def as_csv(self) -> str:
        """Return CSV (RFC 4180) with a running balance, from the opening balance to the closing one in the last row.

        A text that a spreadsheet would take for a formula is preceded by an apostrophe.
        """
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(
            ["log_index", "time", "request_id", "role", "kind", "item", "served_model", "amount_nano", "balance_nano"]
        )
        writer.writerow(["", "", "", "opening balance", "", "", "", "", self.opening_nano])
        balances = accumulate((line.amount_nano for line in self.lines), initial=self.opening_nano)
        next(balances)
        for line, balance_nano in zip(self.lines, balances, strict=True):
            texts = (line.time, line.request_id, line.role, line.kind, line.item, line.served_model)
            writer.writerow([line.log_index, *map(_cell, texts), line.amount_nano, balance_nano])
        return file.getvalue()


def earnings(
    connection: Connection, contributor: str, period: str | None = None, group_by: Grouping | None = None
) -> Earnings:
    """Sum what a contributor earned, in a period `YYYY-MM` (UTC) or ever, and group it if asked.

    Raises MeteringError on a malformed contributor, period or grouping.
    """
    if group_by is not None and group_by not in _GROUP_KEYS:
        raise MeteringError(f"earnings are grouped by one of {', '.join(_GROUP_KEYS)}, not {group_by!r}")
    where = [_columns.account == contributor_account(contributor)]
    if period is not None:
        start, end = _span(period)
        where += [_columns.time >= start, _columns.time < end]
    if group_by is None:
        return Earnings(
            contributor=contributor, period=period, total_nano=_sum(connection, *where), group_by=None, groups={}
        )
    query = select(_GROUP_KEYS[group_by].label("key"), func.sum(_columns.amount_nano)).where(*where).group_by("key")
    groups = [(key, int(amount)) for key, amount in connection.execute(query)]
    by_key = sorted(groups, key=lambda group: (group[0] is None, group[0]))
    ordered = by_key if group_by == "day" else sorted(by_key, key=lambda group: (group[0] is None, -group[1]))
    total_nano = sum(amount for _, amount in groups)
    return Earnings(
        contributor=contributor, period=period, total_nano=total_nano, group_by=group_by, groups=dict(ordered)
    )


def entries(connection: Connection, contributor: str, after: str | None = None, limit: int = 100) -> Page:
    """Return up to `limit` postings of a contributor, newest last, from behind the cursor `after` of an earlier page.

    limit: 1 … MAX_PAGE_LINES. Raises MeteringError on a limit outside, or a cursor that no page gave.
    """
    check_whole("limit", limit, minimum=1, maximum=MAX_PAGE_LINES)
    where = [_columns.account == contributor_account(contributor)]
    if after is not None:
        where.append(tuple_(_columns.log_index, _columns.position) > _place(after))
    lines = _lines(connection, *where, limit=limit + 1)
    page = lines[:limit]
    more = len(lines) > limit
    return Page(lines=page, next_after=f"{page[-1].log_index}.{page[-1].position}" if more else None)


def statement(connection: Connection, contributor: str, period: str) -> Statement:
    """Return a contributor's statement for a period `YYYY-MM`, in UTC.

    Raises MeteringError on a malformed contributor or period.
    """
    account = _columns.account == contributor_account(contributor)
    start, end = _span(period)
    return Statement(
        contributor=contributor,
        period=period,
        opening_nano=_sum(connection, account, _columns.time < start),
        lines=_lines(connection, account, _columns.time >= start, _columns.time < end),
    )


def _span(period: str) -> tuple[str, str]:
    """Return what times of the period are at least, and what they are below. Times sort as text."""
    if not isinstance(period, str) or _PERIOD.fullmatch(period) is None:
        raise MeteringError(f"a period is a month such as 2025-01, not {period!r}")
    year, month = int(period[:4]), int(period[5:])
    return period, f"{year + month // 12:04}-{month % 12 + 1:02}"


def _place(cursor: str) -> tuple[int, int]:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise MeteringError(f"a cursor is what an earlier page gave as next_after, not {cursor!r}")
    return int(match[1]), int(match[2])


def _sum(connection: Connection, *where: ColumnElement[bool]) -> int:
    return int(connection.scalar(select(func.sum(_columns.amount_nano)).where(*where)) or 0)


def _lines(connection: Connection, *where: ColumnElement[bool], limit: int | None = None) -> tuple[Line, ...]:
    query = select(posting_table).where(*where).order_by(_columns.log_index, _columns.position).limit(limit)
    return tuple(Line(**row) for row in connection.execute(query).mappings())


def _line_json(line: Line) -> dict[str, JSON]:
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


def _cell(text: str | None) -> str:
    if text is None:
        return ""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
