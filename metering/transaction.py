"""What one database transaction writes to the books: held in memory, then written together.

Many units of work share a transaction. Each sees what those before it did, and can be undone alone while nothing has
been written yet; a row is read once and written once however many of them touch it. Totals are reckoned and checked as
Python integers: no arithmetic on an account is left to a database, which could round it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Column, ColumnElement, Connection, Executable, String, bindparam, func, select
from sqlalchemy.dialects import postgresql

from ledger_client import Draft, Log, Prepared, Rows, period_of
from metering._checks import LIMIT_NANO
from metering.budgets import Budget, Draw
from metering.errors import MeteringError
from metering.postings import CONTRIBUTOR_PREFIX
from metering.store import Balance, Line, RequestState, request_row, request_state_of
from metering.tables import (
    account_period_table,
    account_table,
    budget_table,
    draw_table,
    earning_table,
    intent_table,
    period_table,
    posting_table,
)

_Row: TypeAlias = dict[str, Any]
_ABSENT: Any = object()
_COLUMNS = {"correction": (0, 1, 0), "payout": (0, 0, 1)}  # role → earned, corrected, paid; any other role is earned

_FIND_DRAW = Prepared(
    select(draw_table.c.requests, draw_table.c.tokens, draw_table.c.spent_nano).where(
        draw_table.c.subject == bindparam("subject"), draw_table.c.time_window == bindparam("time_window")
    )
)
_LAST_SEQUENCE = Prepared(
    select(func.max(intent_table.c.gateway_seq)).where(intent_table.c.gateway == bindparam("gateway"))
)
_LAST_CLOSED = Prepared(select(func.max(period_table.c.period)))
_POSTINGS, _PERIODS, _EARNINGS = Rows(posting_table), Rows(account_period_table, "add"), Rows(earning_table, "add")
_STATES = {
    "account": Rows(account_table, "replace"),
    "request": Rows(intent_table, "replace"),
    "budget": Rows(budget_table, "replace"),
    "draw": Rows(draw_table, "replace"),
}
_BUDGET_COLUMNS = tuple(budget_table.c.keys())
_BUDGET = attrgetter(*_BUDGET_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The rows that a unit of work is going to look at, so that those of a whole batch are read at once.

    A hint and no more: what is not named here is read when it is looked at.
    """

    accounts: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()


class Mark(NamedTuple):
    """A place that a transaction can be rewound to."""

    undo: int
    log: int
    postings: int
    deferred: int


