"""The checker of this package's tables: every row is compared with the log, which alone is believed.

What is wrong with the log itself is for `ledger_client.fsck` to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Any, ClassVar, TypeAlias, cast

from sqlalchemy import Column, Connection, Row, Table, select

from ledger_client import (
    JSON,
    Amounts,
    Entry,
    EntryError,
    Fault,
    Finding,
    Log,
    Logged,
    PeriodError,
    check_period,
    leaf_hash,
    nano,
    period_of,
)
from metering._totals import Earned, total_faults
from metering.store import Balance, open_intents
from metering.tables import (
    address_table,
    intent_table,
    payout_table,
    period_table,
    posting_table,
    rating_table,
)

_PAGE_ROWS = 1000

_Facts: TypeAlias = dict[str, object]
"""Column → the value that an entry gives it."""


# The types whose entries each stand as one row of a table, under their log index and with members of their own names.
_MIRRORS: Mapping[str, Table] = {
    "feedback.recorded": rating_table,
    "address.bound": address_table,
    "payout.recorded": payout_table,
    "period.closed": period_table,
}
_ROLES = {
    "credit.granted": "credit",
    "usage.recorded": "charge",
    "answer.superseded": "correction",
    "payout.recorded": "payout",
}
_RECORDS = {"answer.attributed", "answer.superseded"}


class StoredBooks:
    """A law for `ledger_client.fsck`: the stored postings, intents and account totals are what the entries say.

    I3: the posting rows of a log index are the entry's postings, in order, with its time and period and with the role,
    player, model and request that follow from it; no row is without an entry; the totals of an account, and what a
    contributor earned by period, day, model and player, are the sums of its rows; each rating, address, payout and
    closed period is stored as its entry has it. I4: each charge or void ends the one intent that it names, and each
    answer's record in force is noted at its own, with the charge and model logged; nothing else ends an intent; what is
    pending on an account is the sum of what its open intents reserve.

    connection: in a transaction that sees one snapshot. Reads every table once, in pages; memory grows by the accounts
    and what they earned through, by the charges that wait for their attribution, and by the corrections.
    """

    types: ClassVar[frozenset[str] | None] = None

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows = _by_log_index(connection)
        self._next = next(self._rows, None)
        self._findings: list[Finding] = []
        self._credits: defaultdict[str, int] = defaultdict(int)
        self._debits: defaultdict[str, int] = defaultdict(int)
        self._earned = Earned()
        self._replay = _Replay()

    def entry(self, logged: Logged, /) -> Iterator[Fault]:
        """Compare the rows that refer to this entry with it."""
        self._skip_to(logged.log_index)
        stored = _Stored()
        if self._next is not None and self._next[0] == logged.log_index:
            stored = self._take()
        if logged.entry is None or logged.amounts is None:
            return  # the entry itself is at fault, and no row can be compared with it
        yield from _faults(logged.log_index, logged.entry, logged.amounts, stored, self._replay)

    def end(self) -> Iterator[Finding]:
        """Name the rows that refer to no entry, and the totals that are no sums."""
        self._skip_to(None)
        for log_index, facts in self._replay.unnoted.items():
            message = f"the intent of request {facts['request_id']} is not stored as attributed by this entry"
            self._findings.append(Finding(invariant="I4", log_index=log_index, message=message))
        yield from sorted(self._findings, key=lambda finding: finding.log_index or 0)
        pending: defaultdict[str, int] = defaultdict(int)
        for intent in open_intents(self._connection):
            pending[intent.account] += intent.maximum_nano
        totals = {
            account: Balance(
                credits_nano=self._credits[account], debits_nano=self._debits[account], pending_nano=pending[account]
            )
            for account in self._credits.keys() | pending.keys()
        }
        for invariant, message in (
            *total_faults(self._connection, totals),
            *self._earned.faults(self._connection),
        ):
            yield Finding(invariant=invariant, log_index=None, message=message)

    def _take(self) -> _Stored:
        """Return the next rows, and count them."""
        assert self._next is not None  # noqa: S101 - asked before
        _, stored = self._next
        self._next = next(self._rows, None)
        for row in stored.postings:
            self._credits[row.account] += max(row.amount_nano, 0)
            self._debits[row.account] += max(-row.amount_nano, 0)
            self._earned.add(row)
        return stored

    def _skip_to(self, log_index: int | None) -> None:
        """Note the rows before a log index, or all that are left, as rows without an entry."""
        while self._next is not None and (log_index is None or self._next[0] < log_index):
            at = self._next[0]
            for invariant, message in _homeless(self._take()):
                self._findings.append(Finding(invariant=invariant, log_index=at, message=message))


def fsck_books(connection: Connection, log: Log) -> list[Finding]:
    """Hold this package's tables against the log alone: see `StoredBooks`. Returns what is broken, in log order."""
    law = StoredBooks(connection)
    findings: list[Finding] = []
    for log_index, raw in log.entries(connection):
        entry = amounts = None
        with suppress(EntryError):
            entry = Entry.decode(raw)
            amounts = Amounts.of(entry)
        for invariant, message in law.entry(Logged(log_index, leaf_hash(raw), entry, amounts)):
            findings.append(Finding(invariant=invariant, log_index=log_index, message=message))
    last = list(law.end())
    of_entries = [finding for finding in last if finding.log_index is not None]
    findings = sorted(findings + of_entries, key=lambda finding: finding.log_index or 0)
    return [*findings, *(finding for finding in last if finding.log_index is None)]


