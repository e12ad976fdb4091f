"""Periods, sums by period, budgets, payouts, ratings, idempotency."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "account_period",
        sa.Column("account", sa.String(length=255), nullable=False),
        sa.Column("period", sa.String(length=7), nullable=False),
        sa.Column("earned_nano", sa.BigInteger(), nullable=False),
        sa.Column("corrected_nano", sa.BigInteger(), nullable=False),
        sa.Column("paid_nano", sa.BigInteger(), nullable=False),
        sa.Column("lines", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account", "period"),
    )
    op.create_table(
        "budget",
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("monthly_nano", sa.BigInteger(), nullable=True),
        sa.Column("requests_per_minute", sa.BigInteger(), nullable=True),
        sa.Column("tokens_per_minute", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("subject"),
    )
    op.create_table(
        "budget_draw",
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("time_window", sa.String(length=16), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("spent_nano", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "time_window"),
    )
    op.create_table(
        "earning",
        sa.Column("account", sa.String(length=255), nullable=False),
        sa.Column("dimension", sa.String(length=8), nullable=False),
        sa.Column("period", sa.String(length=7), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("amount_nano", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account", "dimension", "period", "key"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "feedback_comment",
        sa.Column("log_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("request_id", sa.String(length=40), nullable=False),
        sa.Column("salt", sa.LargeBinary(length=32), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("log_index"),
    )
    op.create_table(
        "idempotency",
        sa.Column("account", sa.String(length=128), nullable=False),
        sa.Column("key_digest", sa.String(length=64), nullable=False),
        sa.Column("body_digest", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("media_type", sa.String(length=64), nullable=True),
        sa.Column("response", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("account", "key_digest"),
    )
    op.create_index(
        "idempotency_kept",
        "idempotency",
        ["created_at"],
        unique=False,
        sqlite_where=sa.text("response IS NOT NULL"),
        postgresql_where=sa.text("response IS NOT NULL"),
    )

    op.create_table(
        "log_cosignature",
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("witness", sa.String(length=264), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("size", "witness"),
    )
    op.create_table(
        "log_fork",
        sa.Column("origin", sa.String(length=255), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("time", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("origin"),
    )
    op.create_table(
        "log_received",
        sa.Column("origin", sa.String(length=255), nullable=False),
        sa.Column(
            "source_end", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("source_start", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("log_start", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("time", sa.String(length=32), nullable=False),
        sa.Column("frontier", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("origin", "source_end"),
    )
    op.create_table(
        "log_shipment",
        sa.Column("ledger", sa.String(length=255), nullable=False),
        sa.Column("log_end", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("log_start", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("ledger_start", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("time", sa.String(length=32), nullable=False),
        sa.Column("frontier", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("ledger", "log_end"),
    )
    op.create_table(
        "payout",
        sa.Column("log_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("contributor", sa.String(length=63), nullable=False),
        sa.Column("period", sa.String(length=7), nullable=False),
        sa.Column("method", sa.String(length=8), nullable=False),
        sa.Column("address", sa.String(length=42), nullable=True),
        sa.Column("distributor", sa.String(length=100), nullable=True),
        sa.Column("amount_nano", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("log_index"),
    )
    op.create_index("payout_by_period", "payout", ["period", "contributor"], unique=False)

    op.create_table(
        "payout_address",
        sa.Column("log_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("contributor", sa.String(length=63), nullable=False),
        sa.Column("address", sa.String(length=42), nullable=False),
        sa.Column("nonce", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("log_index"),
    )
    op.create_index("payout_address_by_contributor", "payout_address", ["contributor", "log_index"], unique=False)

    op.create_table(
        "period",
        sa.Column("period", sa.String(length=7), nullable=False),
        sa.Column("log_index", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.String(length=27), nullable=False),
        sa.Column("distributor", sa.String(length=100), nullable=True),
        sa.PrimaryKeyConstraint("period"),
        sa.UniqueConstraint("log_index"),
    )
    op.create_table(
        "rating",
        sa.Column("log_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("request_id", sa.String(length=30), nullable=False),
        sa.Column("time", sa.String(length=27), nullable=False),
        sa.Column("rating", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("log_index"),
    )
    op.create_index("rating_by_request", "rating", ["request_id", "log_index"], unique=False)

    op.add_column("intent", sa.Column("maximum_tokens", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("intent", sa.Column("budgeted", sa.String(length=400), nullable=False, server_default=""))
    op.create_index(
        "intent_by_age",
        "intent",
        ["admitted_at"],
        unique=False,
        sqlite_where=sa.text("ended_index IS NULL"),
        postgresql_where=sa.text("ended_index IS NULL"),
    )

    op.add_column("posting", sa.Column("period", sa.String(length=7), nullable=False, server_default=""))
    _sum_up()
    op.drop_index("posting_by_time", table_name="posting")
    op.create_index("posting_by_period", "posting", ["account", "period", "log_index", "position"], unique=False)


def _sum_up() -> None:
    """Give every posting the month of its time, for none was ever closed, and add up what contributors earned."""
    op.execute("UPDATE posting SET period = substr(time, 1, 7)")
    op.execute(
        "INSERT INTO account_period (account, period, earned_nano, corrected_nano, paid_nano, lines)"
        " SELECT account, period, SUM(amount_nano), 0, 0, COUNT(*) FROM posting"
        " WHERE account LIKE 'contributor:%' GROUP BY account, period"
    )
    for dimension, key, where in (
        ("day", "substr(time, 1, 10)", "1 = 1"),
        ("model", "served_model", "served_model IS NOT NULL"),
        ("document", "item", "kind = 'document'"),
        ("adapter", "item", "kind = 'adapter'"),
    ):
        op.execute(
            "INSERT INTO earning (account, dimension, period, key, amount_nano)"  # noqa: S608 - the words above
            f" SELECT account, '{dimension}', period, {key}, SUM(amount_nano) FROM posting"
            f" WHERE account LIKE 'contributor:%' AND {where} GROUP BY account, period, {key}"
        )


def downgrade() -> None:
    op.drop_index("posting_by_period", table_name="posting")
    op.create_index("posting_by_time", "posting", ["account", "time"], unique=False)
    op.drop_column("posting", "period")

    op.drop_index(
        "intent_by_age",
        table_name="intent",
        sqlite_where=sa.text("ended_index IS NULL"),
        postgresql_where=sa.text("ended_index IS NULL"),
    )
    op.drop_column("intent", "budgeted")
    op.drop_column("intent", "maximum_tokens")

    op.drop_index("rating_by_request", table_name="rating")

    op.drop_table("rating")
    op.drop_table("period")
    op.drop_index("payout_address_by_contributor", table_name="payout_address")

    op.drop_table("payout_address")
    op.drop_index("payout_by_period", table_name="payout")

    op.drop_table("payout")
    op.drop_table("log_shipment")
    op.drop_table("log_received")
    op.drop_table("log_fork")
    op.drop_table("log_cosignature")
    op.drop_index(
        "idempotency_kept",
        table_name="idempotency",
        sqlite_where=sa.text("response IS NOT NULL"),
        postgresql_where=sa.text("response IS NOT NULL"),
    )

    op.drop_table("idempotency")
    op.drop_table("feedback_comment")
    op.drop_table("earning")
    op.drop_table("budget_draw")
    op.drop_table("budget")
    op.drop_table("account_period")