class Transaction:
    """The books inside one database transaction, whose connection it is given; it never commits.

    Making one takes the head of the log (see `Draft`), so that no other writer is inside of the books at the same time.
    `seal` must be the last act before the commit.
    """

    def __init__(self, connection: Connection, log: Log) -> None:
        self.log: Draft = log.draft(connection)
        self._connection = connection
        self._finds = _FINDS[connection.dialect.name]
        self._accounts: dict[str, Balance] = {}
        self._requests: dict[str, RequestState | None] = {}
        self._budgets: dict[str, Budget | None] = {}
        self._draws: dict[tuple[str, str], Draw] = {}
        self._sequences: dict[str, int] = {}
        self._last_closed: dict[str, str | None] = {}
        # What is not written yet: rows as they are to be, additions to sums, and rows only ever added.
        self._dirty: dict[tuple[str, Any], None] = {}
        self._periods: dict[tuple[str, str], tuple[int, int, int, int]] = {}
        self._earnings: dict[tuple[str, str, str, str], int] = {}  # by account, dimension, period and key
        self._postings: list[Line] = []
        self._deferred: list[tuple[Executable | Rows, Any]] = []
        self._undo: list[tuple[dict[Any, Any], Any, Any]] = []
        self._written = False

    # Reading.

    def expect(self, wanted: Iterable[Expected]) -> None:
        """Read the rows that units of work are going to look at, in one query for each table."""
        wanted = tuple(wanted)
        self._read_accounts({account for expected in wanted for account in expected.accounts})
        self._read_requests({request_id for expected in wanted for request_id in expected.requests})
        self._read_budgets({subject for expected in wanted for subject in expected.budgets})

    def balance(self, account: str) -> Balance:
        """Return the totals of an account; all are zero when nothing was ever posted on it."""
        if account not in self._accounts:
            self._read_accounts({account})
        return self._accounts[account]

    def request(self, request_id: str) -> RequestState | None:
        """Return what became of a request, or None when it was never admitted."""
        if request_id not in self._requests:
            self._read_requests({request_id})
        return self._requests[request_id]

    def budget(self, subject: str) -> Budget | None:
        """Return the budget of an account or key, or None where it has no limits."""
        if subject not in self._budgets:
            self._read_budgets({subject})
        return self._budgets[subject]

    def drawn(self, subject: str, window: str) -> Draw:
        """Return what was drawn on a budget in a month or minute."""
        place = (subject, window)
        if place not in self._draws:
            found = _FIND_DRAW.all(self._connection, subject=subject, time_window=window)
            self._draws[place] = Draw(*found[0]) if found else Draw()
        return self._draws[place]

    def last_closed(self) -> str | None:
        """Return the newest period that is closed, or None."""
        if "" not in self._last_closed:
            self._last_closed[""] = _LAST_CLOSED.scalar(self._connection)
        return self._last_closed[""]

    def period_of(self, time: str) -> str:
        """Return the period that an entry of this time, logged now, belongs to."""
        return period_of(time, self.last_closed())

    @property
    def connection(self) -> Connection:
        """The connection, with everything that is held written to it; nothing held before can be undone alone then."""
        self.write()
        self._written = True
        return self._connection

    # Changing.

    def next_sequence(self, gateway: str) -> int:
        """Take the number after the last that the gateway gave, from 0."""
        if gateway not in self._sequences:
            last = _LAST_SEQUENCE.scalar(self._connection, gateway=gateway)
            self._sequences[gateway] = 0 if last is None else int(last) + 1
        number = self._sequences[gateway]
        self._set(self._sequences, gateway, number + 1)
        return number

    def set_request(self, state: RequestState) -> None:
        """Store a request as it is now."""
        self._set(self._requests, state.intent.request_id, state)
        self._touch("request", state.intent.request_id)

    def change_balance(
        self, account: str, *, credits_nano: int = 0, debits_nano: int = 0, pending_nano: int = 0
    ) -> None:
        """Add differences to the totals of an account. Raises MeteringError where an account holds no more."""
        before_credits, before_debits, before_pending = self.balance(account)
        after = Balance(before_credits + credits_nano, before_debits + debits_nano, before_pending + pending_nano)
        if max(after) > LIMIT_NANO:
            raise MeteringError(f"the totals of {account} would pass {LIMIT_NANO} nano-USD, the most an account holds")
        self._set(self._accounts, account, after)
        self._touch("account", account)

    def set_budget(self, budget: Budget) -> None:
        """Store a budget; one without limits takes it away."""
        self._set(self._budgets, budget.subject, None if budget.unlimited else budget)
        self._touch("budget", budget.subject)

    def draw(self, subject: str, window: str, change: Draw) -> None:
        """Add to what was drawn on a budget in a month or minute. Raises MeteringError where no more can be counted."""
        after = self.drawn(subject, window).plus(change)
        if max(after) > LIMIT_NANO:
            raise MeteringError(
                f"what {subject} has drawn in {window} would pass {LIMIT_NANO}, the most that is counted"
            )
        self._set(self._draws, (subject, window), after)
        self._touch("draw", (subject, window))

    def set_last_closed(self, period: str) -> None:
        """Take a period as closed from here on; its row is for the caller to defer."""
        self.last_closed()
        self._set(self._last_closed, "", period)

    def post(self, lines: Sequence[Line]) -> None:
        """Store the postings of one entry, add them to their accounts, and count what contributors earned."""
        for line in lines:
            if line.amount_nano > 0:
                self.change_balance(line.account, credits_nano=line.amount_nano)
            else:
                self.change_balance(line.account, debits_nano=-line.amount_nano)
            if line.account.startswith(CONTRIBUTOR_PREFIX):
                self._count(line)
        self._postings += lines

    def defer(self, statement: Executable, row: Mapping[str, Any]) -> None:
        """Run a statement with this row when everything is written; rows of one statement run together.

        The statement must be built once and given each time as the same object.
        """
        self._deferred.append((statement, dict(row)))

    def store(self, rows: Rows, row: tuple[Any, ...]) -> None:
        """Store a row with others of its table when everything is written. `rows` must be the same object each time."""
        self._deferred.append((rows, row))

    # Undoing and writing.

    def mark(self) -> Mark:
        """Return the present as a place to rewind to."""
        self._written = False
        return Mark(
            undo=len(self._undo), log=self.log.mark(), postings=len(self._postings), deferred=len(self._deferred)
        )

    def rewind(self, mark: Mark) -> bool:
        """Undo everything since `mark`, or return False when some of it is written and only a rollback can."""
        if self._written:
            return False
        while len(self._undo) > mark.undo:
            mapping, key, old = self._undo.pop()
            if old is _ABSENT:
                del mapping[key]
            else:
                mapping[key] = old
        self.log.rewind(mark.log)
        del self._postings[mark.postings :]
        del self._deferred[mark.deferred :]
        return True

    def write(self) -> None:
        """Write what is held to the database; the log is not sealed by it."""
        self.log.write()
        self._write_rows()
        _POSTINGS.store(self._connection, self._postings)
        self._postings.clear()
        deferred: dict[Executable | Rows, list[Any]] = {}
        for statement, row in self._deferred:
            deferred.setdefault(statement, []).append(row)
        self._deferred.clear()
        for statement, rows in deferred.items():
            if isinstance(statement, Rows):
                statement.store(self._connection, rows)
            else:
                self._connection.execute(statement, rows)
        self._undo.clear()

    def seal(self) -> None:
        """Write what is held and seal the log; the last act before the commit."""
        self.write()
        self.log.seal()

    def _write_rows(self) -> None:
        rows: dict[str, list[tuple[Any, ...]]] = {}
        for table, key in self._dirty:
            rows.setdefault(table, []).append(self._row(table, key))
        self._dirty.clear()
        for table, of_table in rows.items():
            _STATES[table].store(self._connection, of_table)
        # What is added stays below the limit of the account that it is part of, so that no sum leaves 64 bits.
        _PERIODS.store(self._connection, [(*place, *sums) for place, sums in self._periods.items()])
        self._periods.clear()
        _EARNINGS.store(self._connection, [(*place, amount_nano) for place, amount_nano in self._earnings.items()])
        self._earnings.clear()

    def _row(self, table: str, key: Any) -> tuple[Any, ...]:
        """Return the row of a table as it is to be."""
        if table == "account":
            return (key, *self._accounts[key])
        if table == "request":
            return request_row(self._requests[key])
        if table == "budget":
            return _BUDGET(self._budgets[key] or Budget(subject=key))
        return (*key, *self._draws[key])

    def _set(self, mapping: dict[Any, Any], key: Any, value: object) -> None:
        self._undo.append((mapping, key, mapping.get(key, _ABSENT)))
        mapping[key] = value

    def _touch(self, table: str, key: Any) -> None:
        if (table, key) not in self._dirty:
            self._set(self._dirty, (table, key), None)

    def _count(self, line: Line) -> None:
        """Add a posting of a contributor's account to its sums."""
        amount = line.amount_nano
        earned, corrected, paid = _COLUMNS.get(line.role, (1, 0, 0))
        place = (line.account, line.period)
        before = self._periods.get(place, (0, 0, 0, 0))
        after = (before[0] + earned * amount, before[1] + corrected * amount, before[2] + paid * amount, before[3] + 1)
        self._set(self._periods, place, after)
        if line.role == "payout":
            return
        for dimension, key in (("day", line.time[:10]), ("model", line.served_model), (line.kind, line.item)):
            if dimension is not None and key is not None:
                earning = (line.account, dimension, line.period, key)
                self._set(self._earnings, earning, self._earnings.get(earning, 0) + amount)

    def _read_accounts(self, accounts: set[str]) -> None:
        found = self._read("account", accounts - self._accounts.keys())
        self._accounts |= {account: Balance(*totals) for account, *totals in found}
        self._accounts |= dict.fromkeys(accounts - self._accounts.keys(), Balance())

    def _read_requests(self, request_ids: set[str]) -> None:
        found = self._read("request", request_ids - self._requests.keys())
        self._requests |= {state.intent.request_id: state for state in map(request_state_of, found)}
        self._requests |= dict.fromkeys(request_ids - self._requests.keys())

    def _read_budgets(self, subjects: set[str]) -> None:
        read = self._read("budget", subjects - self._budgets.keys())
        found = [Budget(**dict(zip(_BUDGET_COLUMNS, row, strict=True))) for row in read]
        self._budgets |= {budget.subject: None if budget.unlimited else budget for budget in found}
        self._budgets |= dict.fromkeys(subjects - self._budgets.keys())

    def _read(self, table: str, keys: set[str]) -> Sequence[Any]:
        if not keys:
            return ()
        return self._finds.queries[table].all(self._connection, keys=self._finds.keys(sorted(keys)))


_KEYED = {
    "account": account_table.c.account,
    "request": intent_table.c.request_id,
    "budget": budget_table.c.subject,
}


@dataclass(frozen=True)
class _Finds:
    """The queries for rows among many keys, which databases spell differently.

    keys: from the keys looked for to the one parameter that holds them; a parameter for each would cost more than the
    query.
    """

    keys: Callable[[list[str]], object]
    queries: Mapping[str, Prepared]

    @classmethod
    def built(cls, keys: Callable[[list[str]], object], among: Callable[[Column[Any]], ColumnElement[bool]]) -> _Finds:
        queries = {name: Prepared(select(key.table).where(among(key))) for name, key in _KEYED.items()}
        return cls(keys=keys, queries=queries)


_FINDS = {
    "sqlite": _Finds.built(
        json.dumps, lambda key: key.in_(select(func.json_each(bindparam("keys")).table_valued("value").c.value))
    ),
    "postgresql": _Finds.built(list, lambda key: key == func.any(bindparam("keys", type_=postgresql.ARRAY(String)))),
}
