"""Ids that the gateway gives, and the clock it reads."""

from __future__ import annotations

import base64
import secrets
from datetime import UTC, datetime

ADAPTER_NAME = "[a-z0-9][a-z0-9._-]{0,62}"
ADAPTER_VERSION = "[1-9][0-9]{0,5}"


def new_id(prefix: str) -> str:
    """`prefix_` and 26 base-32 characters, 128 random bits."""
    return f"{prefix}_{base64.b32encode(secrets.token_bytes(16)).decode().rstrip('=').lower()}"


def now() -> str:
    """The time in RFC 3339, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
