"""Ids that the gateway gives, and the clock it reads."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from itertools import product

ADAPTER_NAME = "[a-z0-9][a-z0-9._-]{0,62}"
ADAPTER_VERSION = "[1-9][0-9]{0,5}"


_DRAW_BYTES = 32
_DIGITS = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS = ["".join(pair) for pair in product(_DIGITS, repeat=2)]
_drawn: list[bytes] = []
os.register_at_fork(after_in_child=_drawn.clear)  # or both processes would give the same


def random_bytes() -> bytes:
    """32 bytes of the system's generator, given once. Asked for one by one they would cost a thread its turn."""
    while True:
        try:
            return _drawn.pop()
        except IndexError:
            many = os.urandom(128 * _DRAW_BYTES)
            _drawn.extend(many[start : start + _DRAW_BYTES] for start in range(0, len(many), _DRAW_BYTES))


def new_id(prefix: str) -> str:
    """`prefix_` and 26 base-32 characters, 128 random bits."""
    return f"{prefix}_{_base32(int.from_bytes(random_bytes()[:16]))}"


def new_request_id() -> str:
    """`req_` and 26 base-32 characters: 48 bits of time, then 80 random bits.

    Ids of about the same time begin alike, so that rows that are written together lie together in an index.
    """
    return f"req_{_base32((time.time_ns() // 1_000_000) << 80 | int.from_bytes(random_bytes()[:10]))}"


def _base32(number: int) -> str:
    """26 digits of 128 bits, as RFC 4648 writes them but in lower case and without padding."""
    shifted = number << 2
    return "".join([_PAIRS[shifted >> shift & 1023] for shift in range(120, -1, -10)])


def now() -> str:
    """The time in RFC 3339, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
