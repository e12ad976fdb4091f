"""The checks that every value of this package makes at its birth."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache

from metering.errors import MeteringError

LIMIT_NANO = 9_200_000_000_000_000_000  # 9.2 billion USD; a signed 64-bit column holds a little more
WHOLE_PPM = 1_000_000

CONTRIBUTOR = "[a-z0-9][a-z0-9-]{0,62}"
DIGEST = "[0-9a-f]{64}"
GATEWAY = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
NAME = "[!-~]{1,200}"  # of a model, an adapter, a document or a policy
REASON = "[^\\x00-\\x1f\\x7f]{1,500}"  # one line of text
REQUEST_ID = "req_[a-z2-7]{26}"


def check_whole(name: str, value: int, *, minimum: int = 0, maximum: int = LIMIT_NANO) -> None:
    """Refuse anything but an integer in minimum … maximum; a float or a bool is not one."""
    if type(value) is int and minimum <= value <= maximum:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise MeteringError(f"{name} must be a whole number, not {value!r}")
    if not minimum <= value <= maximum:
        raise MeteringError(f"{name} must be from {minimum} to {maximum}, not {value}")


def check_text(name: str, value: str, pattern: str) -> None:
    """Refuse a text that `pattern` does not match from end to end."""
    if not isinstance(value, str) or _matcher(pattern)(value) is None:
        raise MeteringError(f"{name} must match {pattern}, not {value!r}")


def check_known(name: str, value: str, pattern: str) -> None:
    """Refuse the same; for texts of which few come again and again, such as the names of accounts."""
    if not isinstance(value, str) or not _matches(value, pattern):
        raise MeteringError(f"{name} must match {pattern}, not {value!r}")


@cache  # patterns are constants of this package
def _matcher(pattern: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(pattern).fullmatch


@lru_cache(maxsize=4096)
def _matches(value: str, pattern: str) -> bool:
    return _matcher(pattern)(value) is not None