@dataclass(kw_only=True)
class _Stored:
    """The rows that refer to one log index."""

    postings: list[Row[Any]] = field(default_factory=list)
    ended: list[Row[Any]] = field(default_factory=list)
    attributed: list[Row[Any]] = field(default_factory=list)
    mirrors: list[tuple[Table, Row[Any]]] = field(default_factory=list)


@dataclass(kw_only=True)
class _Replay:
    """What the entries so far mean for those that follow."""

    last_closed: str | None = None
    served: dict[int, JSON] = field(default_factory=dict)  # log index of a charge that waits → served model
    # The records that no intent notes as its own: each must be replaced by a correction that is still to come.
    unnoted: dict[int, _Facts] = field(default_factory=dict)

    def close(self, entry: Entry) -> None:
        """Take note of a period that an entry closes."""
        try:
            self.last_closed = max(self.last_closed or "", check_period(cast("str", entry.data.get("period"))))
        except PeriodError:
            raise EntryError("period.closed names no period") from None


def _by_log_index(connection: Connection) -> Iterator[tuple[int, _Stored]]:
    """Walk all tables together."""
    intents = intent_table.c
    streams: list[Iterable[tuple[int, str, Any]]] = [
        _rows(connection, "postings", posting_table.c.log_index, posting_table.c.position),
        _rows(connection, "ended", intents.ended_index, intents.gateway, intents.gateway_seq),
        _rows(connection, "attributed", intents.attribution_index, intents.gateway, intents.gateway_seq),
        *(_mirrored(connection, table) for table in _MIRRORS.values()),
    ]
    for log_index, items in groupby(merge(*streams, key=itemgetter(0)), key=itemgetter(0)):
        stored = _Stored()
        for _, name, item in items:
            getattr(stored, name).append(item)
        yield log_index, stored


def _rows(
    connection: Connection, name: str, log_index: Column[Any], *order: Column[Any]
) -> Iterator[tuple[int, str, Row[Any]]]:
    """Yield (log index, name, row) of a table's rows that have this log index, in order."""
    query = select(log_index.table, log_index.label("at")).where(log_index.is_not(None)).order_by(log_index, *order)
    for row in connection.execute(query.execution_options(yield_per=_PAGE_ROWS)):
        yield row.at, name, row


