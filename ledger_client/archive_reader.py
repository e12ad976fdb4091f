"""Reading a log from static files that nobody has to be trusted for: all leads to a checkpoint that its key signed.

The files are those of c2sp.org/tlog-tiles, named as the gateway's /log/ routes name them: `checkpoint`,
`tile/<L>/<N>[.p/<W>]` and `tile/entries/<N>[.p/<W>]`. An archive has `notes/<N>[.p/<W>]` beside them: every checkpoint
ever signed over 256·N + 1 to 256·(N + 1) entries, packed as entries are, so that nothing signed is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import ClassVar

from ledger_client.checkpoint import Checkpoint, CheckpointError, Verifier
from ledger_client.draft import NotInLog
from ledger_client.entries import MAX_ENTRY_BYTES
from ledger_client.fsck import Progress, fsck
from ledger_client.laws import Fault, Finding, Logged
from ledger_client.merkle import (
    HASH_BYTES,
    GrowingTree,
    ProofError,
    leaf_hash,
    root_from_inclusion_path,
    subtree_path,
)
from ledger_client.stores import ArchiveError, Source
from ledger_client.tiles import (
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    TileError,
    hashes_from_tiles,
    row_width,
    unpack_bundle,
)

CHECKPOINT = "checkpoint"

_MAX_NOTE_BYTES = 65_535
_HASHES_KEPT = 4096
_BUNDLES_KEPT = 16


def notes_path(bundle: Tile) -> str:
    """Return where the checkpoints are kept whose sizes end in an entry bundle."""
    return "notes/" + bundle.format().removeprefix("tile/entries/")


def bundles(size: int, start: int = 0) -> Iterator[Tile]:
    """Yield the entry bundles that hold the entries from log index start up to size."""
    return row(None, size, start // TILE_WIDTH)


def row(level: int | None, size: int, first: int = 0) -> Iterator[Tile]:
    """Yield the tiles of a level of the tree of that size, or its entry bundles, from the one numbered `first` on."""
    full, rest = divmod(row_width(level or 0, size), TILE_WIDTH)
    for number in range(first, full):
        yield Tile(level=level, number=number, width=TILE_WIDTH)
    if rest and first <= full:
        yield Tile(level=level, number=full, width=rest)


class ArchiveReader:
    """A log that somebody else keeps as files. Raises ArchiveError where they are not what the checkpoint says.

    The checkpoint is read once, and all else is of the log as it was then.
    """

    def __init__(self, source: Source, verifier: Verifier) -> None:
        self._source = source
        self.verifier = verifier
        self.note = self.read(CHECKPOINT, _MAX_NOTE_BYTES).decode("utf-8", "replace")
        try:
            self.checkpoint: Checkpoint = verifier.open(self.note)
        except CheckpointError as error:
            raise ArchiveError(f"{CHECKPOINT} cannot be believed: {error}") from error
        hash_at = hashes_from_tiles(self.size, self.tile)
        self._hash_at = lru_cache(_HASHES_KEPT)(hash_at)
        self._verified = lru_cache(_BUNDLES_KEPT)(self._verified_bundle)

    @property
    def size(self) -> int:
        """How many entries the checkpoint is of."""
        return self.checkpoint.size

    def tile(self, tile: Tile) -> bytes:
        """Return the hashes of a tile, unchecked but for their number."""
        raw = self.read(tile.format(), tile.width * HASH_BYTES)
        if len(raw) != tile.width * HASH_BYTES:
            raise ArchiveError(f"{tile.format()} has {len(raw)} bytes, not {tile.width * HASH_BYTES}")
        return raw

    def bundle(self, bundle: Tile) -> list[bytes]:
        """Return the entries of a bundle, unchecked but for their number."""
        return self._unpacked(bundle.format(), bundle.width)

    def entries(self, *, verified: bool = True) -> Iterator[tuple[int, bytes]]:
        """Yield (log index, bytes) in order, a bundle at a time.

        verified: prove each bundle before anything of it is yielded. A checker that rebuilds the whole tree need not.
        """
        for bundle in bundles(self.size):
            entries = self._verified_bundle(bundle) if verified else self.bundle(bundle)
            yield from enumerate(entries, start=bundle.number * TILE_WIDTH)

    def entry(self, log_index: int) -> bytes:
        """Return the bytes of an entry, proven to be in the log. Raises NotInLog past its end."""
        if not 0 <= log_index < self.size:
            raise NotInLog(f"the archive has {self.size} entries, and no entry {log_index}")
        number, offset = divmod(log_index, TILE_WIDTH)
        width = min(TILE_WIDTH, self.size - number * TILE_WIDTH)
        return self._verified(Tile(level=None, number=number, width=width))[offset]

    def notes(self) -> Iterator[str]:
        """Yield every checkpoint ever signed, by size, unchecked; of a log that is not an archive, its newest alone."""
        if not self.size:
            return
        if self._source.read(notes_path(next(bundles(self.size))), self._notes_limit(TILE_WIDTH)) is None:
            yield self.note
            return
        for bundle in bundles(self.size):
            for raw in self._unpacked(notes_path(bundle), None):
                yield raw.decode("utf-8", "replace")

    def _verified_bundle(self, bundle: Tile) -> list[bytes]:
        """Return the entries of a bundle, which as a subtree is proven to lead to the checkpoint's root."""
        entries = self.bundle(bundle)
        part = GrowingTree()
        for raw in entries:
            part.append(leaf_hash(raw))
        try:
            path = subtree_path(TILE_HEIGHT, bundle.number, self.size, self._hash_at)
            leaves = -(-self.size // TILE_WIDTH)
            root = root_from_inclusion_path(part.root(), bundle.number, leaves, path)
        except (ProofError, TileError) as error:
            raise ArchiveError(f"{bundle.format()} cannot be proven: {error}") from error
        if root != self.checkpoint.root:
            raise ArchiveError(
                f"{bundle.format()}, or a tile of hashes above it, does not lead to the root of the checkpoint"
            )
        return entries

    def _unpacked(self, path: str, width: int | None) -> list[bytes]:
        """Read a bundle of so many entries; None for as many notes as there are."""
        raw = self.read(path, self._notes_limit(width or TILE_WIDTH))
        try:
            parts = unpack_bundle(raw)
        except TileError as error:
            raise ArchiveError(f"{path} is malformed: {error}") from error
        if width is not None and len(parts) != width:
            raise ArchiveError(f"{path} holds {len(parts)} entries, not {width}")
        return parts

    @staticmethod
    def _notes_limit(width: int) -> int:
        return width * (MAX_ENTRY_BYTES + 2)

    def read(self, path: str, limit_bytes: int) -> bytes:
        """Return a file, unchecked. Raises ArchiveError where there is none."""
        content = self._source.read(path, limit_bytes)
        if content is None:
            raise ArchiveError(f"there is no {path}")
        return content


class ArchivedTiles:
    """A law for `fsck`: tiles of every level and the checkpoint follow from the entries. I8 names entries, I5 tiles."""

    types: ClassVar[frozenset[str] | None] = None

    def __init__(self, reader: ArchiveReader) -> None:
        self._reader = reader
        self._leaves = b""  # the stored hashes of the entries around the one at hand
        self._rows: list[bytearray] = []  # of each level from 1 on, what is computed of its last tile
        self._tree = GrowingTree()
        self._findings: list[Finding] = []

    def entry(self, logged: Logged, /) -> Iterator[Fault]:
        """Compare an entry with its hash, and each tile that is complete with what was computed."""
        number, offset = divmod(logged.log_index, TILE_WIDTH)
        if offset == 0:
            width = min(TILE_WIDTH, self._reader.size - number * TILE_WIDTH)
            self._leaves = self._reader.tile(Tile(level=0, number=number, width=width))
        if self._leaves[offset * HASH_BYTES : (offset + 1) * HASH_BYTES] != logged.leaf_hash:
            yield "I8", "the entry is not what its hash in the tiles was made of"
        if offset == TILE_WIDTH - 1:
            completed = self._tree.frontier().completed_by(logged.leaf_hash)
            for level, node in enumerate(completed[TILE_HEIGHT::TILE_HEIGHT], start=1):
                self._add(level, node)
        self._tree.append(logged.leaf_hash)

    def end(self) -> Iterator[Finding]:
        """Compare the last tile of each level and the checkpoint, and name all that differ."""
        for level, hashes in enumerate(self._rows, start=1):
            if hashes:
                number = row_width(level, self._tree.size) // TILE_WIDTH
                self._compare(Tile(level=level, number=number, width=len(hashes) // HASH_BYTES), bytes(hashes))
        yield from self._findings
        if (self._tree.size, self._tree.root()) != (self._reader.size, self._reader.checkpoint.root):
            message = f"the entries are not those that the {CHECKPOINT} of {self._reader.size} entries was signed over"
            yield Finding(invariant="I8", log_index=None, message=message)

    def _add(self, level: int, node: bytes) -> None:
        if level > len(self._rows):
            self._rows.append(bytearray())
        hashes = self._rows[level - 1]
        hashes += node
        if len(hashes) == TILE_WIDTH * HASH_BYTES:
            # The entry at hand is not in the tree yet, and it is the one that completes the tile.
            number = (self._tree.size + 1 >> TILE_HEIGHT * (level + 1)) - 1
            self._compare(Tile(level=level, number=number, width=TILE_WIDTH), bytes(hashes))
            hashes.clear()

    def _compare(self, tile: Tile, computed: bytes) -> None:
        try:
            stored = self._reader.tile(tile)
        except ArchiveError as error:
            self._findings.append(Finding(invariant="I5", log_index=None, message=str(error)))
            return
        if stored != computed:
            message = f"{tile.format()} does not follow from the entries"
            self._findings.append(Finding(invariant="I5", log_index=None, message=message))


def fsck_archive(
    reader: ArchiveReader, *, processes: int = 0, progress: Callable[[Progress], None] | None = None
) -> list[Finding]:
    """Check a log with nothing but its files and its key: entries, tiles and every checkpoint that the files hold.

    A file that is missing, malformed or of the wrong length ends the check with a finding, I5, that names it.
    """
    findings: list[Finding] = []
    try:
        return fsck(
            reader.entries(verified=False),
            reader.notes(),
            None,
            reader.verifier,
            read=reader.entry,
            laws=[ArchivedTiles(reader)],
            processes=processes,
            total=reader.size,
            progress=progress,
        )
    except ArchiveError as error:
        findings.append(Finding(invariant="I5", log_index=None, message=str(error)))
    return findings
