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
# What this log received from other logs, one row a batch: entries [source_start, source_end) of a log stand in this one
# from log_start on. frontier and note: the source's tree at source_end, as its own checkpoint has it. time: of receipt.
log_received = Table(
    "log_received",
    metadata,
    Column("origin", String(255), primary_key=True),
    Column("source_end", _Count, primary_key=True, autoincrement=False),
    Column("source_start", _Count, nullable=False),
    Column("log_start", _Count, nullable=False),
    Column("time", String(32), nullable=False),
    Column("frontier", LargeBinary, nullable=False),
    Column("note", Text, nullable=False),
)
# The first checkpoint of each log whose key signed a history that contradicts what was received before it.
log_fork = Table(
    "log_fork",
    metadata,
    Column("origin", String(255), primary_key=True),
    Column("note", Text, nullable=False),
    Column("time", String(32), nullable=False),
)
# What ledgers elsewhere acknowledged of this log, one row a batch: entries [log_start, log_end) stand in the log named
# `ledger` from ledger_start on. frontier: of its tree before them. note: its checkpoint with them, and nothing after.
log_shipment = Table(
    "log_shipment",
    metadata,
    Column("ledger", String(255), primary_key=True),
    Column("log_end", _Count, primary_key=True, autoincrement=False),
    Column("log_start", _Count, nullable=False),
    Column("ledger_start", _Count, nullable=False),
    Column("time", String(32), nullable=False),
    Column("frontier", LargeBinary, nullable=False),
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