def _mirrored(connection: Connection, table: Table) -> Iterator[tuple[int, str, tuple[Table, Row[Any]]]]:
    for log_index, _, row in _rows(connection, "", table.c.log_index, *table.primary_key):
        yield log_index, "mirrors", (table, row)


def _homeless(stored: _Stored) -> Iterator[Fault]:
    """Yield a fault for each row that refers to an entry which is not in the log."""
    for row in stored.postings:
        yield "I3", f"posting {row.position}, of {row.amount_nano} nano on {row.account}, has no entry"
    for table, _ in stored.mirrors:
        yield "I3", f"a row of {table.name} has no entry"
    for row in (*stored.ended, *stored.attributed):
        yield "I4", f"the intent of request {row.request_id} refers to an entry that is not in the log"


def _faults(log_index: int, entry: Entry, amounts: Amounts, stored: _Stored, replay: _Replay) -> Iterator[Fault]:
    """Yield what the rows of one log index have that its entry does not say, and the reverse."""
    try:
        request = _request_facts(log_index, entry, replay)
        period = period_of(entry.time, replay.last_closed)
        if entry.type == "period.closed":
            replay.close(entry)
        mirror = _mirror_facts(entry)
    except EntryError:
        return  # the entry itself is at fault, and no row can be compared with it
    yield from _replacement_faults(entry, request, replay)
    yield from _posting_faults(stored.postings, _expected_postings(entry, amounts, request, period))
    yield from _mirror_faults(stored.mirrors, _MIRRORS.get(entry.type), mirror)
    numbered = request | {name: entry.data.get(name) for name in ("gateway", "gateway_seq")}
    if amounts.postings:
        numbered["account"] = amounts.postings[0].account
    ends = entry.type in {"usage.recorded", "request.voided"}
    yield from _intent_faults(stored.ended, numbered if ends else None, "ended by")
    if ends and not _noted(stored.ended, request):
        yield "I4", f"the intent of request {request['request_id']} is not stored as ended by this entry"
    records = entry.type in _RECORDS
    yield from _intent_faults(stored.attributed, request if records else None, "attributed by")
    if records and not _noted(stored.attributed, request):
        replay.unnoted[log_index] = request


def _request_facts(log_index: int, entry: Entry, replay: _Replay) -> _Facts:
    """Return what an entry says of the request that it is about. Raises EntryError."""
    facts: _Facts = {"request_id": entry.data.get("request_id")}
    if entry.type == "request.voided":
        return facts | {"charge_nano": None, "served_model": None}
    if entry.type not in {"usage.recorded", *_RECORDS}:
        return facts
    facts["charge_nano"] = nano(entry.data.get("charge_nano"))
    if entry.type == "usage.recorded":
        facts["served_model"] = replay.served[log_index] = entry.data.get("served_model")
    elif entry.type == "answer.attributed":
        facts["served_model"] = replay.served.pop(_index(entry, "usage_index"), None)
    elif "served_model" in (replaced := replay.unnoted.get(_index(entry, "supersedes"), {})):
        facts["served_model"] = replaced["served_model"]
    return facts


def _replacement_faults(entry: Entry, request: _Facts, replay: _Replay) -> Iterator[Fault]:
    """Let the record rest that a correction replaces, or say that it is still noted as in force."""
    if entry.type != "answer.superseded":
        return
    superseded = _index(entry, "supersedes")
    if replay.unnoted.get(superseded, {}).get("request_id") == request["request_id"]:
        del replay.unnoted[superseded]
    else:
        yield "I4", f"entry {superseded} is noted as in force, or is no record of request {request['request_id']}"


def _index(entry: Entry, name: str) -> int:
    """Return the log index that an entry names. Raises EntryError."""
    index = entry.data.get(name)
    if not isinstance(index, int):
        raise EntryError(f"{name} of {entry.type} is a log index, not {index!r:.60}")
    return index


