"""Every version of an adapter that was ever registered, not the newest alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

from ledger_client import entry_id

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_KEPT = ("name", "digest", "base_model", "developer", "log_index", "created_at", "removed_at")
_ADAPTER = sa.table("adapter", *map(sa.column, (*_KEPT, "path")), sa.column("datasets", sa.JSON))
_VERSION = sa.table(
    "adapter_version",
    *map(sa.column, (*_KEPT, "version", "source", "base_digest", "proven_at")),
    sa.column("datasets", sa.JSON),
    sa.column("parents", sa.JSON),
)


def upgrade() -> None:
    op.create_table(
        "adapter_version",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("base_model", sa.String(length=63), nullable=False),
        sa.Column("base_digest", sa.String(length=64), nullable=True),
        sa.Column("developer", sa.String(length=63), nullable=False),
        sa.Column("datasets", sa.JSON(), nullable=False),
        sa.Column("parents", sa.JSON(), nullable=False),
        sa.Column("log_index", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("proven_at", sa.String(length=32), nullable=True),
        sa.Column("removed_at", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("name", "version"),
    )
    for row in op.get_bind().execute(sa.select(_ADAPTER)).mappings().all():
        for number, fields in enumerate(_versions(dict(row)), start=1):
            op.execute(sa.insert(_VERSION).values(fields | {"name": row["name"], "version": number, "parents": []}))
    op.drop_table("adapter")


def _versions(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the versions of an adapter, oldest first: those that were replaced, as the log has them, and the newest.

    Nobody knows where the files of a replaced one are, so it is not on offer. All were tried on an engine.
    """
    kept = {name: row[name] for name in ("digest", "base_model", "developer", "datasets", "log_index", "created_at")}
    base_digest = None
    for index, entry in _claims(row["name"]):
        data = entry["data"]
        base_digest = data["base_digest"]
        if index == row["log_index"]:
            break
        yield {
            "digest": data["digest"],
            "base_model": data["base_model"],
            "base_digest": base_digest,
            "developer": data["developer"],
            "datasets": [[dataset["contributor"], dataset["weight"]] for dataset in data["datasets"]],
            "log_index": index,
            "source": "",
            "created_at": entry["time"],
            "proven_at": entry["time"],
            "removed_at": row["created_at"],
        }
    proven = {"base_digest": base_digest, "proven_at": row["created_at"]}
    yield kept | proven | {"source": row["path"], "removed_at": row["removed_at"]}


def _claims(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the log's registrations of an adapter with their log indexes, oldest first."""
    entries = sa.table("log_entry", *map(sa.column, ("log_index", "entry_id", "entry")))
    number = 0
    while True:
        wanted = entries.c.entry_id == entry_id("registry", f"adapter:{name}", number)
        row = op.get_bind().execute(sa.select(entries).where(wanted)).one_or_none()
        if row is None:
            return
        yield row.log_index, json.loads(bytes(row.entry))
        number += 1


def downgrade() -> None:
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
    op.execute(
        "INSERT INTO adapter"
        " SELECT name, digest, source, base_model, developer, datasets, log_index, created_at, removed_at"
        " FROM adapter_version AS v WHERE version = (SELECT max(version) FROM adapter_version WHERE name = v.name)"
    )
    op.drop_table("adapter_version")
