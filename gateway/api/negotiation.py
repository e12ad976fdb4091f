"""Which of several forms a client would rather have, by its `Accept` header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110's word for a word
_RANGE = re.compile(rf"({_TOKEN})/({_TOKEN})")
_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def best(accept: str | None, offered: Sequence[str]) -> str | None:
    """The media type to answer with, or None where the client takes none of them.

    accept: the header, None where it is absent, which takes anything. offered: `type/subtype`, the preferred first. A
    range that names more decides over one that names less; what cannot be parsed counts as not said.
    """
    if accept is None or not accept.strip():
        return offered[0]
    ranges = [found for part in accept.split(",") if (found := _range(part)) is not None]
    qualities = [_quality(media_type, ranges) for media_type in offered]
    highest = max(qualities)
    return offered[qualities.index(highest)] if highest > 0 else None


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """How much a client wants a media type: by the most specific range that it falls under."""
    kind = media_type.partition("/")[0]
    for name in (media_type, f"{kind}/*", "*/*"):
        found = [quality for said, quality in ranges if said == name]
        if found:
            return max(found)
    return 0.0


def _range(part: str) -> tuple[str, float] | None:
    """A media range and its quality. One with parameters of its own, such as a version, is none of ours."""
    named, *parameters = (piece.strip() for piece in part.split(";"))
    if not _RANGE.fullmatch(named):
        return None
    quality = 1.0
    for parameter in filter(None, parameters):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":  # every form here is UTF-8
            continue
        if name.strip().lower() != "q" or not _QUALITY.fullmatch(value.strip()):
            return None
        quality = float(value)
    return named.lower(), quality
