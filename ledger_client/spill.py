"""Which of very many values are equal, found in constant memory: what does not fit is sorted in files."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

_KEY_BYTES = 16
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<u8")])  # the lowest bit of a number is its mark
_BUCKETS = 256
_HELD_BYTES = 8_388_608

_Array: TypeAlias = npt.NDArray[Any]


class Group(NamedTuple):
    """The records of one value. numbers: those that came unmarked, rising. marked: those that came marked, rising."""

    numbers: list[int]
    marked: list[int]


class Spill:
    """Records of a value and a number, marked or not, that come in any number and leave in groups of equal values.

    Values are told apart by 128 bits of a salted hash, so that nobody who chooses them can make two of them meet.
    Beyond some megabytes the records lie in files below a folder of the caller's.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._salt = secrets.token_bytes(_KEY_BYTES)
        self._held = bytearray()
        self._spilled = False

    def add(self, value: bytes, number: int, *, marked: bool = False) -> None:
        """Take a record. number: 0 to 2^63 − 1."""
        key = hashlib.sha256(self._salt + value).digest()[:_KEY_BYTES]
        self._held += key + (number << 1 | marked).to_bytes(8, "little")
        if len(self._held) >= _HELD_BYTES:
            self._spill()

    def repeated(self) -> Iterator[Group]:
        """Yield the group of each value that was added more than once."""
        for records, starts, sizes, _ in self._grouped():
            yield from _groups(records, starts, sizes, sizes > 1)

    def unmatched(self) -> Iterator[Group]:
        """Yield the group of each value that came marked, unless it came once marked and once unmarked."""
        for records, starts, sizes, marked in self._grouped():
            matched = (sizes == 2) & (marked == 1)
            yield from _groups(records, starts, sizes, (marked > 0) & ~matched)

    def _grouped(self) -> Iterator[tuple[_Array, _Array, _Array, _Array]]:
        """Yield records in order; where in them the groups of equal keys start, their sizes, how many are marked."""
        for records in self._buckets():
            if not len(records):
                continue
            ordered = records[np.lexsort((records["number"], records["low"], records["high"]))]
            high, low = ordered["high"], ordered["low"]
            starts = np.flatnonzero(np.r_[True, (high[1:] != high[:-1]) | (low[1:] != low[:-1])])
            sizes = np.diff(np.r_[starts, len(ordered)])
            yield ordered, starts, sizes, np.add.reduceat(ordered["number"] & 1, starts)

    def _buckets(self) -> Iterator[_Array]:
        """Yield all records, those with equal keys together."""
        if not self._spilled:
            yield np.frombuffer(bytes(self._held), dtype=_RECORD)
            return
        self._spill()
        for bucket in range(_BUCKETS):
            yield np.fromfile(self._file(bucket), dtype=_RECORD)

    def _spill(self) -> None:
        """Move what is held to the files, by the first byte of the key."""
        records = np.frombuffer(bytes(self._held), dtype=_RECORD)
        first = (records["high"] & 0xFF).astype(np.uint8)
        order = np.argsort(first, kind="stable")
        bounds = np.searchsorted(first[order], np.arange(_BUCKETS + 1))
        for bucket in range(_BUCKETS):
            with self._file(bucket).open("ab") as file:
                file.write(records[order[bounds[bucket] : bounds[bucket + 1]]].tobytes())
        self._held.clear()
        self._spilled = True

    def _file(self, bucket: int) -> Path:
        return self._folder / f"{self._name}-{bucket:03}"


def _groups(records: _Array, starts: _Array, sizes: _Array, chosen: _Array) -> Iterator[Group]:
    for start, size in zip(starts[chosen].tolist(), sizes[chosen].tolist(), strict=True):
        numbers = records["number"][start : start + size].tolist()
        yield Group(
            numbers=[number >> 1 for number in numbers if not number & 1],
            marked=[number >> 1 for number in numbers if number & 1],
        )
