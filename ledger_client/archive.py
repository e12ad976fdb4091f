"""Copying a log out of its database into static files, and back: see `ledger_client.archive_reader` for what they are.

Files are written before the checkpoint that is over them, and none but the checkpoint is ever replaced. So an archive
is whole at every moment, and an export that was cut off is repeated from the checkpoint before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Connection, delete, insert, select

from ledger_client.archive_reader import CHECKPOINT, ArchiveReader, bundles, notes_path, row
from ledger_client.checkpoint import Checkpoint, CheckpointError, Verifier
from ledger_client.entries import Entry, EntryError
from ledger_client.log import Log
from ledger_client.merkle import Frontier, GrowingTree, ProofError, leaf_hash, verify_consistency
from ledger_client.stores import ArchiveError, Store
from ledger_client.tables import log_checkpoint, log_entry, log_hash, log_head
from ledger_client.tiles import TILE_HEIGHT, TILE_WIDTH, Tile, pack_bundle

_HEAD_ID = 1
_BATCH_ROWS = 1024

_Tell: TypeAlias = Callable[[int, int], None]
"""Takes entries done and entries in all."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export did. size: entries in the archive now. before: what it had. files: how many were written."""

    size: int
    before: int
    files: int


def export(log: Log, connection: Connection, store: Store, verifier: Verifier, tell: _Tell | None = None) -> Exported:
    """Bring an archive up to the log's newest checkpoint, or begin one.

    connection: in a transaction that sees one snapshot. verifier: of the log. Raises ArchiveError when the archive is
    of another log or history, or holds other bytes under a name that is to be written; nothing is replaced then.
    """
    note = log.checkpoint(connection)
    newest = verifier.open(note)
    before = _continued(log, connection, store, verifier, newest)
    files = 0
    for path, content, done in _files(log, connection, before, newest.size):
        files += _add(store, path, content)
        if tell:
            tell(done, newest.size)
    if before < newest.size or store.read(CHECKPOINT, len(note.encode())) is None:
        store.write(CHECKPOINT, note.encode())
        files += 1
    return Exported(size=newest.size, before=before, files=files)


def _continued(log: Log, connection: Connection, store: Store, verifier: Verifier, newest: Checkpoint) -> int:
    """Return the size of the archive so far, which is proven to be a beginning of the log."""
    if store.read(CHECKPOINT, 2**16) is None:
        return 0
    archived = ArchiveReader(store, verifier).checkpoint
    if archived.size > newest.size:
        raise ArchiveError(f"the archive has {archived.size} entries, more than the log, which has {newest.size}")
    try:
        path = log.consistency(connection, archived.size, newest.size)
        verify_consistency(archived.size, archived.root, newest.size, newest.root, path)
    except ProofError as error:
        raise ArchiveError(f"the archive is of another history than the log: {error}") from error
    return archived.size


def _files(log: Log, connection: Connection, before: int, size: int) -> Iterator[tuple[str, bytes, int]]:
    """Yield path and content of what a log of that size has beyond one of `before` entries, and the entries done."""
    for bundle in bundles(size, before):
        done = bundle.number * TILE_WIDTH + bundle.width
        yield bundle.format(), log.entry_bundle(connection, bundle.number, bundle.width), done
        yield notes_path(bundle), pack_bundle(_notes(connection, bundle)), done
        yield _hashes(log, connection, Tile(level=0, number=bundle.number, width=bundle.width), done)
    level = 1
    while size >> (TILE_HEIGHT * level):
        for tile in row(level, size, before >> (TILE_HEIGHT * (level + 1))):
            yield _hashes(log, connection, tile, size)
        level += 1


def _hashes(log: Log, connection: Connection, tile: Tile, done: int) -> tuple[str, bytes, int]:
    return tile.format(), log.tile(connection, tile.level or 0, tile.number, tile.width), done


def _notes(connection: Connection, bundle: Tile) -> list[bytes]:
    """Return the checkpoints whose sizes end in a bundle."""
    size, start = log_checkpoint.c.size, bundle.number * TILE_WIDTH
    query = select(log_checkpoint.c.note).where(size > start, size <= start + bundle.width).order_by(size)
    return [note.encode() for note in connection.scalars(query)]


def _add(store: Store, path: str, content: bytes) -> int:
    """Write a file that never changes; returns 0 where the same is there already."""
    stored = store.read(path, max(len(content), 1))
    if stored == content:
        return 0
    if stored is not None:
        raise ArchiveError(f"{path} is in the archive with other bytes")
    store.write(path, content)
    return 1


