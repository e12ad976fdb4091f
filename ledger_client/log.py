"""The log in a database: entries in order, the tree over them, and every checkpoint ever signed.

A database transaction appends any number of entries and then seals them once; until then they are not in the tree. So
an append is one row, and a savepoint that is rolled back takes its entries with it and leaves nothing else to undo.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from ledger_client.checkpoint import Checkpoint, Signer
from ledger_client.cosignature import Cosignature, Quorum, WitnessVerifier
from ledger_client.entries import Entry
from ledger_client.merkle import EMPTY_ROOT, Frontier, HashAt, consistency_path, inclusion_path, leaf_hash
from ledger_client.receipt import Receipt
from ledger_client.tiles import TILE_HEIGHT, TILE_WIDTH, Tile, hashes_from_tiles, pack_bundle, row_width

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

_HEAD_ID = 1
_PAGE_ROWS = 512

# The statements of an append, built once: SQLAlchemy takes longer to build one than SQLite to run it.
_LOCK_HEAD = select(log_head.c.size, log_head.c.frontier).where(log_head.c.id == _HEAD_ID).with_for_update()
_FIND = select(log_entry.c.log_index, log_entry.c.entry).where(log_entry.c.entry_id == bindparam("entry_id"))
_APPEND = (
    insert(log_entry)
    .values(log_index=select(func.coalesce(func.max(log_entry.c.log_index) + 1, 0)).scalar_subquery())
    .returning(log_entry.c.log_index)
)


class LogError(Exception):
    """The log as stored contradicts itself; `fsck` says where."""


class NotInLog(LookupError):  # noqa: N818 - errors here say what is so
    """An index, a tile or a bundle beyond the log as sealed."""


class EntryConflict(ValueError):  # noqa: N818
    """An entry id that is already in the log, at `log_index`, with other bytes."""

    def __init__(self, log_index: int) -> None:
        super().__init__(f"the log has another entry under this id, at log index {log_index}")
        self.log_index = log_index


@dataclass(frozen=True, kw_only=True)
class Appended:
    """Where an entry stands. created is False when the same bytes were there before."""

    log_index: int
    entry: Entry
    created: bool


class Log:
    """One log in one database. Every method takes the caller's connection, and none commits.

    Those that write want a database transaction that excludes other writers from its start where the database has no
    row locks: on SQLite, BEGIN IMMEDIATE. Elsewhere the head row is locked by the first append, at READ COMMITTED.
    quorum: the witnesses whose cosignatures are handed out, and how many a checkpoint should have.
    """

    def __init__(self, signer: Signer, quorum: Quorum | None = None) -> None:
        self._signer = signer
        self._quorum = quorum

    def lock(self, connection: Connection) -> None:
        """Exclude other writers until the transaction ends. Call it first where a transaction writes other rows too.

        Writers that take the log's head before anything else cannot deadlock. SQLite's BEGIN IMMEDIATE has done it.
        """
        _lock_head(connection)

    def append(self, connection: Connection, entry: Entry) -> Appended:
        """Add an entry, or find it: the same id with the same bytes is the same entry for ever.

        Raises EntryConflict when the id is in the log with other bytes. Call `seal` before the commit.
        """
        head = _lock_head(connection)
        raw = entry.encode()
        stored = connection.execute(_FIND, {"entry_id": entry.id}).one_or_none()
        if stored:
            if stored.entry != raw:
                raise EntryConflict(stored.log_index)
            return Appended(log_index=stored.log_index, entry=entry, created=False)
        row = {"entry_id": entry.id, "leaf_hash": leaf_hash(raw), "entry": raw}
        log_index = connection.execute(_APPEND, row).scalar_one()
        if log_index < head.size:
            raise LogError(f"the log was sealed with {head.size} entries, but ends before entry {log_index}")
        return Appended(log_index=log_index, entry=entry, created=True)

    def seal(self, connection: Connection) -> str | None:
        """Put what was appended into the tree, and sign and store its head. Returns the note, None when nothing is new.

        Call it once, before the database transaction commits. What one transaction leaves unsealed, the next seals.
        """
        head = _lock_head(connection)
        frontier = Frontier.decode(head.size, head.frontier)
        completed = []
        for row in entry_rows(connection, head.size, log_entry.c.leaf_hash):
            if row.log_index != frontier.size:
                raise LogError(f"the log has no entry {frontier.size}, but has entry {row.log_index}")
            if (frontier.size + 1) % TILE_WIDTH == 0:
                chain = frontier.completed_by(row.leaf_hash)
                completed += [
                    {"level": height // TILE_HEIGHT, "number": frontier.size >> height, "hash": chain[height]}
                    for height in range(TILE_HEIGHT, len(chain), TILE_HEIGHT)
                ]
            frontier = frontier.append(row.leaf_hash)
        if frontier.size == head.size:
            return None
        note = self._signer.sign(Checkpoint(origin=self._signer.name, size=frontier.size, root=frontier.root()))
        if completed:
            connection.execute(insert(log_hash), completed)
        connection.execute(insert(log_checkpoint).values(size=frontier.size, note=note))
        connection.execute(
            update(log_head).where(log_head.c.id == _HEAD_ID).values(size=frontier.size, frontier=frontier.encode())
        )
        return note

    def checkpoint(self, connection: Connection) -> str:
        """Return the latest signed checkpoint; of a log that is still empty, that of the empty tree."""
        latest = _latest_checkpoint(connection)
        if latest is None:
            return self._signer.sign(Checkpoint(origin=self._signer.name, size=0, root=EMPTY_ROOT))
        return str(latest.note)

    def published(self, connection: Connection) -> str:
        """Return the newest checkpoint that the quorum has cosigned, else the newest, with what cosignatures it has.

        Who asks for a quorum can use no other one, and a log that is written to has a newest one that no witness has
        seen yet; but where witnesses are gone or never were, the newest is better than none.
        """
        latest = _latest_checkpoint(connection)
        if latest is None:
            return self.checkpoint(connection)
        return self._with_cosignatures(connection, self._witnessed(connection, 0) or latest)

    def add_cosignature(
        self, connection: Connection, size: int, witness: WitnessVerifier, cosignature: Cosignature
    ) -> None:
        """Keep a witness's cosignature of the checkpoint of this size. Of several by one key the first one stays."""
        row = {"size": size, "witness": witness.identity, "line": cosignature.line}
        with suppress(IntegrityError), connection.begin_nested():
            connection.execute(insert(log_cosignature).values(row))

    def cosigned_size(self, connection: Connection, witness: WitnessVerifier) -> int:
        """Return the size of the largest checkpoint that a witness has cosigned, 0 where there is none."""
        query = select(func.max(log_cosignature.c.size)).where(log_cosignature.c.witness == witness.identity)
        return connection.scalar(query) or 0

    def _witnessed(self, connection: Connection, above: int) -> Row[int, str] | None:
        """Return the newest checkpoint of more than `above` entries that the quorum has cosigned."""
        if self._quorum is None:
            return None
        size = connection.scalar(
            select(log_cosignature.c.size)
            .where(log_cosignature.c.size > above, _by(self._quorum))
            .group_by(log_cosignature.c.size)
            .having(func.count() >= self._quorum.count)
            .order_by(log_cosignature.c.size.desc())
            .limit(1)
        )
        return connection.execute(select(log_checkpoint).where(log_checkpoint.c.size == size)).one_or_none()

    def _with_cosignatures(self, connection: Connection, checkpoint: Row[int, str]) -> str:
        """Return the note of a checkpoint and, under the log's own signature, what the quorum's witnesses added."""
        note: str = checkpoint.note
        if self._quorum is None:
            return note
        query = select(log_cosignature.c.line).where(log_cosignature.c.size == checkpoint.size, _by(self._quorum))
        return note + "".join(connection.scalars(query.order_by(log_cosignature.c.witness)))

    def checkpoints(self, connection: Connection) -> Iterator[str]:
        """Yield every checkpoint ever signed, by size."""
        size = 0
        while page := connection.execute(
            select(log_checkpoint).where(log_checkpoint.c.size > size).order_by(log_checkpoint.c.size).limit(_PAGE_ROWS)
        ).all():
            yield from (row.note for row in page)
            size = page[-1].size

    def size(self, connection: Connection) -> int:
        """Return how many entries there are, unsealed ones among them; the next entry's log index."""
        last = connection.scalar(select(func.max(log_entry.c.log_index)))
        return 0 if last is None else last + 1

    def entry(self, connection: Connection, log_index: int) -> bytes:
        """Return the bytes of an entry. Raises NotInLog."""
        size = self.size(connection)
        if not 0 <= log_index < size:
            raise NotInLog(f"the log has {size} entries, and no entry {log_index}")
        raw: bytes = connection.execute(
            select(log_entry.c.entry).where(log_entry.c.log_index == log_index)
        ).scalar_one()
        return raw

    def find(self, connection: Connection, entry_id: str) -> int | None:
        """Return the log index of the entry with this id, or None."""
        return connection.scalar(select(log_entry.c.log_index).where(log_entry.c.entry_id == entry_id))

    def entries(self, connection: Connection, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield (log index, bytes) in order, from log index start, reading a page at a time."""
        for row in entry_rows(connection, start, log_entry.c.entry):
            yield row.log_index, row.entry

    def receipt(self, connection: Connection, log_index: int) -> str:
        """Return the proof that an entry is under a checkpoint. Raises NotInLog while it is not sealed.

        The checkpoint is the newest that the quorum has cosigned, where one has the entry, and else the newest.
        """
        latest = _latest_checkpoint(connection)
        if latest is None or not 0 <= log_index < latest.size:
            size = latest.size if latest else 0
            raise NotInLog(f"the latest checkpoint is of {size} entries, without entry {log_index}")
        chosen = self._witnessed(connection, log_index) or latest
        path = tuple(inclusion_path(log_index, chosen.size, self._hash_at(connection, chosen.size)))
        note = self._with_cosignatures(connection, chosen)
        return Receipt(index=log_index, path=path, note=note, entry=self.entry(connection, log_index)).format()

    def consistency(self, connection: Connection, old_size: int, new_size: int) -> list[bytes]:
        """Return the proof that the tree of old_size is a prefix of that of new_size. Raises NotInLog past the head."""
        if not 0 <= old_size <= new_size <= _sealed_size(connection):
            raise NotInLog(f"the log as sealed has no trees of {old_size} and then {new_size} entries")
        return consistency_path(old_size, new_size, self._hash_at(connection, new_size))

    def tile(self, connection: Connection, level: int, number: int, width: int) -> bytes:
        """Return `width` hashes of a tile, 32 bytes each. Raises NotInLog past the sealed head."""
        tile = Tile(level=level, number=number, width=width)
        _check_sealed(tile, _sealed_size(connection))
        return _read_tile(connection, tile)

    def entry_bundle(self, connection: Connection, number: int, width: int) -> bytes:
        """Return `width` entries, each after its length in two bytes. Raises NotInLog past the sealed head."""
        tile = Tile(level=None, number=number, width=width)
        _check_sealed(tile, _sealed_size(connection))
        return pack_bundle(_slice(connection, tile, log_entry.c.log_index, log_entry.c.entry))

    def _hash_at(self, connection: Connection, size: int) -> HashAt:
        return hashes_from_tiles(size, partial(_read_tile, connection))


def _lock_head(connection: Connection) -> Row[int, bytes]:
    """Return the head (size, frontier), held until the transaction ends; the first writer of all makes the row."""
    head = connection.execute(_LOCK_HEAD).one_or_none()
    if head is None:
        try:
            with connection.begin_nested():
                connection.execute(insert(log_head).values(id=_HEAD_ID, size=0, frontier=b""))
        except IntegrityError:
            pass  # another process made it between the two statements
        head = connection.execute(_LOCK_HEAD).one()
    return head


def _latest_checkpoint(connection: Connection) -> Row[int, str] | None:
    return connection.execute(select(log_checkpoint).order_by(log_checkpoint.c.size.desc()).limit(1)).one_or_none()


def _by(quorum: Quorum) -> ColumnElement[bool]:
    return log_cosignature.c.witness.in_([witness.identity for witness in quorum.witnesses])


def _sealed_size(connection: Connection) -> int:
    return connection.scalar(select(log_head.c.size).where(log_head.c.id == _HEAD_ID)) or 0


def entry_rows(connection: Connection, start: int, *columns: Column[Any]) -> Iterator[Row[Any]]:
    """Yield log_index and columns of log_entry in order from log index start, a page at a time.

    Between pages the database is free for other statements.
    """
    query = select(log_entry.c.log_index, *columns).order_by(log_entry.c.log_index).limit(_PAGE_ROWS)
    while page := connection.execute(query.where(log_entry.c.log_index >= start)).all():
        yield from page
        start = page[-1].log_index + 1


def _check_sealed(tile: Tile, size: int) -> None:
    held = row_width(tile.level or 0, size) - tile.number * TILE_WIDTH
    if tile.width > held:
        raise NotInLog(f"the log as sealed, of {size} entries, has no {tile.format()}")


def _read_tile(connection: Connection, tile: Tile) -> bytes:
    if tile.level == 0:
        return b"".join(_slice(connection, tile, log_entry.c.log_index, log_entry.c.leaf_hash))
    return b"".join(_slice(connection, tile, log_hash.c.number, log_hash.c.hash, log_hash.c.level == tile.level))


def _slice(
    connection: Connection, tile: Tile, position: Column[int], value: Column[bytes], *where: ColumnElement[bool]
) -> Sequence[bytes]:
    """Return the values that a tile is made of, by their positions in its row."""
    start = tile.number * TILE_WIDTH
    query = select(value).where(position >= start, position < start + tile.width, *where).order_by(position)
    values = connection.scalars(query).all()
    if len(values) != tile.width:
        raise LogError(f"the log holds {len(values)} of the {tile.width} parts of {tile.format()}")
    return values
