"""The checker of this package's tables: every row is compared with the log, which alone is believed.

What is wrong with the log itself is for `ledger_client.fsck` to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeAlias, cast

from sqlalchemy import Column, Connection, Row, select

from ledger_client import JSON, Amounts, Entry, EntryError, Finding, Log
from metering.store import Balance, open_intents
from metering.tables import account_table, intent_table, posting_table

_PAGE_ROWS = 1000

_Facts: TypeAlias = dict[str, object]
"""Column → the value that an entry gives it."""

_Fault: TypeAlias = tuple[str, str]
"""(invariant, what is wrong)"""


def fsck_books(connection: Connection, log: Log) -> list[Finding]:
    """Check the stored postings, intents and account totals against the log. Returns what is broken, in log order.

    I3: the posting rows of a log index are the entry's postings, in order, with its time and with the role, player,
    model and request that follow from it; no row is without an entry; an account's credits and debits are the sums of
    its rows. I4: each charge or void ends the one intent that it names, and each attribution is noted at its own, with
    the charge and model logged; nothing else ends an intent; what is pending on an account is the sum of what its open
    intents reserve.

    connection: in a transaction that sees one snapshot. Reads every table once, in pages; memory grows by the accounts
    and by the charges that wait for their attribution.
    """
    findings: list[Finding] = []
    totals: defaultdict[str, Balance] = defaultdict(Balance)
    served: dict[int, JSON] = {}  # log index of a charge that waits for its attribution → served model
    for log_index, stored in _side_by_side(connection, log):
        for invariant, message in _faults(log_index, stored, served):
            findings.append(Finding(invariant=invariant, log_index=log_index, message=message))
        for row in stored.postings:
            moved = Balance(credits_nano=max(row.amount_nano, 0), debits_nano=max(-row.amount_nano, 0))
            totals[row.account] = totals[row.account].plus(moved)
    for intent in open_intents(connection):
        totals[intent.account] = totals[intent.account].plus(Balance(pending_nano=intent.maximum_nano))
    for invariant, message in _total_faults(connection, totals):
        findings.append(Finding(invariant=invariant, log_index=None, message=message))
    return findings


@dataclass(kw_only=True)
class _Stored:
    """What is stored under one log index: at most one entry, and the rows that refer to it."""

    logged: list[bytes] = field(default_factory=list)
    postings: list[Row[Any]] = field(default_factory=list)
    ended: list[Row[Any]] = field(default_factory=list)
    attributed: list[Row[Any]] = field(default_factory=list)


def _side_by_side(connection: Connection, log: Log) -> Iterator[tuple[int, _Stored]]:
    """Walk the log and the tables together, by log index."""
    intents = intent_table.c
    streams: list[Iterable[tuple[int, str, Any]]] = [
        ((log_index, "logged", raw) for log_index, raw in log.entries(connection)),
        _rows(connection, "postings", posting_table.c.log_index, posting_table.c.position),
        _rows(connection, "ended", intents.ended_index, intents.gateway, intents.gateway_seq),
        _rows(connection, "attributed", intents.attribution_index, intents.gateway, intents.gateway_seq),
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


def _faults(log_index: int, stored: _Stored, served: dict[int, JSON]) -> Iterator[_Fault]:
    """Yield what the rows of one log index have that its entry does not say, and the reverse."""
    if not stored.logged:
        for row in stored.postings:
            yield "I3", f"posting {row.position}, of {row.amount_nano} nano on {row.account}, has no entry"
        for row in (*stored.ended, *stored.attributed):
            yield "I4", f"the intent of request {row.request_id} refers to an entry that is not in the log"
        return
    try:
        entry = Entry.decode(stored.logged[0])
        amounts = Amounts.of(entry)
    except EntryError:
        return  # the entry itself is at fault, and no row can be compared with it
    request: _Facts = {"request_id": entry.data.get("request_id")}
    if entry.type == "usage.recorded":
        served[log_index] = entry.data.get("served_model")
        request |= {"charge_nano": amounts.charge_nano, "served_model": served[log_index]}
    elif entry.type == "answer.attributed":
        usage_index = entry.data.get("usage_index")
        served_model = served.pop(usage_index, None) if isinstance(usage_index, int) else None
        request |= {"charge_nano": amounts.charge_nano, "served_model": served_model}
    elif entry.type == "request.voided":
        request |= {"charge_nano": None, "served_model": None}

    yield from _posting_faults(stored.postings, _expected_postings(entry, amounts, request))
    numbered = request | {name: entry.data.get(name) for name in ("gateway", "gateway_seq")}
    if amounts.postings:
        numbered["account"] = amounts.postings[0].account
    ends = entry.type in {"usage.recorded", "request.voided"}
    yield from _intent_faults(stored.ended, numbered if ends else None, "ended by")
    yield from _intent_faults(
        stored.attributed, request if entry.type == "answer.attributed" else None, "attributed by"
    )


def _expected_postings(entry: Entry, amounts: Amounts, request: _Facts) -> list[_Facts]:
    """Return the rows that an entry's postings are stored as."""
    common: _Facts = {
        "time": entry.time,
        "role": {"credit.granted": "credit", "usage.recorded": "charge"}.get(entry.type, "split"),
        "kind": None,
        "item": None,
        "served_model": request.get("served_model"),
        "request_id": request["request_id"],
    }
    expected = [common | {"account": line.account, "amount_nano": line.amount_nano} for line in amounts.postings]
    if amounts.split is not None:  # the first posting empties suspense, and each of the others is a line of the split
        split = cast("Sequence[Mapping[str, JSON]]", entry.data["split"])  # Amounts has read it as such
        for facts, part in zip(expected[1:], split, strict=False):
            facts |= {name: part.get(name) for name in ("role", "kind", "item")}
    return expected


