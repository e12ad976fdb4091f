"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "log_checkpoint",
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("size"),
    )
    op.create_table(
        "log_entry",
        sa.Column(
            "log_index", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("entry_id", sa.String(length=64), nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(), nullable=False),
        sa.Column("entry", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("log_index"),
        sa.UniqueConstraint("entry_id", name="log_entry_entry_id_key"),
    )
    op.create_table(
        "log_hash",
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "number"),
    )
    op.create_table(
        "log_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("frontier", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "account",
        sa.Column("account", sa.String(length=255), nullable=False),
        sa.Column("credits_nano", sa.BigInteger(), nullable=False),
        sa.Column("debits_nano", sa.BigInteger(), nullable=False),
        sa.Column("pending_nano", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "substr(account, 1, 7) <> 'caller:' OR credits_nano - debits_nano >= pending_nano", name="account_covered"
        ),
        sa.CheckConstraint("credits_nano >= 0 AND debits_nano >= 0 AND pending_nano >= 0", name="account_totals"),
        sa.PrimaryKeyConstraint("account"),
    )
    op.create_table(
        "intent",
        sa.Column("gateway", sa.String(length=63), nullable=False),
        sa.Column("gateway_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("request_id", sa.String(length=30), nullable=False),
        sa.Column("account", sa.String(length=255), nullable=False),
        sa.Column("maximum_nano", sa.BigInteger(), nullable=False),
        sa.Column("admitted_at", sa.String(length=27), nullable=False),
        sa.Column("ended_index", sa.BigInteger(), nullable=True),
        sa.Column("charge_nano", sa.BigInteger(), nullable=True),
        sa.Column("served_model", sa.String(length=200), nullable=True),
        sa.Column("attribution_index", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("gateway", "gateway_seq"),
        sa.UniqueConstraint("request_id"),
    )
    op.create_index(
        "intent_open",
        "intent",
        ["gateway", "gateway_seq"],
        unique=False,
        sqlite_where=sa.text("ended_index IS NULL"),
        postgresql_where=sa.text("ended_index IS NULL"),
    )
    op.create_table(
        "posting",
        sa.Column("log_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("time", sa.String(length=27), nullable=False),
        sa.Column("account", sa.String(length=255), nullable=False),
        sa.Column("amount_nano", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=True),
        sa.Column("item", sa.String(length=200), nullable=True),
        sa.Column("served_model", sa.String(length=200), nullable=True),
        sa.Column("request_id", sa.String(length=30), nullable=True),
        sa.PrimaryKeyConstraint("log_index", "position"),
    )
    op.create_index("posting_by_account", "posting", ["account", "log_index", "position"], unique=False)
    op.create_index("posting_by_time", "posting", ["account", "time"], unique=False)
    op.create_table(
        "corpus_document",
        sa.Column("id", sa.String(length=20), nullable=False),
        sa.Column("corpus", sa.String(length=63), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("owner", sa.String(length=63), nullable=False),
        sa.Column("licence", sa.String(length=100), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("media_type", sa.String(length=32), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("embedder", sa.String(length=63), nullable=False),
        sa.Column("ingested_at", sa.String(length=32), nullable=False),
        sa.Column("withdrawn_at", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("corpus_document_by_corpus", "corpus_document", ["corpus"], unique=False)
    op.create_table(
        "corpus_revision",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "corpus_passage",
        sa.Column("id", sa.String(length=20), nullable=False),
        sa.Column("document_id", sa.String(length=20), nullable=False),
        sa.Column("start_offset", sa.Integer(), nullable=False),
        sa.Column("end_offset", sa.Integer(), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["corpus_document.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("corpus_passage_by_document", "corpus_passage", ["document_id"], unique=False)
    op.create_table(
        "adapter",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("base_model", sa.String(length=63), nullable=False),
        sa.Column("developer", sa.String(length=63), nullable=False),
        sa.Column("datasets", sa.JSON(), nullable=False),
        sa.Column("log_index", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("removed_at", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "answer",
        sa.Column("request_id", sa.String(length=40), nullable=False),
        sa.Column("caller", sa.String(length=128), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("usage_index", sa.BigInteger(), nullable=False),
        sa.Column("record_index", sa.BigInteger(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("salt", sa.LargeBinary(length=32), nullable=False),
        sa.Column("inputs", sa.LargeBinary(), nullable=True),
        sa.Column("attribution", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_index("answer_by_status", "answer", ["status", "created_at"], unique=False)
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("revoked_at", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
    )
    op.create_table(
        "contributor",
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("log_index", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    op.drop_table("contributor")
    op.drop_table("api_key")
    op.drop_index("answer_by_status", table_name="answer")
    op.drop_table("answer")
    op.drop_table("adapter")
    op.drop_index("corpus_passage_by_document", table_name="corpus_passage")
    op.drop_table("corpus_passage")
    op.drop_table("corpus_revision")
    op.drop_index("corpus_document_by_corpus", table_name="corpus_document")
    op.drop_table("corpus_document")
    op.drop_index("posting_by_time", table_name="posting")
    op.drop_index("posting_by_account", table_name="posting")
    op.drop_table("posting")
    op.drop_index(
        "intent_open",
        table_name="intent",
        sqlite_where=sa.text("ended_index IS NULL"),
        postgresql_where=sa.text("ended_index IS NULL"),
    )
    op.drop_table("intent")
    op.drop_table("account")
    op.drop_table("log_head")
    op.drop_table("log_hash")
    op.drop_table("log_entry")
    op.drop_table("log_checkpoint")
