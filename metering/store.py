"""The tables of this package and every statement that writes them; the caller brings the connection and commits.

Totals are read for update, reckoned and checked as Python integers, and written back: no arithmetic is left to a
database, which could round it. SQLite's lock is the whole database, taken when the transaction begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    bindparam,
    func,
    insert,
    select,
    update,
)

from metering._checks import LIMIT_NANO
from metering.errors import MeteringError

metadata = MetaData()

account_table = Table(
    "account",
    metadata,
    Column("account", String(255), primary_key=True),
    Column("credits_nano", BigInteger, nullable=False),
    Column("debits_nano", BigInteger, nullable=False),
    Column("pending_nano", BigInteger, nullable=False),
    CheckConstraint("credits_nano >= 0 AND debits_nano >= 0 AND pending_nano >= 0", name="account_totals"),
    CheckConstraint(
        "substr(account, 1, 7) <> 'caller:' OR credits_nano - debits_nano >= pending_nano", name="account_covered"
    ),
)

posting_table = Table(
    "posting",
    metadata,
    Column("log_index", BigInteger, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("time", String(27), nullable=False),
    Column("account", String(255), nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
    Column("role", String(16), nullable=False),
    Column("kind", String(16)),
    Column("item", String(200)),
    Column("served_model", String(200)),
    Column("request_id", String(30)),
    Index("posting_by_account", "account", "log_index", "position"),
    Index("posting_by_time", "account", "time"),
)

intent_table = Table(
    "intent",
    metadata,
    Column("gateway", String(63), primary_key=True),
    Column("gateway_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("request_id", String(30), nullable=False, unique=True),
    Column("account", String(255), nullable=False),
    Column("maximum_nano", BigInteger, nullable=False),
    Column("admitted_at", String(27), nullable=False),
    Column("ended_index", BigInteger),  # of the entry that charged or voided it; null while it is open
    Column("charge_nano", BigInteger),  # null unless charged
    Column("served_model", String(200)),
    Column("attribution_index", BigInteger),
)
_is_open = intent_table.c.ended_index.is_(None)
Index(
    "intent_open",
    intent_table.c.gateway,
    intent_table.c.gateway_seq,
    sqlite_where=_is_open,
    postgresql_where=_is_open,
)


# The statements of a request's path, built once: building one takes SQLAlchemy longer than running it takes SQLite.
_ACCOUNTS = (
    select(account_table)
    .where(account_table.c.account.in_(bindparam("accounts", expanding=True)))
    .order_by(account_table.c.account)
)
_LOCK_ACCOUNTS = _ACCOUNTS.with_for_update()
_ADD_ACCOUNT = insert(account_table).values(account=bindparam("key"))
_SET_ACCOUNT = update(account_table).where(account_table.c.account == bindparam("key"))
_REQUEST = select(intent_table).where(intent_table.c.request_id == bindparam("request_id"))
_LAST_SEQUENCE = select(func.max(intent_table.c.gateway_seq)).where(intent_table.c.gateway == bindparam("gateway"))
_SET_INTENT = update(intent_table).where(intent_table.c.request_id == bindparam("key"))


@dataclass(frozen=True, kw_only=True)
class Balance:
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


@dataclass(frozen=True, kw_only=True)
class Line:
    """One stored posting with what it was for; log_index and position place it, time is RFC 3339 in UTC.

    kind and item: the player that earned it. served_model and request_id: the answer it stems from. None where none.
    """

    log_index: int
    position: int
    time: str
    account: str
    amount_nano: int
    role: str
    kind: str | None = None
    item: str | None = None
    served_model: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Intent:
    """An admitted request: its place in its gateway's dense sequence, from 0, and what it reserves on an account."""

    gateway: str
    gateway_seq: int
    request_id: str
    account: str
    maximum_nano: int
    admitted_at: str


@dataclass(frozen=True, kw_only=True)
class RequestState:
    """An intent and what became of it. Log indexes and charge are None for what has not happened.

    ended_index: of the usage entry when it was charged (charge_nano is then ≥ 0), of the void entry otherwise.
    """

    intent: Intent
    ended_index: int | None
    charge_nano: int | None
    served_model: str | None
    attribution_index: int | None


def balance(connection: Connection, account: str, *, for_update: bool = False) -> Balance:
    """Return the totals of an account; all are zero when nothing was ever posted on it."""
    return _read_balances(connection, [account], for_update=for_update).get(account, Balance())


def balances(connection: Connection) -> Iterator[tuple[str, int]]:
    """Yield every account and its posted balance in nano-USD, by account, streaming."""
    columns = account_table.c
    query = select(columns.account, columns.credits_nano, columns.debits_nano).order_by(columns.account)
    for account, credits_nano, debits_nano in connection.execute(query.execution_options(yield_per=1000)):
        yield account, credits_nano - debits_nano


