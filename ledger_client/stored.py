"""The check of what a log's tables hold beside entries and checkpoints; all of it follows from the entries.

An id or leaf hash that does not is I8, and names the entry that was changed; a tile hash or head that does not follow
from the leaf hashes is I5, and so is a checkpoint under another size than its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import ClassVar

from sqlalchemy import Connection, func, select

from ledger_client.entries import Entry, EntryError
from ledger_client.laws import Fault, Finding, Logged
from ledger_client.log import entry_rows
from ledger_client.merkle import GrowingTree, leaf_hash
from ledger_client.tables import log_checkpoint, log_entry, log_hash, log_head
from ledger_client.tiles import TILE_HEIGHT, TILE_WIDTH

_HEAD_ID = 1
_PAGE_ROWS = 512
_CHECKPOINTS = select(log_checkpoint).order_by(log_checkpoint.c.size).execution_options(yield_per=_PAGE_ROWS)


class StoredLog:
    """A law for `fsck`, and the source of the entries that it is to be shown."""

    types: ClassVar[frozenset[str] | None] = None

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: deque[tuple[str, bytes]] = deque()  # read and not shown yet: id and leaf hash
        self._tree = GrowingTree()
        self._head = connection.execute(select(log_head).where(log_head.c.id == _HEAD_ID)).one_or_none()
        self._sealed = self._head.size if self._head else 0
        self._pages: dict[int, dict[int, bytes]] = {}  # tile level → number → hash, of the rows read last
        self._matched = 0
        self._shown = False
        self._wrong: list[Finding] = []

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """Yield (log index, bytes) in order."""
        for row in entry_rows(self._connection, 0, log_entry.c.entry_id, log_entry.c.leaf_hash, log_entry.c.entry):
            self._rows.append((row.entry_id, row.leaf_hash))
            yield row.log_index, row.entry

    def entry(self, logged: Logged, /) -> Iterator[Fault]:
        """Compare the row of an entry with it, and the tile hashes that it completes with what is stored."""
        entry_id, leaf = self._rows.popleft()
        self._shown = True
        if leaf != logged.leaf_hash:
            yield "I8", "the entry's bytes do not have the leaf hash they are stored under"
        if logged.entry is None or entry_id != logged.entry.id:
            yield "I8", "the entry's bytes do not have the id they are stored under"
        if self._tree.size < self._sealed:
            self._grow(leaf)

    def end(self) -> Iterator[Finding]:
        """Yield what is wrong with tile hashes, checkpoints and head."""
        yield from self._wrong
        surplus = (self._connection.scalar(select(func.count()).select_from(log_hash)) or 0) - self._matched
        if surplus:
            yield _unsound(f"{surplus} tile hashes are stored that belong to no complete tile")
        for size, note in self._connection.execute(_CHECKPOINTS):
            if note.split("\n", 2)[1:2] != [str(size)]:  # what else a note says is for others to check
                yield _unsound(f"the checkpoint stored under size {size} is of another")
        if self._shown and self._head is None:
            yield _unsound("the log has entries, and no head")
        frontier = self._tree.frontier()
        if self._head and (self._head.size, self._head.frontier) != (frontier.size, frontier.encode()):
            yield _unsound(
                f"the head, of {self._head.size} entries, does not follow from the {frontier.size} that it covers"
            )

    def _grow(self, leaf: bytes) -> None:
        if (self._tree.size + 1) % TILE_WIDTH == 0:
            chain = self._tree.frontier().completed_by(leaf)
            for level, node in enumerate(chain[TILE_HEIGHT::TILE_HEIGHT], start=1):
                self._compare(level, self._tree.size >> (TILE_HEIGHT * level), node)
        self._tree.append(leaf)

    def _compare(self, level: int, number: int, node: bytes) -> None:
        if number not in self._pages.get(level, {}):
            self._pages[level] = self._page(level, number)
        stored = self._pages[level].pop(number, None)
        self._matched += stored is not None
        if stored != node:
            self._wrong.append(_unsound(f"hash {number} of tile level {level} does not follow from the leaf hashes"))

    def _page(self, level: int, number: int) -> dict[int, bytes]:
        query = select(log_hash.c.number, log_hash.c.hash).where(log_hash.c.level == level, log_hash.c.number >= number)
        return {row.number: row.hash for row in self._connection.execute(query.order_by("number").limit(_PAGE_ROWS))}


def fsck_derived(connection: Connection) -> list[Finding]:
    """Check ids, leaf hashes, tile hashes and the head alone. Returns what is broken; constant memory."""
    stored = StoredLog(connection)
    findings = []
    for log_index, raw in stored.entries():
        try:
            entry = Entry.decode(raw)
        except EntryError:
            entry = None
        for invariant, message in stored.entry(Logged(log_index, leaf_hash(raw), entry, None)):
            findings.append(Finding(invariant=invariant, log_index=log_index, message=message))
    return [*findings, *stored.end()]


def _unsound(message: str) -> Finding:
    return Finding(invariant="I5", log_index=None, message=message)
