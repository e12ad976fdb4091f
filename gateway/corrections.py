"""Correcting who owns what an answer was credited to: the shares stay, the split follows from them anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from gateway import answers
from gateway.objects import split_object
from gateway.registry import Registry, RegistryError, Terms
from ledger_client import Entry
from metering import (
    AdapterTerms,
    AttributionRecord,
    Books,
    DocumentTerms,
    IntentError,
    PlayerShare,
    SplitLine,
    Transaction,
    split,
    supersede,
)


class CorrectionError(ValueError):
    """The correction cannot be made; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What was corrected. log_index: of the record in force now. changes_nano: account → nano-USD gained or lost."""

    request_id: str
    supersedes: int
    log_index: int
    changes_nano: Mapping[str, int]


def correct_owners(
    transaction: Transaction, books: Books, registry: Registry, request_id: str, owners: Mapping[str, str], reason: str
) -> Correction:
    """Supersede an answer's record in force by one in which documents have other owners, and move the money.

    owners: document id → contributor. reason: one line, public. What the answer's caller reads of it changes in the
    same transaction. Raises CorrectionError, RegistryError for an owner who is not registered, IntentError when the
    answer has no record yet, MeteringError.
    """
    state = transaction.request(request_id)
    row = answers.find(transaction.connection, request_id)
    if state is None or state.attribution_index is None:
        raise IntentError(f"{request_id} is not attributed yet, so there is nothing to correct")
    for contributor in owners.values():
        registry.contributor(transaction.connection, contributor)
    before = AttributionRecord.parse(Entry.decode(transaction.log.entry(state.attribution_index)).data)
    after = _corrected(transaction, registry, before, owners)
    index = supersede(books, transaction, after, reason)
    if index != state.attribution_index:
        answers.correct(transaction, request_id, _told(orjson.loads(row.attribution), after, index), index)
    return Correction(
        request_id=request_id,
        supersedes=state.attribution_index,
        log_index=index,
        changes_nano=_changes(before.split, after.split),
    )


def _corrected(
    transaction: Transaction, registry: Registry, record: AttributionRecord, owners: Mapping[str, str]
) -> AttributionRecord:
    documents = {player.id for player in record.players if player.kind == "document"}
    if unknown := owners.keys() - documents:
        has = ", ".join(sorted(documents)) or "none"
        raise CorrectionError(f"document {min(unknown)} took no part in {record.request_id}; its documents: {has}")
    terms = registry.terms(transaction.connection, record.policy_index, record.adapter_index)
    players = tuple(
        replace(player, contributor=owners[player.id]) if player.kind == "document" and player.id in owners else player
        for player in record.players
    )
    shares = [
        PlayerShare(
            id=player.id,
            share_ppm=player.share_ppm,
            terms=DocumentTerms(owner=player.contributor) if player.kind == "document" else _adapter(terms),
        )
        for player in players
    ]
    indexes = {
        document: _claim(transaction, registry, index, document, owners.get(document))
        for document, index in record.document_indexes.items()
    }
    lines = split(record.total_nano, terms.policy, shares, record.request_id)
    return replace(record, players=players, split=lines, document_indexes=indexes)


def _adapter(terms: Terms) -> AdapterTerms:
    if terms.adapter is None:
        raise CorrectionError("the record credits an adapter and names none")
    return terms.adapter.terms


def _claim(transaction: Transaction, registry: Registry, index: int, document: str, owner: str | None) -> int:
    """The registration that a document's credit rests on: of the same text by its new owner, made now if need be."""
    if owner is None:
        return index
    claimed = Entry.decode(transaction.log.entry(index)).data
    digest, corpus, licence = (str(claimed[name]) for name in ("digest", "corpus", "licence"))
    try:
        return registry.document_index(transaction.connection, document, digest, owner)
    except RegistryError:  # nobody is credited without a dated claim of ownership, a corrected owner neither
        return registry.register_document(
            transaction, document=document, corpus=corpus, owner=owner, licence=licence, digest=digest
        )


def _told(current: dict[str, Any], record: AttributionRecord, log_index: int) -> dict[str, Any]:
    """The attribution object as the corrected record has it; titles and scores by token are what they were."""
    contributors = {(player.kind, player.id): player.contributor for player in record.players}
    players = [player | {"contributor": contributors[player["kind"], player["id"]]} for player in current["players"]]
    return current | {"players": players, "split": split_object(record.split), "log_index": log_index}


def _changes(before: tuple[SplitLine, ...], after: tuple[SplitLine, ...]) -> dict[str, int]:
    changes: dict[str, int] = {}
    for sign, lines in ((-1, before), (1, after)):
        for line in lines:
            changes[line.account] = changes.get(line.account, 0) + sign * line.amount_nano
    return {account: amount for account, amount in sorted(changes.items()) if amount}
