"""The text forms that C2SP formats share, base64 and decimals, each read in exactly one spelling."""

from __future__ import annotations

import base64
import re

MAX_COUNT = 2**63 - 1  # what a signed 64-bit column of a database holds

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")


def to_base64(raw: bytes) -> str:
    """Write standard base64 with padding (RFC 4648 section 4)."""
    return base64.b64encode(raw).decode("ascii")


def from_base64(text: str) -> bytes:
    """Read what `to_base64` writes. Raises ValueError on anything else, unused bits that are not zero among it."""
    raw = base64.b64decode(text, validate=True)
    if to_base64(raw) != text:
        raise ValueError("base64 in another spelling than the standard one")
    return raw


def from_decimal(text: str) -> int:
    """Read a count up to MAX_COUNT. Raises ValueError on signs, leading zeros, spaces and digits beyond ASCII."""
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_COUNT:
        raise ValueError(f"{text[:40]!r} is not a decimal count without leading zeros, up to 2^63 − 1")
    return int(text)
