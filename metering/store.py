"""What the tables of this package hold, as values, and the reads that need no transaction of ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, and_, delete, func, or_, select

from metering.budgets import Budget, Draw
from metering.tables import account_table, budget_table, draw_table, intent_table, is_open


class Balance(NamedTuple):
    """The totals of an account, in nano-USD; pending is what open intents reserve on it."""

    credits_nano: int = 0
    debits_nano: int = 0
    pending_nano: int = 0

    @property
    def posted_nano(self) -> int:
        """What the postings of the account sum to."""
        return self.credits_nano - self.debits_nano

    @property
    def available_nano(self) -> int:
        """What a new request may reserve."""
        return self.posted_nano - self.pending_nano

    def plus(self, change: Balance) -> Balance:
        """Return these totals with differences added to them."""
        return Balance(
            credits_nano=self.credits_nano + change.credits_nano,
            debits_nano=self.debits_nano + change.debits_nano,
            pending_nano=self.pending_nano + change.pending_nano,
        )


class Line(NamedTuple):
    """One stored posting with what it was for; log_index and position place it, time is RFC 3339 in UTC.

    period: the month `YYYY-MM` that it is stated in. kind and item: the player that earned it. served_model and
    request_id: the answer it stems from. None where none. The fields are the columns of posting_table, in its order.
    """

    log_index: int
    position: int
    time: str
    period: str
    account: str
    amount_nano: int
    role: str
    kind: str | None = None
    item: str | None = None
    served_model: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Intent:
    """An admitted request: its place in its gateway's dense sequence, from 0, and what it reserves on an account.

    budgeted: the subjects whose budgets it draws on, maximum_tokens for a minute and maximum_nano for a month.
    """

    gateway: str
    gateway_seq: int
    request_id: str
    account: str
    maximum_nano: int
    maximum_tokens: int
    budgeted: tuple[str, ...]
    admitted_at: str


@dataclass(frozen=True, kw_only=True)
class RequestState:
    """An intent and what became of it. Log indexes and charge are None for what has not happened.

    ended_index: of the usage entry when it was charged (charge_nano is then ≥ 0), of the void entry otherwise.
    attribution_index: of the record in force, the attribution or what superseded it last.
    """

    intent: Intent
    ended_index: int | None = None
    charge_nano: int | None = None
    served_model: str | None = None
    attribution_index: int | None = None


def balance(connection: Connection, account: str) -> Balance:
    """Return the totals of an account; all are zero when nothing was ever posted on it."""
    row = connection.execute(select(account_table).where(account_table.c.account == account)).one_or_none()
    return Balance() if row is None else balance_of(row)


def balances(connection: Connection) -> Iterator[tuple[str, int]]:
    """Yield every account and its posted balance in nano-USD, by account, streaming."""
    columns = account_table.c
    query = select(columns.account, columns.credits_nano, columns.debits_nano).order_by(columns.account)
    for account, credits_nano, debits_nano in connection.execute(query.execution_options(yield_per=1000)):
        yield account, credits_nano - debits_nano


def open_intents(
    connection: Connection, gateway: str | None = None, *, admitted_before: str | None = None
) -> Iterator[Intent]:
    """Yield the intents that are neither charged nor voided, of one gateway or of all, in sequence, streaming.

    admitted_before: a time of the books; only intents from before it.
    """
    query = select(intent_table).where(is_open).order_by(intent_table.c.gateway, intent_table.c.gateway_seq)
    if gateway is not None:
        query = query.where(intent_table.c.gateway == gateway)
    if admitted_before is not None:
        query = query.where(intent_table.c.admitted_at < admitted_before)
    for row in connection.execute(query.execution_options(yield_per=1000)):
        yield request_state_of(row).intent


def request_state(connection: Connection, request_id: str) -> RequestState | None:
    """Return what became of a request, or None when it was never admitted."""
    row = connection.execute(select(intent_table).where(intent_table.c.request_id == request_id)).one_or_none()
    return None if row is None else request_state_of(row)


def budgets(connection: Connection) -> dict[str, Budget]:
    """Return every budget that limits something, by its subject."""
    found = (Budget(**row._mapping) for row in connection.execute(select(budget_table)))
    return {budget.subject: budget for budget in found if not budget.unlimited}


def draws(connection: Connection, window: str) -> dict[str, Draw]:
    """Return what was drawn in a month or minute on each budget that something was drawn on."""
    rows = connection.execute(select(draw_table).where(draw_table.c.time_window == window))
    return {row.subject: Draw(requests=row.requests, tokens=row.tokens, spent_nano=row.spent_nano) for row in rows}


def forget_draws(connection: Connection, *, month: str, minute: str) -> None:
    """Delete what was drawn in months before one such as 2025-01, and in minutes before one as 2025-01-31T23:59."""
    columns = draw_table.c
    is_month = func.length(columns.time_window) == len("2025-01")
    old = or_(and_(is_month, columns.time_window < month), and_(~is_month, columns.time_window < minute))
    connection.execute(delete(draw_table).where(old))


def balance_of(row: Row[Any]) -> Balance:
    """Read a row of the account table."""
    return Balance(credits_nano=row.credits_nano, debits_nano=row.debits_nano, pending_nano=row.pending_nano)


def request_state_of(row: Sequence[Any]) -> RequestState:
    """Read a row of the intent table, whose values are in the order of its columns; see `request_row`."""
    gateway, gateway_seq, request_id, account, maximum_nano, maximum_tokens, budgeted, admitted_at, *ended = row
    ended_index, charge_nano, served_model, attribution_index = ended
    return RequestState(
        intent=Intent(
            gateway=gateway,
            gateway_seq=gateway_seq,
            request_id=request_id,
            account=account,
            maximum_nano=maximum_nano,
            maximum_tokens=maximum_tokens,
            budgeted=tuple(budgeted.split()),
            admitted_at=admitted_at,
        ),
        ended_index=ended_index,
        charge_nano=charge_nano,
        served_model=served_model,
        attribution_index=attribution_index,
    )


def request_row(state: RequestState | None) -> tuple[object, ...]:
    """Return the row of intent_table that a request is stored in."""
    assert state is not None  # noqa: S101 - only what was set is written
    intent = state.intent
    return (
        intent.gateway,
        intent.gateway_seq,
        intent.request_id,
        intent.account,
        intent.maximum_nano,
        intent.maximum_tokens,
        " ".join(intent.budgeted),
        intent.admitted_at,
        state.ended_index,
        state.charge_nano,
        state.served_model,
        state.attribution_index,
    )