def _posting_faults(rows: Sequence[Row[Any]], expected: Sequence[_Facts]) -> Iterator[_Fault]:
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


def _intent_faults(rows: Sequence[Row[Any]], expected: _Facts | None, referred: str) -> Iterator[_Fault]:
    """Yield what is wrong with the intents that refer to an entry; expected is None where none should."""
    for row in rows:
        if expected is None:
            yield "I4", f"the intent of request {row.request_id} cannot have been {referred} this entry"
        elif wrong := _differences(row, expected):
            yield "I4", f"the intent of request {row.request_id} is not the entry's: {wrong}"
    if expected is not None and all(row.request_id != expected["request_id"] for row in rows):
        yield "I4", f"the intent of request {expected['request_id']} is not stored as {referred} this entry"


def _differences(row: Row[Any], facts: _Facts) -> str:
    """Say where a row differs from the facts; nothing when it does not."""
    stored = row._mapping
    return ", ".join(
        f"{name} is {stored[name]!r}, not {fact!r}" for name, fact in facts.items() if stored[name] != fact
    )


def _total_faults(connection: Connection, totals: Mapping[str, Balance]) -> Iterator[_Fault]:
    """Compare the totals of all accounts with what their postings and open intents sum to."""
    stored = {
        row.account: Balance(credits_nano=row.credits_nano, debits_nano=row.debits_nano, pending_nano=row.pending_nano)
        for row in connection.execute(select(account_table))
    }
    for account in sorted(stored.keys() | totals.keys()):
        held, due = stored.get(account, Balance()), totals.get(account, Balance())
        for name in ("credits_nano", "debits_nano"):
            if getattr(held, name) != getattr(due, name):
                yield (
                    "I3",
                    f"{name} of {account} is {getattr(held, name)}, but its postings sum to {getattr(due, name)}",
                )
        if held.pending_nano != due.pending_nano:
            yield (
                "I4",
                f"{held.pending_nano} nano are pending on {account}, but its open intents reserve {due.pending_nano}",
            )