def _expected_postings(entry: Entry, amounts: Amounts, request: _Facts, period: str) -> list[_Facts]:
    """Return the rows that an entry's postings are stored as."""
    common: _Facts = {
        "time": entry.time,
        "period": period,
        "role": _ROLES.get(entry.type, "split"),
        "kind": None,
        "item": None,
        "served_model": None,
    } | {name: request[name] for name in ("served_model", "request_id") if name in request}
    if entry.type == "answer.superseded" and "served_model" not in request:
        del common["served_model"]  # it stands in a record that was not found
    expected = [common | {"account": line.account, "amount_nano": line.amount_nano} for line in amounts.postings]
    if entry.type == "answer.attributed":
        # The first posting empties suspense, and each of the others is a line of the split.
        for facts, part in zip(expected[1:], _objects(entry, "split"), strict=False):
            facts |= {name: part.get(name) for name in ("role", "kind", "item")}
    elif entry.type == "answer.superseded":
        for facts, part in zip(expected, _objects(entry, "corrections"), strict=False):
            facts |= {name: part.get(name) for name in ("kind", "item")}
    return expected


def _objects(entry: Entry, name: str) -> Iterator[Mapping[str, JSON]]:
    """Yield the objects of a list in an entry's data, as far as it is one."""
    parts = entry.data.get(name)
    for part in parts if isinstance(parts, list) else ():
        yield part if isinstance(part, Mapping) else {}


def _mirror_facts(entry: Entry) -> _Facts:
    """Return the row that an entry stands as; nothing where its type has none. Raises EntryError."""
    facts: _Facts = {}
    for column in _MIRRORS[entry.type].c if entry.type in _MIRRORS else ():
        value = entry.time if column.name == "time" else entry.data.get(column.name)
        if column.name != "log_index":
            facts[column.name] = nano(value) if column.name.endswith("_nano") else value
    return facts


def _mirror_faults(rows: Sequence[tuple[Table, Row[Any]]], expected: Table | None, facts: _Facts) -> Iterator[Fault]:
    for table, row in rows:
        if table is not expected:
            yield "I3", f"a row of {table.name} is stored that the entry does not make"
        elif wrong := _differences(row, facts):
            yield "I3", f"the row of {table.name} is not the entry's: {wrong}"
    if expected is not None and all(table is not expected for table, _ in rows):
        yield "I3", f"the entry is not stored as a row of {expected.name}"


def _posting_faults(rows: Sequence[Row[Any]], expected: Sequence[_Facts]) -> Iterator[Fault]:
    stored = {row.position: row for row in rows}
    for position in sorted(stored.keys() | range(len(expected))):
        row = stored.get(position)
        if row is None:
            facts = expected[position]
            yield "I3", f"posting {position}, of {facts['amount_nano']} nano on {facts['account']}, is not stored"
        elif position not in range(len(expected)):
            yield "I3", f"posting {position}, of {row.amount_nano} nano on {row.account}, is not in the entry"
        elif wrong := _differences(row, expected[position]):
            yield "I3", f"posting {position} is not the entry's: {wrong}"


def _intent_faults(rows: Sequence[Row[Any]], expected: _Facts | None, referred: str) -> Iterator[Fault]:
    """Yield what is wrong with the intents that refer to an entry; expected is None where none should."""
    for row in rows:
        if expected is None:
            yield "I4", f"the intent of request {row.request_id} cannot have been {referred} this entry"
        elif wrong := _differences(row, expected):
            yield "I4", f"the intent of request {row.request_id} is not the entry's: {wrong}"


def _noted(rows: Sequence[Row[Any]], request: _Facts) -> bool:
    """Tell whether an intent of the request is among these."""
    return any(row.request_id == request["request_id"] for row in rows)


def _differences(row: Row[Any], facts: _Facts) -> str:
    """Say where a row differs from the facts; nothing when it does not."""
    stored = row._mapping
    return ", ".join(
        f"{name} is {stored[name]!r}, not {fact!r}" for name, fact in facts.items() if stored[name] != fact
    )
