"""What one database transaction adds to a log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from ledger_client.checkpoint import Checkpoint, Signer
from ledger_client.entries import Entry
from ledger_client.merkle import Frontier, GrowingTree, leaf_hash
from ledger_client.rows import Prepared, Rows
from ledger_client.tables import log_checkpoint, log_entry, log_hash, log_head
from ledger_client.tiles import TILE_HEIGHT, TILE_WIDTH

_HEAD_ID = 1

_LOCK_HEAD = Prepared(select(log_head.c.size, log_head.c.frontier).where(log_head.c.id == _HEAD_ID).with_for_update())
_FIND = Prepared(select(log_entry.c.log_index, log_entry.c.entry).where(log_entry.c.entry_id == bindparam("entry_id")))
_LAST = Prepared(select(func.max(log_entry.c.log_index)))
_READ = Prepared(select(log_entry.c.entry).where(log_entry.c.log_index == bindparam("log_index")))
_ENTRIES = Rows(log_entry)
_HASHES = Rows(log_hash)
_CHECKPOINTS = Rows(log_checkpoint)
_SET_HEAD = Prepared(
    update(log_head).where(log_head.c.id == _HEAD_ID).values(size=bindparam("size"), frontier=bindparam("frontier"))
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


class Draft:
    """Entries held in memory, then written and put into the tree together.

    Making one takes the log's head, the fence: until the database transaction ends, nobody else appends. Take it before
    anything else in the transaction, so that writers cannot deadlock. On SQLite, which has no row locks, the database
    transaction has to have begun IMMEDIATE. Raises LogError when entries are missing at the log's end.
    """

    def __init__(self, connection: Connection, signer: Signer) -> None:
        size, frontier = _lock_head(connection)
        last = _LAST.scalar(connection)
        if size != (0 if last is None else last + 1):
            raise LogError(f"the log was sealed with {size} entries, but its last entry is {last}")
        self._connection = connection
        self._signer = signer
        self._frontier = Frontier.decode(size, frontier)
        # Entry id, bytes and leaf hash, from log index self._frontier.size on.
        self._appended: list[tuple[str, bytes, bytes]] = []
        self._places: dict[str, int] = {}  # entry id → position in self._appended
        self._written = 0  # how many of those are in the database

    @property
    def size(self) -> int:
        """How many entries the log has, those of this draft among them; the next entry's log index."""
        return self._frontier.size + len(self._appended)

    def append(self, entry: Entry, *, new: bool = False) -> Appended:
        """Add an entry, or find it: the same id with the same bytes is the same entry for ever.

        new: the caller knows, from what it read behind the fence, that the id is not in the log, and saves a look-up.
        Raises EntryConflict when the id is in the log with other bytes.
        """
        raw = entry.encode()
        stored = None if new else self._find(entry.id)
        if stored is not None:
            log_index, there = stored
            if there != raw:
                raise EntryConflict(log_index)
            return Appended(log_index=log_index, entry=entry, created=False)
        log_index = self.size
        self._places[entry.id] = len(self._appended)
        self._appended.append((entry.id, raw, leaf_hash(raw)))
        return Appended(log_index=log_index, entry=entry, created=True)

    def find(self, entry_id: str) -> int | None:
        """Return the log index of the entry with this id, or None."""
        stored = self._find(entry_id)
        return None if stored is None else stored[0]

    def entry(self, log_index: int) -> bytes:
        """Return the bytes of an entry. Raises NotInLog."""
        if not 0 <= log_index < self.size:
            raise NotInLog(f"the log has {self.size} entries, and no entry {log_index}")
        if log_index >= self._frontier.size:
            return self._appended[log_index - self._frontier.size][1]
        raw: bytes = _READ.scalar(self._connection, log_index=log_index)
        return raw

    def mark(self) -> int:
        """Return a place to rewind to, which is good until the next `write`."""
        return len(self._appended)

    def rewind(self, mark: int) -> None:
        """Forget what was appended since `mark`."""
        for entry_id, _, _ in self._appended[mark:]:
            del self._places[entry_id]
        del self._appended[mark:]

    def write(self) -> None:
        """Write what is held to the database; it is not in the tree yet."""
        fresh = enumerate(self._appended[self._written :], start=self._frontier.size + self._written)
        rows = [(log_index, entry_id, leaf, raw) for log_index, (entry_id, raw, leaf) in fresh]
        _ENTRIES.store(self._connection, rows)
        self._written = len(self._appended)

    def seal(self) -> str | None:
        """Write what is held, put it into the tree, sign the new head and store it; the last act before the commit.

        Returns the checkpoint's note, None when nothing is new.
        """
        if not self._appended:
            return None
        self.write()
        frontier, completed = _grown(self._frontier, [leaf for _, _, leaf in self._appended])
        note = self._signer.sign(Checkpoint(origin=self._signer.name, size=frontier.size, root=frontier.root()))
        _HASHES.store(self._connection, completed)
        _CHECKPOINTS.store(self._connection, [(frontier.size, note)])
        _SET_HEAD.all(self._connection, size=frontier.size, frontier=frontier.encode())
        self._frontier, self._written = frontier, 0
        self._appended.clear()
        self._places.clear()
        return note

    def _find(self, entry_id: str) -> tuple[int, bytes] | None:
        if (place := self._places.get(entry_id)) is not None:
            return self._frontier.size + place, self._appended[place][1]
        stored = _FIND.all(self._connection, entry_id=entry_id)
        return (stored[0][0], stored[0][1]) if stored else None


def _grown(frontier: Frontier, leaves: Iterable[bytes]) -> tuple[Frontier, list[tuple[int, int, bytes]]]:
    """Return the frontier after these leaf hashes, and the rows of the tile hashes that they complete."""
    tree = GrowingTree(frontier)
    completed: list[tuple[int, int, bytes]] = []
    for leaf in leaves:
        if (tree.size + 1) % TILE_WIDTH == 0:
            chain = tree.frontier().completed_by(leaf)
            completed += [
                (height // TILE_HEIGHT, tree.size >> height, chain[height])
                for height in range(TILE_HEIGHT, len(chain), TILE_HEIGHT)
            ]
        tree.append(leaf)
    return tree.frontier(), completed


def _lock_head(connection: Connection) -> tuple[int, bytes]:
    """Return the head (size, frontier), held until the transaction ends; the first writer of all makes the row."""
    if not (head := _LOCK_HEAD.all(connection)):
        try:
            with connection.begin_nested():
                connection.execute(insert(log_head).values(id=_HEAD_ID, size=0, frontier=b""))
        except IntegrityError:
            pass  # another process made it between the two statements
        head = _LOCK_HEAD.all(connection)
    size, frontier = head[0]
    return size, frontier
