"""What the rows of the books sum to, held against the sums that are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Row, select

from ledger_client import Fault
from metering.postings import CONTRIBUTOR_PREFIX
from metering.store import Balance
from metering.tables import account_period_table, account_table, earning_table


def total_faults(connection: Connection, totals: Mapping[str, Balance]) -> Iterator[Fault]:
    """Compare the totals of all accounts with what their postings and open intents sum to."""
    stored = {
        row.account: Balance(credits_nano=row.credits_nano, debits_nano=row.debits_nano, pending_nano=row.pending_nano)
        for row in connection.execute(select(account_table))
    }
    for account in sorted(stored.keys() | totals.keys()):
        held, due = stored.get(account, Balance()), totals.get(account, Balance())
        for name in ("credits_nano", "debits_nano"):
            if getattr(held, name) != getattr(due, name):
                yield (
                    "I3",
                    f"{name} of {account} is {getattr(held, name)}, but its postings sum to {getattr(due, name)}",
                )
        if held.pending_nano != due.pending_nano:
            yield (
                "I4",
                f"{held.pending_nano} nano are pending on {account}, but its open intents reserve {due.pending_nano}",
            )


class Earned:
    """What the posting rows of contributors sum to, beside what is stored of that."""

    def __init__(self) -> None:
        self._by_period: Counter[tuple[str, str, str]] = Counter()  # account, period, column
        self._through: Counter[tuple[str, str, str, str]] = Counter()  # account, period, dimension, key

    def add(self, row: Row[Any]) -> None:
        """Count a posting row."""
        if not row.account.startswith(CONTRIBUTOR_PREFIX):
            return
        column = {"correction": "corrected_nano", "payout": "paid_nano"}.get(row.role, "earned_nano")
        self._by_period[row.account, row.period, column] += row.amount_nano
        self._by_period[row.account, row.period, "lines"] += 1
        if row.role == "payout":
            return
        for dimension, key in (("day", row.time[:10]), ("model", row.served_model), (row.kind, row.item)):
            if dimension is not None and key is not None:
                self._through[row.account, row.period, dimension, key] += row.amount_nano

    def faults(self, connection: Connection) -> Iterator[Fault]:
        """Compare with what is stored."""
        stored = Counter(
            {
                (row.account, row.period, name): row._mapping[name]
                for row in connection.execute(select(account_period_table))
                for name in ("earned_nano", "corrected_nano", "paid_nano", "lines")
            }
        )
        for account, period, name in sorted(stored.keys() | self._by_period.keys()):
            held, due = stored[account, period, name], self._by_period[account, period, name]
            if held != due:
                yield "I3", f"{name} of {account} in {period} is {held}, but its postings come to {due}"
        through = Counter(
            {
                (row.account, row.period, row.dimension, row.key): row.amount_nano
                for row in connection.execute(select(earning_table))
            }
        )
        for place in sorted(through.keys() | self._through.keys()):
            if through[place] != self._through[place]:
                account, period, dimension, key = place
                held, due = through[place], self._through[place]
                what = f"what {account} earned in {period} by {dimension} {key}"
                yield "I3", f"{what} is {held}, but its postings come to {due}"
