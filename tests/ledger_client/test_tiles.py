"""Tile names, tile contents and entry bundles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_client import TILE_WIDTH, Tile, TileError, hashes_from_tiles, pack_bundle, unpack_bundle

NAMES = [
    (Tile(level=0, number=0, width=256), "tile/0/000"),
    (Tile(level=0, number=273, width=112), "tile/0/273.p/112"),
    (Tile(level=2, number=0, width=1), "tile/2/000.p/1"),
    (Tile(level=63, number=1_234_067, width=256), "tile/63/x001/x234/067"),
    (Tile(level=None, number=999, width=256), "tile/entries/999"),
    (Tile(level=None, number=1000, width=255), "tile/entries/x001/000.p/255"),
]


@pytest.mark.parametrize(("tile", "path"), NAMES)
def test_names_of_the_specification(tile: Tile, path: str) -> None:
    assert tile.format() == path
    assert Tile.parse(path) == tile


@given(st.none() | st.integers(0, 63), st.integers(0, 10**18 - 1), st.integers(1, 256))
def test_parse_undoes_format(level: int | None, number: int, width: int) -> None:
    tile = Tile(level=level, number=number, width=width)
    assert Tile.parse(tile.format()) == tile


@pytest.mark.parametrize(
    "path",
    [
        *[
            "",
            "tile",
            "tile/0",
            "/tile/0/000",
            "tile/0/000/",
            "tile/00/000",
            "tile/01/000",
            "tile/64/000",
            "tile/-1/000",
        ],
        *["tile/0/0", "tile/0/1000", "tile/0/x000", "tile/0/x000/001", "tile/0/001/234", "tile/0/x1/234", "tile/0/+00"],
        *["tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/08", "tile/0/000.p/", "tile/0/000.p/-1", "tile/0/000.p"],
        *["tile/0/٠٠٠", "tile/data/000", "tile/Entries/000", "tile/0/000\n", "tile/0/../000", "tile/0/X001/000"],
        "tile/0/" + "x999/" * 6 + "999",
        "tile/0/" + "x999/" * 50_000 + "999",
    ],
)
def test_other_spellings_are_refused(path: str) -> None:
    with pytest.raises(TileError):
        Tile.parse(path)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_unpack_undoes_pack(entries: list[bytes]) -> None:
    assert unpack_bundle(pack_bundle(entries)) == entries


@pytest.mark.parametrize("raw", [b"\0", b"\0\1", b"\0\1a\0", b"\0\2a"])
def test_a_bundle_that_stops_short_is_refused(raw: bytes) -> None:
    with pytest.raises(TileError):
        unpack_bundle(raw)


def test_a_tile_of_another_length_is_refused() -> None:
    hash_at = hashes_from_tiles(300, lambda tile: bytes(32 * tile.width - 1))
    with pytest.raises(TileError, match=r"tile/0/001\.p/44"):
        hash_at(0, 299)


def test_a_tile_is_read_once() -> None:
    reads = []

    def read(tile: Tile) -> bytes:
        reads.append(tile)
        return bytes(32 * tile.width)

    hash_at = hashes_from_tiles(TILE_WIDTH + 1, read)
    for index in range(TILE_WIDTH):
        hash_at(0, index)
    hash_at(7, 1)
    hash_at(8, 0)
    assert reads == [Tile(level=0, number=0, width=256), Tile(level=1, number=0, width=1)]
