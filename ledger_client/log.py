"""The log in a database, as its readers see it: entries in order, the tree over them, and every checkpoint ever signed.

Everything that is committed is sealed. Writing is a `Draft`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Row, func, insert, select
from sqlalchemy.exc import IntegrityError

from ledger_client.checkpoint import Checkpoint, Signer
from ledger_client.cosignature import Cosignature, Quorum, WitnessVerifier
from ledger_client.draft import Draft, LogError, NotInLog
from ledger_client.merkle import EMPTY_ROOT, Frontier, HashAt, consistency_path, frontier_at, inclusion_path
from ledger_client.receipt import Receipt
from ledger_client.tables import log_checkpoint, log_cosignature, log_entry, log_hash, log_head
from ledger_client.tiles import TILE_WIDTH, Tile, hashes_from_tiles, pack_bundle, row_width

_PAGE_ROWS = 512


class Log:
    """One log in one database. Every method takes the caller's connection, and none commits.

    quorum: the witnesses whose cosignatures are handed out, and how many of them a checkpoint should have.
    """

    def __init__(self, signer: Signer, quorum: Quorum | None = None) -> None:
        self._signer = signer
        self._quorum = quorum

    @property
    def origin(self) -> str:
        """The log's name."""
        return self._signer.name

    def draft(self, connection: Connection) -> Draft:
        """Begin to write: take the log's head, and hold it until the database transaction ends."""
        return Draft(connection, self._signer)

    def checkpoint(self, connection: Connection) -> str:
        """Return the latest signed checkpoint; of a log that is still empty, that of the empty tree."""
        latest = _latest_checkpoint(connection)
        if latest is None:
            return self._signer.sign(Checkpoint(origin=self._signer.name, size=0, root=EMPTY_ROOT))
        return str(latest.note)

    def checkpoint_at(self, connection: Connection, size: int) -> str:
        """Return the signed checkpoint of the first `size` entries: the one of their commit or, inside one, a new one.

        Any prefix of the log may be signed for, since it is consistent with every checkpoint there is or will be.
        Raises NotInLog past the sealed head.
        """
        note: str | None = connection.scalar(select(log_checkpoint.c.note).where(log_checkpoint.c.size == size))
        if note is not None:
            return note
        root = self.frontier(connection, size).root()
        return self._signer.sign(Checkpoint(origin=self._signer.name, size=size, root=root))

    def frontier(self, connection: Connection, size: int) -> Frontier:
        """Return the frontier that the tree had at this size. Raises NotInLog past the sealed head."""
        if not 0 <= size <= (sealed := _sealed_size(connection)):
            raise NotInLog(f"the log as sealed has {sealed} entries, and no tree of {size}")
        return frontier_at(size, self._hash_at(connection, size))

    def checkpoint_over(self, connection: Connection, log_index: int) -> str:
        """Return the first checkpoint that covers an entry. Raises NotInLog while there is none."""
        covering = select(log_checkpoint.c.note).where(log_checkpoint.c.size > log_index)
        note: str | None = connection.scalar(covering.order_by(log_checkpoint.c.size).limit(1))
        if note is None:
            raise NotInLog(f"no checkpoint covers entry {log_index}")
        return note

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
        """Return how many entries there are; the next entry's log index."""
        last = connection.scalar(select(func.max(log_entry.c.log_index)))
        return 0 if last is None else last + 1

    def entry(self, connection: Connection, log_index: int) -> bytes:
        """Return the bytes of an entry. Raises NotInLog."""
        size = self.size(connection)
        if not 0 <= log_index < size:
            raise NotInLog(f"the log has {size} entries, and no entry {log_index}")
        raw: bytes | None = connection.scalar(select(log_entry.c.entry).where(log_entry.c.log_index == log_index))
        if raw is None:
            raise NotInLog(f"entry {log_index} is missing from the log")
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


def _latest_checkpoint(connection: Connection) -> Row[int, str] | None:
    return connection.execute(select(log_checkpoint).order_by(log_checkpoint.c.size.desc()).limit(1)).one_or_none()


def _by(quorum: Quorum) -> ColumnElement[bool]:
    return log_cosignature.c.witness.in_([witness.identity for witness in quorum.witnesses])


def _sealed_size(connection: Connection) -> int:
    return connection.scalar(select(log_head.c.size)) or 0


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
