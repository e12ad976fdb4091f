"""The gateway's own tables, and the list of every package's metadata for migrations."""

from __future__ import annotations

import sqlalchemy as sa

import ledger_client
import metering
import retrieval

metadata = sa.MetaData()

contributor = sa.Table(
    "contributor",
    metadata,
    sa.Column("id", sa.String(63), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("log_index", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
)

# A caller's account is opaque in the log; the name an operator gave it stays here.
api_key = sa.Table(
    "api_key",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("subject", sa.String(128), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("revoked_at", sa.String(32)),
)

adapter = sa.Table(
    "adapter",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("base_model", sa.String(63), nullable=False),
    sa.Column("developer", sa.String(63), nullable=False),
    sa.Column("datasets", sa.JSON, nullable=False),
    sa.Column("log_index", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("removed_at", sa.String(32)),
)

# One row an answer, and the queue of attribution jobs: a job is a row whose status is `pending`. The sealed inputs are
# erased when the attribution is recorded; a job that was given up keeps them for another try. The salt opens the
# digests in the log to whoever has the text.
answer = sa.Table(
    "answer",
    metadata,
    sa.Column("request_id", sa.String(40), primary_key=True),
    sa.Column("caller", sa.String(128), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("usage_index", sa.BigInteger, nullable=False),
    sa.Column("record_index", sa.BigInteger),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("salt", sa.LargeBinary(32), nullable=False),
    sa.Column("inputs", sa.LargeBinary),
    sa.Column("attribution", sa.LargeBinary, nullable=False),
    sa.Index("answer_by_status", "status", "created_at"),
)

ALL_METADATA = [ledger_client.metadata, metering.metadata, retrieval.metadata, metadata]
