"""Corrections: a record in the log is never edited; a new one supersedes it, and the difference is posted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, cast

from ledger_client import JSON, Entry
from metering._checks import REASON, check_text
from metering.books import Books, charged, lines_of
from metering.errors import IntentError, MeteringError
from metering.postings import Posting, balanced
from metering.records import AttributionRecord
from metering.splits import SplitLine
from metering.transaction import Transaction

_Place: TypeAlias = tuple[str, str | None, str | None]
"""Account, and the kind and item of the player that it earned through."""


def supersede(books: Books, transaction: Transaction, record: AttributionRecord, reason: str) -> int:
    """Log a record that replaces the one in force for its request, post the difference, and return the log index.

    reason: one line, public. Repeating the record that is in force logs nothing. Raises IntentError when the request
    has no record yet, MeteringError when the new split does not sum to the charge.
    """
    check_text("reason", reason, REASON)
    request_id = record.request_id
    state = charged(transaction, request_id)
    if state.attribution_index is None:
        raise IntentError(f"request {request_id} is not attributed yet, so there is nothing to correct")
    if record.total_nano != state.charge_nano:
        raise MeteringError(f"the split sums to {record.total_nano}, the charge is {state.charge_nano} nano-USD")
    replaced = Entry.decode(transaction.log.entry(state.attribution_index)).data
    data = {
        **record.data(),
        "usage_index": state.ended_index,
        "charge_nano": str(state.charge_nano),
        "reason": record.reason,
        "correction": reason,
    }
    if all(replaced.get(name) == value for name, value in data.items()):
        return state.attribution_index
    changes = _difference(record.split, cast("Sequence[Mapping[str, str]]", replaced["split"]))
    postings = balanced(Posting(account=place[0], amount_nano=amount) for place, amount in changes.items())
    corrections: list[JSON] = [
        {"account": account, "kind": kind, "item": item, "amount_nano": str(amount)}
        for (account, kind, item), amount in changes.items()
    ]
    data |= {
        "supersedes": state.attribution_index,
        "replaced_split": replaced["split"],
        "corrections": corrections,
    }
    key = f"{request_id}:{state.attribution_index}"
    appended = books.log(transaction, "answer.superseded", key, request_id, data, postings, new=True)
    transaction.set_request(replace(state, attribution_index=appended.log_index))
    purposes = [("correction", kind, item) for _, kind, item in changes]
    transaction.post(lines_of(transaction, appended, postings, purposes, state.served_model, request_id))
    return appended.log_index


def _difference(new: Iterable[SplitLine], old: Iterable[Mapping[str, str]]) -> dict[_Place, int]:
    """Return what each account gains or loses by player, in nano-USD, without what stays as it is."""
    changes: Counter[_Place] = Counter()
    for line in new:
        changes[line.account, line.kind, line.item] += line.amount_nano
    for part in old:
        changes[part["account"], part.get("kind"), part.get("item")] -= int(part["amount_nano"])
    return {place: amount for place, amount in changes.items() if amount}
