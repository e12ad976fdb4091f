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
    sa.Column("priority", sa.String(8), nullable=False, server_default="normal"),
    sa.Column("concurrency", sa.Integer),
)

# Every version ever registered. Its claim is in the log too; source, proven_at and removed_at are the operator's.
adapter_version = sa.Table(
    "adapter_version",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("base_model", sa.String(63), nullable=False),
    sa.Column("base_digest", sa.String(64)),
    sa.Column("developer", sa.String(63), nullable=False),
    sa.Column("datasets", sa.JSON, nullable=False),
    sa.Column("parents", sa.JSON, nullable=False),
    sa.Column("log_index", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("proven_at", sa.String(32)),
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
)
is_pending = answer.c.status == sa.literal_column("'pending'")  # in the words of the index, which no parameter matches
sa.Index("answer_pending", answer.c.created_at, sqlite_where=is_pending, postgresql_where=is_pending)

# What an Idempotency-Key of a caller stands for, for ever. The response is kept until `[limits] replay_hours` are over;
# after that a repeat is told that the request was answered, and where its receipt is.
idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("account", sa.String(128), primary_key=True),
    sa.Column("key_digest", sa.String(64), primary_key=True),
    sa.Column("body_digest", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(40), nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("media_type", sa.String(64)),
    sa.Column("response", sa.LargeBinary),
)
_is_kept = idempotency.c.response.is_not(None)
sa.Index("idempotency_kept", idempotency.c.created_at, sqlite_where=_is_kept, postgresql_where=_is_kept)

# What callers wrote with a rating. The log holds a digest; the salt opens it to whoever has the text.
feedback_comment = sa.Table(
    "feedback_comment",
    metadata,
    sa.Column("log_index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("request_id", sa.String(40), nullable=False),
    sa.Column("salt", sa.LargeBinary(32), nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
)

ALL_METADATA = [ledger_client.metadata, metering.metadata, retrieval.metadata, metadata]