def open_intents(connection: Connection, gateway: str | None = None) -> Iterator[Intent]:
    """Yield the intents that are neither charged nor voided, of one gateway or of all, in sequence, streaming."""
    query = select(intent_table).where(_is_open).order_by(intent_table.c.gateway, intent_table.c.gateway_seq)
    if gateway is not None:
        query = query.where(intent_table.c.gateway == gateway)
    for row in connection.execute(query.execution_options(yield_per=1000)):
        yield _request_state(row).intent


def request_state(connection: Connection, request_id: str) -> RequestState | None:
    """Return what became of a request, or None when it was never admitted."""
    row = connection.execute(_REQUEST, {"request_id": request_id}).one_or_none()
    return None if row is None else _request_state(row)


def next_sequence(connection: Connection, gateway: str) -> int:
    """Return the number after the last that the gateway gave, from 0."""
    last = connection.scalar(_LAST_SEQUENCE, {"gateway": gateway})
    return 0 if last is None else int(last) + 1


def open_intent(connection: Connection, intent: Intent) -> None:
    """Store a new intent and reserve its maximum."""
    connection.execute(insert(intent_table), dict(vars(intent)))
    _change_balances(connection, {intent.account: Balance(pending_nano=intent.maximum_nano)})


def end_intent(
    connection: Connection,
    intent: Intent,
    ended_index: int,
    *,
    charge_nano: int | None = None,
    served_model: str | None = None,
    lines: Sequence[Line] = (),
) -> None:
    """Mark an intent as charged, or voided when there is no charge; release what it reserved and post the charge."""
    ending = {"ended_index": ended_index, "charge_nano": charge_nano, "served_model": served_model}
    connection.execute(_SET_INTENT, {"key": intent.request_id, **ending})
    post(connection, lines, released=intent)


def mark_attributed(connection: Connection, intent: Intent, attribution_index: int) -> None:
    """Note the log index of the answer's attribution."""
    connection.execute(_SET_INTENT, {"key": intent.request_id, "attribution_index": attribution_index})


def post(connection: Connection, lines: Sequence[Line], *, released: Intent | None = None) -> None:
    """Store the postings of one entry and add them to their accounts, together with what an intent releases."""
    changes: dict[str, Balance] = {}
    if released is not None:
        changes[released.account] = Balance(pending_nano=-released.maximum_nano)
    for line in lines:
        change = Balance(credits_nano=max(line.amount_nano, 0), debits_nano=max(-line.amount_nano, 0))
        changes[line.account] = changes.get(line.account, Balance()).plus(change)
    if lines:
        connection.execute(insert(posting_table), [dict(vars(line)) for line in lines])
    _change_balances(connection, changes)


def _change_balances(connection: Connection, changes: Mapping[str, Balance]) -> None:
    """Add differences to the totals of accounts, creating those that are not there yet."""
    moved = {account: change for account, change in changes.items() if change != Balance()}
    if not moved:
        return
    stored = _read_balances(connection, moved, for_update=True)
    created: list[dict[str, str | int]] = []
    updated: list[dict[str, str | int]] = []
    for account, change in moved.items():
        after = stored.get(account, Balance()).plus(change)
        if max(after.credits_nano, after.debits_nano, after.pending_nano) > LIMIT_NANO:
            raise MeteringError(f"the totals of {account} would pass {LIMIT_NANO} nano-USD, the most an account holds")
        (updated if account in stored else created).append({"key": account, **vars(after)})
    if created:
        connection.execute(_ADD_ACCOUNT, created)
    if updated:
        connection.execute(_SET_ACCOUNT, updated)


def _read_balances(connection: Connection, accounts: Iterable[str], *, for_update: bool) -> dict[str, Balance]:
    rows = connection.execute(_LOCK_ACCOUNTS if for_update else _ACCOUNTS, {"accounts": list(accounts)})
    return {
        row.account: Balance(credits_nano=row.credits_nano, debits_nano=row.debits_nano, pending_nano=row.pending_nano)
        for row in rows
    }


def _request_state(row: Row[tuple[object, ...]]) -> RequestState:
    return RequestState(
        intent=Intent(
            gateway=row.gateway,
            gateway_seq=row.gateway_seq,
            request_id=row.request_id,
            account=row.account,
            maximum_nano=row.maximum_nano,
            admitted_at=row.admitted_at,
        ),
        ended_index=row.ended_index,
        charge_nano=row.charge_nano,
        served_model=row.served_model,
        attribution_index=row.attribution_index,
    )