def restore(reader: ArchiveReader, log: Log, connection: Connection, tell: _Tell | None = None) -> Checkpoint:
    """Write an archived log into a database that has none; returns the checkpoint that it ends in.

    Every entry is proven to be under the archive's checkpoint before it is written, and every checkpoint to be a head
    of the tree as it grew; they are kept as they were signed, and nothing is signed anew. Raises ArchiveError where the
    archive does not hold, and when the database has entries; roll the database transaction back then.
    """
    if log.size(connection) or connection.execute(select(log_head).where(log_head.c.size > 0)).first():
        raise ArchiveError("the database has a log already; restore into an empty one")
    tree = GrowingTree()
    notes = _Heads(reader)
    rows: list[dict[str, Any]] = []
    for log_index, raw in reader.entries():
        leaf = leaf_hash(raw)
        rows.append({"log_index": log_index, "entry_id": _id(log_index, raw), "leaf_hash": leaf, "entry": raw})
        if tree.size % TILE_WIDTH == TILE_WIDTH - 1:
            _write_hashes(connection, tree, leaf)
        tree.append(leaf)
        notes.grown(tree)
        if len(rows) == _BATCH_ROWS or tree.size == reader.size:
            connection.execute(insert(log_entry), rows)
            if notes.taken:
                connection.execute(insert(log_checkpoint), notes.taken)
            rows.clear()
            notes.taken.clear()
            if tell:
                tell(tree.size, reader.size)
    notes.end(tree)
    _write_head(connection, tree.frontier())
    return reader.checkpoint


class _Heads:
    """The checkpoints of an archive, compared with the tree as it grows. taken: rows that are to be written."""

    def __init__(self, reader: ArchiveReader) -> None:
        self.taken: list[dict[str, Any]] = []
        self._reader = reader
        self._notes = reader.notes()
        self._next = self._open()

    def grown(self, tree: GrowingTree) -> None:
        """Take the checkpoint that was signed over the tree of this size, if there is one."""
        if self._next is None or self._next[0].size != tree.size:
            return
        head, note = self._next
        if head.root != tree.root():
            raise ArchiveError(f"the checkpoint of {head.size} entries in the archive is not over these entries")
        self.taken.append({"size": head.size, "note": note})
        self._next = self._open()
        if self._next is not None and self._next[0].size <= head.size:
            raise ArchiveError(f"the checkpoints of the archive do not grow after the one of {head.size} entries")

    def end(self, tree: GrowingTree) -> None:
        """Raise ArchiveError unless all were taken, and the last was the archive's own."""
        if self._next is not None:
            raise ArchiveError(f"the archive has a checkpoint of {self._next[0].size} entries, but not the entries")
        if tree.root() != self._reader.checkpoint.root:
            raise ArchiveError("the entries of the archive are not those that its checkpoint is over")

    def _open(self) -> tuple[Checkpoint, str] | None:
        note = next(self._notes, None)
        if note is None:
            return None
        try:
            return self._reader.verifier.open(note), note
        except CheckpointError as error:
            raise ArchiveError(f"a checkpoint of the archive cannot be believed: {error}") from error


def _id(log_index: int, raw: bytes) -> str:
    try:
        return Entry.decode(raw).id
    except EntryError as error:
        raise ArchiveError(f"entry {log_index} of the archive is none: {error}") from error


def _write_hashes(connection: Connection, tree: GrowingTree, leaf: bytes) -> None:
    """Write the tile hashes that one more leaf completes."""
    nodes = tree.frontier().completed_by(leaf)[TILE_HEIGHT::TILE_HEIGHT]
    rows = [
        {"level": level, "number": tree.size >> (TILE_HEIGHT * level), "hash": node}
        for level, node in enumerate(nodes, start=1)
    ]
    connection.execute(insert(log_hash), rows)


def _write_head(connection: Connection, frontier: Frontier) -> None:
    connection.execute(delete(log_head))
    row = {"id": _HEAD_ID, "size": frontier.size, "frontier": frontier.encode()}
    connection.execute(insert(log_head).values(row))


def prove_equal(reader: ArchiveReader, log: Log, connection: Connection, tell: _Tell | None = None) -> Checkpoint:
    """Show that a log and an archive are the same in every entry, hash and checkpoint; returns their checkpoint.

    Raises ArchiveError that names the first file which is not what the log holds.
    """
    if log.checkpoint(connection) != reader.note:
        raise ArchiveError(f"{CHECKPOINT} of the archive, of {reader.size} entries, is not the newest of the log")
    for path, content, done in _files(log, connection, 0, reader.size):
        if reader.read(path, max(len(content), 1)) != content:
            raise ArchiveError(f"{path} is not what the log holds")
        if tell:
            tell(done, reader.size)
    return reader.checkpoint
