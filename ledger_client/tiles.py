"""The tree cut into static files (c2sp.org/tlog-tiles): their names, their contents, and proofs read from them.

A tile is up to 256 hashes of one tile level: those of level L are the complete subtrees of 256^L leaves. An entry
bundle is the entries behind a tile of level 0. The last tile of a row may be partial, and says its width in its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ledger_client.merkle import HASH_BYTES, HashAt, node_hash

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT

_PATH = re.compile(r"tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")
_MAX_NUMBER_DIGITS = 18


class TileError(ValueError):
    """A tile path, a tile or a bundle that is not as c2sp.org/tlog-tiles has it."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """The name of a tile, or of an entry bundle where level is None.

    level: 0 to 63. number: its place in the row. width: 1 to 256 hashes or entries, 256 when complete.
    """

    level: int | None
    number: int
    width: int

    def __post_init__(self) -> None:
        if self.level is not None and not 0 <= self.level <= 63:
            raise TileError(f"tile levels go from 0 to 63; this is {self.level}")
        if self.number < 0 or not 1 <= self.width <= TILE_WIDTH:
            raise TileError(f"a tile has a number from 0 and a width from 1 to {TILE_WIDTH}")

    def format(self) -> str:
        """Return the path below the log's prefix, such as `tile/0/x001/067.p/8`."""
        digits = str(self.number)
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        *leading, last = (digits[start : start + 3] for start in range(0, len(digits), 3))
        number = "".join(f"x{group}/" for group in leading) + last
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{'entries' if self.level is None else self.level}/{number}{partial}"

    @classmethod
    def parse(cls, path: str) -> Tile:
        """Read what `format` writes. Raises TileError on any other spelling."""
        match = _PATH.fullmatch(path)
        if not match or len(match[2]) > 5 * _MAX_NUMBER_DIGITS // 3:
            raise TileError(f"{path[:80]!r} is not the path of a tile")
        number = int(match[2].replace("x", "").replace("/", ""))
        tile = cls(
            level=None if match[1] == "entries" else int(match[1]), number=number, width=int(match[3] or TILE_WIDTH)
        )
        if tile.format() != path:
            raise TileError(f"the tile {tile.format()!r} is not called {path[:80]!r}")
        return tile


def row_width(level: int, size: int) -> int:
    """Return how many hashes the tiles of a level hold together in a tree of that size."""
    return size >> (TILE_HEIGHT * level)


def hashes_from_tiles(size: int, read: Callable[[Tile], bytes]) -> HashAt:
    """Return the hashes of a tree of that size, read from its tiles; each tile is read once.

    read: returns a tile's bytes. They are not trusted: a proof built from them holds only where it leads to a
    signed root. Raises TileError when a tile is not as long as its width says.
    """
    tiles: dict[Tile, bytes] = {}

    def hash_at(level: int, index: int) -> bytes:
        tile_level, height = divmod(level, TILE_HEIGHT)
        number, offset = divmod(index << height, TILE_WIDTH)
        width = min(TILE_WIDTH, row_width(tile_level, size) - number * TILE_WIDTH)
        tile = Tile(level=tile_level, number=number, width=width)
        if tile not in tiles:
            tiles[tile] = read(tile)
        raw = tiles[tile]
        if len(raw) != width * HASH_BYTES:
            raise TileError(f"{tile.format()} has {len(raw)} bytes, not {width * HASH_BYTES}")
        hashes = [raw[at * HASH_BYTES : (at + 1) * HASH_BYTES] for at in range(offset, offset + (1 << height))]
        while len(hashes) > 1:
            hashes = [node_hash(*pair) for pair in zip(hashes[::2], hashes[1::2], strict=True)]
        return hashes[0]

    return hash_at


def pack_bundle(entries: Iterable[bytes]) -> bytes:
    """Return an entry bundle: each entry after its length in two bytes, big-endian."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def unpack_bundle(raw: bytes) -> list[bytes]:
    """Read what `pack_bundle` wrote. Raises TileError when it stops inside an entry."""
    entries = []
    start = 0
    while start < len(raw):
        stop = start + 2 + int.from_bytes(raw[start : start + 2], "big")
        if stop > len(raw):
            raise TileError("the entry bundle stops inside an entry")
        entries.append(raw[start + 2 : stop])
        start = stop
    return entries
