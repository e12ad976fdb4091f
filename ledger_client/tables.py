"""The tables of the log."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, String, Table, Text, UniqueConstraint

metadata = MetaData()

_Count = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER makes SQLite's rowid the primary key

# One row, the fence: who appends holds it until the end of the database transaction. It lags behind log_entry
# inside a transaction that has not sealed yet.
log_head = Table(
    "log_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("size", _Count, nullable=False),
    Column("frontier", LargeBinary, nullable=False),
)
log_entry = Table(
    "log_entry",
    metadata,
    Column("log_index", _Count, primary_key=True, autoincrement=False),
    Column("entry_id", String(64), nullable=False),
    Column("leaf_hash", LargeBinary, nullable=False),
    Column("entry", LargeBinary, nullable=False),
    UniqueConstraint("entry_id", name="log_entry_entry_id_key"),
)
# The hashes of tile levels 1 and up; those of level 0 are log_entry.leaf_hash.
log_hash = Table(
    "log_hash",
    metadata,
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("number", _Count, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
)
log_checkpoint = Table(
    "log_checkpoint",
    metadata,
    Column("size", _Count, primary_key=True, autoincrement=False),
    Column("note", Text, nullable=False),
)
# What witnesses said to a checkpoint after it was stored. witness: name and key id.
log_cosignature = Table(
    "log_cosignature",
    metadata,
    Column("size", _Count, primary_key=True, autoincrement=False),
    Column("witness", String(264), primary_key=True),
    Column("line", Text, nullable=False),
)
