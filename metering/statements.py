"""A contributor's account statement for a month: every posting, what it comes to, and how its answers were rated."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from jinja2 import Environment, PackageLoader, Template
from sqlalchemy import Connection, case, func, select

from ledger_client import JSON, StatementSummary
from metering.earnings import checked_period, line_json, stored_lines
from metering.postings import CONTRIBUTOR_PREFIX, contributor_account
from metering.store import Line
from metering.tables import account_period_table, is_contributors, period_table, posting_table, rating_table

_CSV_HEAD = (
    "log_index",
    "time",
    "request_id",
    "role",
    "kind",
    "item",
    "served_model",
    "rating",
    "amount_nano",
    "balance_nano",
)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A contributor's account in one period, a month in UTC; all amounts in nano-USD.

    closed_index: log index of the entry that closed the period, None while it is open and lines may still come.
    ratings: request id → 1 or −1, the newest rating that the caller gave the answer; they move no money.
    """

    summary: StatementSummary
    closed_index: int | None
    lines: tuple[Line, ...]
    ratings: Mapping[str, int]

    @property
    def balances_nano(self) -> Iterator[int]:
        """The balance after each line."""
        balances = accumulate((line.amount_nano for line in self.lines), initial=self.summary.opening_nano)
        next(balances)
        return balances

    def rating(self, line: Line) -> int | None:
        """Return the rating of the answer that a line stems from, if there is one."""
        return None if line.request_id is None else self.ratings.get(line.request_id)

    def as_json(self) -> dict[str, JSON]:
        """Return a JSON object; amounts are decimal strings."""
        return {
            **self.summary.as_json(),
            "closed_index": self.closed_index,
            "lines": [line_json(line) | {"rating": self.rating(line)} for line in self.lines],
            "ratings": {
                "positive": sum(rating > 0 for rating in self.ratings.values()),
                "negative": sum(rating < 0 for rating in self.ratings.values()),
            },
        }

    def as_csv(self) -> str:
        """Return CSV (RFC 4180) with a running balance, from the opening balance to the closing one in the last row.

        A text that a spreadsheet would take for a formula is preceded by an apostrophe.
        """
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(_CSV_HEAD)
        writer.writerow(["", "", "", "opening balance", "", "", "", "", "", self.summary.opening_nano])
        for line, balance_nano in zip(self.lines, self.balances_nano, strict=True):
            texts = (line.time, line.request_id, line.role, line.kind, line.item, line.served_model)
            rating = self.rating(line)
            rated = "" if rating is None else rating
            writer.writerow([line.log_index, *map(cell, texts), rated, line.amount_nano, balance_nano])
        return file.getvalue()

    def as_html(self, name: str) -> str:
        """Return a page to read and to print, complete in itself. name: of the contributor, as people know it."""
        lines = zip(self.lines, map(self.rating, self.lines), self.balances_nano, strict=True)
        return _page().render(statement=self, summary=self.summary, name=name, lines=lines)


def statement(connection: Connection, contributor: str, period: str) -> Statement:
    """Return a contributor's statement for a period `YYYY-MM`, in UTC.

    Raises MeteringError on a malformed contributor or period.
    """
    account = contributor_account(contributor)
    checked_period(period)
    sums = _summaries(connection, period, account)
    columns = posting_table.c
    of_account = (is_contributors, columns.account == account, columns.period == period)
    rated = rating_table.c.request_id.in_(select(columns.request_id).where(*of_account))
    ratings = select(rating_table).where(rated).order_by(rating_table.c.log_index)
    return Statement(
        summary=next(sums, StatementSummary(contributor=contributor, period=period)),
        closed_index=connection.scalar(select(period_table.c.log_index).where(period_table.c.period == period)),
        lines=stored_lines(connection, *of_account),
        ratings={row.request_id: row.rating for row in connection.execute(ratings)},
    )


def summaries(connection: Connection, period: str) -> list[StatementSummary]:
    """Return the heads of a period's statements, by contributor: all who had a balance at its start or a line in it."""
    found = (summary for summary in _summaries(connection, period) if summary.opening_nano or summary.lines)
    return sorted(found, key=lambda summary: summary.contributor)  # by bytes, whatever the database's collation


def _summaries(connection: Connection, period: str, account: str | None = None) -> Iterator[StatementSummary]:
    columns = account_period_table.c
    within = columns.period == period
    net_nano = columns.earned_nano + columns.corrected_nano + columns.paid_nano
    query = (
        select(
            columns.account,
            func.sum(case((within, 0), else_=net_nano)).label("opening"),
            *(
                func.sum(case((within, columns[name]), else_=0)).label(name)
                for name in ("earned_nano", "corrected_nano", "paid_nano", "lines")
            ),
        )
        .where(columns.period <= period)
        .group_by(columns.account)
    )
    if account is not None:
        query = query.where(columns.account == account)
    for row in connection.execute(query):
        yield StatementSummary(
            contributor=row.account.removeprefix(CONTRIBUTOR_PREFIX),
            period=period,
            opening_nano=int(row.opening),
            earned_nano=int(row.earned_nano),
            corrected_nano=int(row.corrected_nano),
            paid_nano=int(row.paid_nano),
            lines=int(row.lines),
        )


@cache
def _page() -> Template:
    environment = Environment(loader=PackageLoader("metering", "templates"), autoescape=True, trim_blocks=True)
    environment.filters["usd"] = _usd
    return environment.get_template("statement.html")


def _usd(amount_nano: int) -> str:
    """Write nano-USD as dollars, every decimal kept."""
    whole, decimals = divmod(abs(amount_nano), 10**9)
    return f"{'−' if amount_nano < 0 else ''}{whole:,}.{decimals:09}"


def cell(text: str | None) -> str:
    """Return a text as a cell of CSV; one that a spreadsheet would take for a formula is preceded by an apostrophe."""
    if text is None:
        return ""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
