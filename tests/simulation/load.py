"""Callers that keep a ledger busy, and the oracle of what it told them: all that was acknowledged is stored.

Each caller takes one request after the other through its life, a step at a time, each step a unit of work for the
committer: admitted, charged or voided, attributed, rated. Which steps it takes follows from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from ledger_client import Entry, Finding, Log, Signer, fsck, fsck_derived
from metering import (
    Books,
    Expected,
    Intent,
    Transaction,
    balances,
    fsck_books,
    open_intents,
    record_feedback,
    request_state,
)
from tests.metering.kit import POLICY, PRICE, attribution_record, request_id, usage_record

# One key for every run, so that a run's bytes follow from its seed.
SIGNER = Signer(name="example.com/log", key=Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
LOG = Log(SIGNER)
ACCOUNT = "caller:load"
# What answers rely on, in the order that it is logged in; the records of the kit name these log indexes.
TERMS = (
    ("price.published", "chat", {}),
    ("policy.published", "standard", {}),
    ("adapter.registered", "concise", {"adapter": "concise", "developer": "dev"}),
    ("document.registered", "doc_1", {"document": "doc_1", "owner": "ann"}),
    ("document.registered", "doc_2", {"document": "doc_2", "owner": "bob"}),
    ("price.published", "plain", {}),
)
PRICE_INDEXES = {"chat": 0, "plain": 5}
DOCUMENT_INDEXES = {"doc_1": 3, "doc_2": 4}
MAXIMUM_NANO = 100_000


@dataclass(frozen=True, kw_only=True)
class Acknowledged:
    """What a caller was told is durable: an entry of this type and subject at log_index, or an admission (None)."""

    type: str
    subject: str
    log_index: int | None

    def __str__(self) -> str:
        return f"{self.type} {self.subject} {'-' if self.log_index is None else self.log_index}"

    @classmethod
    def parse(cls, line: str) -> Acknowledged:
        entry_type, subject, log_index = line.split()
        return cls(type=entry_type, subject=subject, log_index=None if log_index == "-" else int(log_index))


@dataclass(frozen=True, kw_only=True)
class Step:
    """A unit of work, and what its acknowledgement will say."""

    type: str
    subject: str
    work: Callable[[Transaction], Any]
    expected: Expected

    def acknowledged(self, result: object) -> Acknowledged:
        return Acknowledged(type=self.type, subject=self.subject, log_index=result if isinstance(result, int) else None)


class Caller:
    """One of those who call. `next` gives its next step; `done` takes the result of the last."""

    def __init__(self, books: Books, lots: Random) -> None:
        self._books = books
        self._lots = lots
        self._life = self._lives()
        self._step = next(self._life)

    def next(self) -> Step:
        return self._step

    def done(self, result: object) -> Acknowledged:
        said = self._step.acknowledged(result)
        self._step = self._life.send(result)
        return said

    def _lives(self) -> Iterator[Step]:
        lots, books = self._lots, self._books
        while True:
            request = request_id(lots.getrandbits(130))
            expected = Expected(accounts=(ACCOUNT,), requests=(request,))
            intent: Intent = yield Step(
                type="admission",
                subject=request,
                work=lambda tx, request=request: books.admit(tx, ACCOUNT, MAXIMUM_NANO, request),
                expected=expected,
            )
            if lots.random() < 0.2:
                yield Step(
                    type="request.voided",
                    subject=request,
                    work=lambda tx, intent=intent: books.void(tx, intent, "the client left"),
                    expected=expected,
                )
                continue
            usage = usage_record(prompt_tokens=lots.randint(0, 300), completion_tokens=lots.randint(0, 50))
            yield Step(
                type="usage.recorded",
                subject=request,
                work=lambda tx, intent=intent, usage=usage: books.record_usage(tx, intent, usage),
                expected=expected,
            )
            if lots.random() < 0.7:
                record = attribution_record(request, usage.charge_nano)
                yield Step(
                    type="answer.attributed",
                    subject=request,
                    work=lambda tx, record=record: books.record_attribution(tx, record),
                    expected=expected,
                )
            if lots.random() < 0.2:
                rating = lots.choice((1, -1))
                yield Step(
                    type="feedback.recorded",
                    subject=request,
                    work=lambda tx, request=request, rating=rating: record_feedback(books, tx, request, rating),
                    expected=expected,
                )


def register(books: Books, transaction: Transaction) -> list[int]:
    """Log the terms, the first entries of the log, or find them there."""
    indexes = []
    for entry_type, subject, data in TERMS:
        if entry_type == "price.published":
            indexes.append(books.publish_price(transaction, subject, PRICE))
        elif entry_type == "policy.published":
            indexes.append(books.publish_policy(transaction, POLICY))
        else:
            indexes.append(books.log(transaction, entry_type, subject, subject, data).log_index)
    return indexes


def fund(books: Books, transaction: Transaction) -> Acknowledged:
    """Log the terms, and give the callers more than they can spend."""
    register(books, transaction)
    log_index = books.grant_credit(transaction, ACCOUNT, 10**15, "to spend", "load")
    return Acknowledged(type="credit.granted", subject=ACCOUNT, log_index=log_index)


def recover(books: Books, transaction: Transaction, gateway_id: str) -> None:
    """Do what a gateway does when it starts: end what an earlier process of its id left open."""
    for intent in list(open_intents(transaction.connection, gateway_id)):
        books.void(transaction, intent, "the gateway stopped")


def lost(connection: Connection, acknowledged: Iterable[Acknowledged]) -> list[Acknowledged]:
    """Return what was acknowledged and is not stored as it was."""
    stored = {log_index: Entry.decode(raw) for log_index, raw in LOG.entries(connection)}

    def is_stored(said: Acknowledged) -> bool:
        if said.log_index is None:
            return request_state(connection, said.subject) is not None
        entry = stored.get(said.log_index)
        return entry is not None and (entry.type, entry.subject) == (said.type, said.subject)

    return [said for said in acknowledged if not is_stored(said)]


def findings(connection: Connection) -> list[Finding]:
    """Return everything that any of the checkers has to say about a ledger."""
    still_open = {(intent.gateway, intent.gateway_seq) for intent in open_intents(connection)}
    found = fsck(
        LOG.entries(connection),
        LOG.checkpoints(connection),
        dict(balances(connection)),
        SIGNER.verifier,
        open_intents=still_open,
        read=partial(LOG.entry, connection),
    )
    return [*found, *fsck_derived(connection), *fsck_books(connection, LOG)]
