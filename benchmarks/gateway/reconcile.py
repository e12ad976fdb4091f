"""What clients saw against what the log says: no answer without an entry, no entry without a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.cli.context import Office
from ledger_client import Entry
from metering import open_intents


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one request came to for its client. request_id: None where no head came. complete: its last byte came.

    tokens: of its answer, where it was complete.
    """

    request_id: str | None
    complete: bool
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What the log says of one request. tokens: completion tokens charged for; None of one that was voided."""

    request_id: str
    tokens: int | None


@dataclass(frozen=True, kw_only=True)
class Reconciled:
    """Counts of requests. unlogged: complete answers without a usage entry. unasked: entries of requests nobody sent.

    miscounted: complete answers whose entry charges other tokens. doubled: entries beyond the first of a request.
    """

    sent: int
    complete: int
    charged: int
    voided: int
    unlogged: int
    unasked: int
    miscounted: int
    doubled: int


def reconcile(seen: Sequence[Seen], logged: Sequence[Logged]) -> Reconciled:
    """Compare. A request whose head never came has no name, so that as many entries may be of names nobody knows."""
    charged = {entry.request_id: entry.tokens for entry in logged if entry.tokens is not None}
    named = {one.request_id for one in seen if one.request_id is not None}
    nameless = sum(one.request_id is None for one in seen)
    complete = [one for one in seen if one.complete]
    entries = Counter(entry.request_id for entry in logged)
    return Reconciled(
        sent=len(seen),
        complete=len(complete),
        charged=len(charged),
        voided=len(logged) - sum(entry.tokens is not None for entry in logged),
        unlogged=sum(one.request_id not in charged for one in complete),
        unasked=max(0, len(entries.keys() - named) - nameless),
        miscounted=sum(
            one.request_id in charged and one.tokens is not None and charged[one.request_id] != one.tokens
            for one in complete
            if one.request_id is not None
        ),
        doubled=sum(count - 1 for count in entries.values()),
    )


def logged(office: Office) -> list[Logged]:
    """Every entry that ends a request, in the log's order."""
    found = []
    with office.database.read() as connection:
        for _, raw in office.log.entries(connection):
            entry = Entry.decode(raw)
            if entry.type == "usage.recorded":
                found.append(Logged(request_id=entry.subject, tokens=_whole(entry.data["completion_tokens"])))
            elif entry.type == "request.voided":
                found.append(Logged(request_id=entry.subject, tokens=None))
    return found


def still_open(office: Office) -> int:
    """How many admitted requests have not ended."""
    with office.database.read() as connection:
        return sum(1 for _ in open_intents(connection))


def _whole(value: object) -> int:
    assert isinstance(value, int)
    return value
