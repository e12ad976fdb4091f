"""Log entries: CloudEvents 1.0 in JSON, canonical by RFC 8785, so that one entry has exactly one encoding."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

import orjson
import rfc8785

JSON: TypeAlias = bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"] | None

RECEIVED = "entry.received"  # holds an entry of another log; see `ledger_client.received`
ENTRY_TYPES = frozenset(
    {
        "contributor.registered",
        "document.registered",
        "document.withdrawn",
        "adapter.registered",
        "policy.published",
        "price.published",
        "credit.granted",
        "usage.recorded",
        "request.voided",
        "answer.attributed",
        "answer.superseded",
        "feedback.recorded",
        "address.bound",
        "payout.recorded",
        "period.closed",
        RECEIVED,
    }
)

MAX_ENTRY_BYTES = 65_535  # an entry bundle prefixes each entry with its length in two bytes
MAX_FACT_BYTES = 63_487  # of all but `entry.received`, which takes at most 2 KiB more than the entry in it

_ENVELOPE = frozenset({"specversion", "id", "source", "type", "time", "subject", "data"})
_ID = re.compile(r"[0-9a-f]{64}")
_SOURCE = re.compile(r"[!-~]{1,255}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z")
_MAX_SAFE_INTEGER = 2**53 - 1

# orjson sorts keys by code point where RFC 8785 sorts them by UTF-16 unit; only beyond the BMP do the two differ. Of
# numbers it writes whole floats with `.0` and uses exponents elsewhere. What the patterns find may be in a string.
_FAST = (
    orjson.OPT_SORT_KEYS
    | orjson.OPT_STRICT_INTEGER
    | orjson.OPT_PASSTHROUGH_SUBCLASS
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
)
_BEYOND_BMP = re.compile(rb"[\xf0-\xf4]")
_EXPONENT = re.compile(rb"e[+-]?[0-9]{1,3}[,\]}]")
_POINT_ZERO = re.compile(rb"\.0(?<![0-9]{16}\.0)(?=[,\]}])")  # of numbers that stay safe as whole ones
_UNSAFE = re.compile(rb"\.0[,\]}]")
_MINUS_ZERO = re.compile(rb"-0(?=[,\]}])")


class EntryError(ValueError):
    """An entry, or bytes said to be one, that the log does not accept."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One fact in the log. It is its bytes: they are made at birth and what is hashed is never re-serialised.

    id: 64 lowercase hex digits, from `entry_id`. source: who states the fact, printable ASCII without spaces.
    type: one of ENTRY_TYPES. time: RFC 3339 in UTC, ending in Z. subject: what the fact is about, printable.
    data: a JSON object whose numbers stay within ±(2^53 − 1); amounts are therefore decimal strings.
    Raises EntryError, saying which part is wrong, also when the encoding is longer than MAX_FACT_BYTES, or than
    MAX_ENTRY_BYTES where it holds an entry of another log.
    """

    id: str
    source: str
    type: str
    time: str
    subject: str
    data: Mapping[str, JSON] = field(hash=False)
    _raw: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_attributes(self)
        raw, read = _canonical(
            {
                "specversion": "1.0",
                "id": self.id,
                "source": self.source,
                "type": self.type,
                "time": self.time,
                "subject": self.subject,
                "data": self.data,
            }
        )
        _check_length(self.type, raw)
        object.__setattr__(self, "_raw", raw)
        # Data is read back, so that it is what any reader of the bytes sees and no one else holds a reference to it.
        object.__setattr__(self, "data", read["data"])

    def encode(self) -> bytes:
        """Return the canonical bytes, the leaf of the log."""
        return self._raw

    @classmethod
    def decode(cls, raw: bytes) -> Entry:
        """Read an entry back; `Entry.decode(entry.encode()) == entry`. Raises EntryError on any other bytes."""
        if len(raw) > MAX_ENTRY_BYTES:
            raise EntryError(f"an entry may take {MAX_ENTRY_BYTES} bytes; these are {len(raw)}")
        envelope = _read_back(raw)
        if not isinstance(envelope, dict) or envelope.keys() != _ENVELOPE:
            raise EntryError(f"an entry is a JSON object with exactly the members {', '.join(sorted(_ENVELOPE))}")
        if envelope.pop("specversion") != "1.0":
            raise EntryError("an entry is a CloudEvent of specversion 1.0")
        # The bytes are canonical and nobody else holds the envelope, so there is nothing to encode or to copy again.
        entry = object.__new__(cls)
        entry.__dict__.update(envelope, _raw=raw)
        _check_attributes(entry)
        _check_length(entry.type, raw)
        return entry

    @classmethod
    def read_again(cls, raw: bytes) -> Entry:
        """Read bytes that `decode` has accepted already, without checking any of it again."""
        try:
            envelope = orjson.loads(raw)
        except ValueError:
            envelope = _parse(raw)
        del envelope["specversion"]
        entry = object.__new__(cls)
        entry.__dict__.update(envelope, _raw=raw)
        return entry


def entry_id(source: str, key: str, attempt: int = 0) -> str:
    """Derive the id under which a fact is logged once and for ever.

    key: what the source did, unique to it, such as "usage:req_…". attempt: rises from 0 when it is done anew.
    Returns 64 hex digits: SHA-256 of the three parts, joined by zero bytes that none of them may hold.
    """
    if not source or not key or "\0" in source + key or attempt < 0:
        raise EntryError("an entry id takes a source and a key, not empty and without zero bytes, and an attempt ≥ 0")
    return hashlib.sha256(f"{source}\0{key}\0{attempt}".encode()).hexdigest()


def _check_attributes(entry: Entry) -> None:
    """Check everything but the numbers and strings inside data, which the encoder checks."""
    for value in (entry.id, entry.source, entry.type, entry.time, entry.subject):
        if not isinstance(value, str):
            raise EntryError(f"id, source, type, time and subject must be strings, not {value!r:.40}")
    if not _ID.fullmatch(entry.id):
        raise EntryError("id must be 64 lowercase hex digits")
    if not _SOURCE.fullmatch(entry.source):
        raise EntryError("source must be 1 to 255 printable ASCII characters without spaces")
    if entry.type not in ENTRY_TYPES:
        raise EntryError(f"type must be one of {', '.join(sorted(ENTRY_TYPES))}; it is {entry.type!r}")
    if not _TIME.fullmatch(entry.time) or not _is_date(entry.time):
        raise EntryError(f"time must be a date and time in UTC such as 2025-01-31T23:59:59Z; it is {entry.time!r}")
    if not (entry.subject.isprintable() and 1 <= len(entry.subject) <= 255):
        raise EntryError("subject must be 1 to 255 printable characters")
    if not isinstance(entry.data, dict):
        raise EntryError("data must be a JSON object")


def _check_length(kind: str, raw: bytes) -> None:
    longest = MAX_ENTRY_BYTES if kind == RECEIVED else MAX_FACT_BYTES
    if len(raw) > longest:
        raise EntryError(f"an entry may take {longest} bytes; this one takes {len(raw)}")


def _is_date(time: str) -> bool:
    try:
        datetime.fromisoformat(time)
    except ValueError:
        return False
    return True


def _canonical(value: dict[str, Any]) -> tuple[bytes, Any]:
    """Return the canonical bytes of an object, and what a reader of them sees."""
    return _fast(value) or _exact(value)


def _fast(value: dict[str, Any]) -> tuple[bytes, Any] | None:
    """Write with orjson; None where that is not certain to be what RFC 8785 says.

    The text that results has sorted keys and canonical numbers, so it is the canonical one of whatever it is read back
    as; and that is the value given, or nothing is returned.
    """
    try:
        raw = orjson.dumps(value, option=_FAST)
        if _POINT_ZERO.search(raw):
            raw = _MINUS_ZERO.sub(b"0", _POINT_ZERO.sub(b"", raw))
        read = orjson.loads(raw)
        same = read == value
    except (TypeError, ValueError, RecursionError):
        return None
    return (raw, read) if same and _is_plain(raw) else None


def _read_back(raw: bytes) -> Any:
    """Return what canonical bytes say. Raises EntryError on any others."""
    try:
        read = orjson.loads(raw)
        if orjson.dumps(read, option=_FAST) == raw and _is_plain(raw):
            return read
    except (TypeError, ValueError):
        pass  # the exact encoder says what is wrong, or writes what only it can
    read = _parse(raw)
    if _exact(read)[0] != raw:
        raise EntryError("the bytes are not canonical JSON (RFC 8785)")
    return read


def _is_plain(raw: bytes) -> bool:
    """Whether RFC 8785 writes keys and numbers as orjson wrote them here."""
    return not (_UNSAFE.search(raw) or _EXPONENT.search(raw)) and (raw.isascii() or not _BEYOND_BMP.search(raw))


def _exact(value: Any) -> tuple[bytes, Any]:
    try:
        raw = bytes(rfc8785.dumps(value))
    except (ValueError, RecursionError) as error:
        raise EntryError(f"data cannot be written as canonical JSON: {error}") from error
    return raw, _parse(raw)


def _parse(raw: bytes) -> Any:
    """Read any JSON whose whole numbers are safe; what is not canonical in it is found by writing it again."""
    try:
        return json.loads(raw.decode("utf-8"), parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise EntryError(f"an entry must be JSON in UTF-8: {error}") from error


def _integer(digits: str) -> int:
    """Refuse what a reader with doubles would round; the length guards int() itself."""
    if len(digits) > 17 or abs(int(digits)) > _MAX_SAFE_INTEGER:
        raise EntryError("a whole number in data is beyond ±(2^53 − 1); write it as a decimal string")
    return int(digits)
