"""The tables of this package."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    func,
    literal_column,
)

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
    Column("period", String(7), nullable=False),
    Column("account", String(255), nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
    Column("role", String(16), nullable=False),
    Column("kind", String(16)),
    Column("item", String(200)),
    Column("served_model", String(200)),
    Column("request_id", String(30)),
)
# Only postings of contributors are ever looked for by account, and a database uses these indexes only where a query
# says so in the same words.
is_contributors = func.substr(posting_table.c.account, literal_column("1"), literal_column("12")) == literal_column(
    "'contributor:'"
)
for _name, _columns in (
    ("posting_by_account", ("account", "log_index", "position")),
    ("posting_by_period", ("account", "period", "log_index", "position")),
):
    Index(
        _name,
        *(posting_table.c[column] for column in _columns),
        sqlite_where=is_contributors,
        postgresql_where=is_contributors,
    )

# What the postings of a contributor's account in a period sum to, kept as they are posted, so that a balance or a
# statement's head costs the same however many postings there are.
account_period_table = Table(
    "account_period",
    metadata,
    Column("account", String(255), primary_key=True),
    Column("period", String(7), primary_key=True),
    Column("earned_nano", BigInteger, nullable=False),
    Column("corrected_nano", BigInteger, nullable=False),
    Column("paid_nano", BigInteger, nullable=False),
    Column("lines", BigInteger, nullable=False),
)

# The same by what it was earned through. Each posting counts once in each dimension that it has a key in.
earning_table = Table(
    "earning",
    metadata,
    Column("account", String(255), primary_key=True),
    Column("dimension", String(8), primary_key=True),
    Column("period", String(7), primary_key=True),
    Column("key", String(200), primary_key=True),
    Column("amount_nano", BigInteger, nullable=False),
    # Read in the order of the key, page after page, and not by row ids that the key leads to.
    sqlite_with_rowid=False,
)

intent_table = Table(
    "intent",
    metadata,
    Column("gateway", String(63), primary_key=True),
    Column("gateway_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("request_id", String(30), nullable=False, unique=True),
    Column("account", String(255), nullable=False),
    Column("maximum_nano", BigInteger, nullable=False),
    Column("maximum_tokens", BigInteger, nullable=False),
    Column("budgeted", String(400), nullable=False),  # subjects whose budgets it draws on, spaces between them
    Column("admitted_at", String(27), nullable=False),
    Column("ended_index", BigInteger),  # of the entry that charged or voided it; null while it is open
    Column("charge_nano", BigInteger),  # null unless charged
    Column("served_model", String(200)),
    Column("attribution_index", BigInteger),  # of the record in force: the attribution, or what superseded it last
)
is_open = intent_table.c.ended_index.is_(None)
Index(
    "intent_open",
    intent_table.c.gateway,
    intent_table.c.gateway_seq,
    sqlite_where=is_open,
    postgresql_where=is_open,
)

budget_table = Table(
    "budget",
    metadata,
    Column("subject", String(255), primary_key=True),
    Column("monthly_nano", BigInteger),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
)

# What was drawn on a budget in a window: a month such as 2025-01, or a minute such as 2025-01-31T23:59, in UTC.
draw_table = Table(
    "budget_draw",
    metadata,
    Column("subject", String(255), primary_key=True),
    Column("time_window", String(16), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("spent_nano", BigInteger, nullable=False),
)

rating_table = Table(
    "rating",
    metadata,
    Column("log_index", BigInteger, primary_key=True, autoincrement=False),
    Column("request_id", String(30), nullable=False),
    Column("time", String(27), nullable=False),
    Column("rating", Integer, nullable=False),
    Index("rating_by_request", "request_id", "log_index"),
)

address_table = Table(
    "payout_address",
    metadata,
    Column("log_index", BigInteger, primary_key=True, autoincrement=False),
    Column("contributor", String(63), nullable=False),
    Column("address", String(42), nullable=False),
    Column("nonce", BigInteger, nullable=False),
    Index("payout_address_by_contributor", "contributor", "log_index"),
)

payout_table = Table(
    "payout",
    metadata,
    Column("log_index", BigInteger, primary_key=True, autoincrement=False),
    Column("contributor", String(63), nullable=False),
    Column("period", String(7), nullable=False),
    Column("method", String(8), nullable=False),
    Column("address", String(42)),
    Column("distributor", String(100)),
    Column("amount_nano", BigInteger, nullable=False),
    Index("payout_by_period", "period", "contributor"),
)

period_table = Table(
    "period",
    metadata,
    Column("period", String(7), primary_key=True),
    Column("log_index", BigInteger, nullable=False, unique=True),
    Column("time", String(27), nullable=False),
    Column("distributor", String(100)),
)
