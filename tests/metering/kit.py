"""What the tests of the books are made with: a real database, a clock that is told the time, and plain records."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

from sqlalchemy import Connection, Engine, insert

import ledger_client
import metering
from gateway.database import Database
from ledger_client import Entry, Finding, Log, Signer, fsck
from metering import (
    AdapterTerms,
    AttributedPlayer,
    AttributionRecord,
    Books,
    DocumentTerms,
    EstimatorRun,
    PlayerShare,
    Price,
    SplitPolicy,
    StoredBooks,
    Transaction,
    Usage,
    UsageRecord,
    balances,
    open_intents,
    split,
)
from metering.books import in_role, lines_of, transfer
from metering.tables import address_table, payout_table, period_table

from ..databases import engine_of  # noqa: TID252  the tests are no package of their own

SIGNER = Signer.generate("example.com/log")
LOG = Log(SIGNER)
CALLER = "caller:alice"
MODEL = "chat"
PRICE = Price.parse(prompt="0.15", completion="0.60")
POLICY = SplitPolicy(
    name="standard", version=1, fixed_ppm={"platform": 100_000, "base:smol": 200_000}, developer_ppm=700_000
)
DOCUMENT = PlayerShare(id="doc_1", share_ppm=600_000, terms=DocumentTerms(owner="ann"))
ADAPTER = PlayerShare(
    id="concise", share_ppm=400_000, terms=AdapterTerms(developer="dev", datasets=(("ann", 1), ("bob", 2)))
)

_PRETENDED = re.compile("(price_index|policy_index|adapter_index|document_indexes|player) ")

_ADD_PERIOD, _ADD_PAYOUT, _ADD_ADDRESS = insert(period_table), insert(payout_table), insert(address_table)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: datetime = datetime(2025, 1, 31, 23, 0, tzinfo=UTC)) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        self.now += timedelta(**by)


def open_engine(database: Database) -> Engine:
    """The engine of a database that has the tables of the books and the log."""
    return engine_of(database, ledger_client.metadata, metering.metadata)


@contextmanager
def transaction(engine: Engine) -> Iterator[Transaction]:
    """Open the books in a database transaction, sealed and committed on a clean exit."""
    with engine.begin() as connection:
        transaction = Transaction(connection, LOG)
        yield transaction
        transaction.seal()


def new_books(gateway_id: str = "gw-1", clock: Clock | None = None) -> Books:
    return Books(gateway_id, clock or Clock())


def request_id(number: int) -> str:
    """A request id that is a function of the number."""
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    return "req_" + "".join(alphabet[(number >> 5 * place) & 31] for place in range(26))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def usage_record(prompt_tokens: int = 100, completion_tokens: int = 20, **changes: object) -> UsageRecord:
    values: dict[str, object] = {
        "served_model": MODEL,
        "base_model": "smol",
        "adapter": "concise",
        "usage": Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens),
        "finish_reason": "stop",
        "price": PRICE,
        "price_index": 0,
        "prompt_digest": digest("prompt"),
        "answer_digest": digest("answer"),
    }
    return UsageRecord(**(values | changes))


def attribution_record(
    request: str, charge_nano: int, players: Sequence[PlayerShare] = (DOCUMENT, ADAPTER), **changes: object
) -> AttributionRecord:
    values: dict[str, object] = {
        "request_id": request,
        "policy_index": 1,
        "adapter_index": 2,
        "document_indexes": {"doc_1": 3},
        "estimator": EstimatorRun(name="exact", version="1", evaluations=4, tokens_scored=800, residual_nats=0.0),
        "surplus_nats": 12.3456789,
        "players": tuple(
            AttributedPlayer(
                kind=player.terms.kind,
                id=player.id,
                contributor=player.terms.owner if isinstance(player.terms, DocumentTerms) else player.terms.developer,
                score_nats=player.share_ppm / 1e5,
                stderr_nats=0.01,
                share_ppm=player.share_ppm,
            )
            for player in players
        ),
        "coalitions": (((), -20.0), (tuple(range(len(players))), -7.6543211)),
        "split": split(charge_nano, POLICY, players, request),
        "reason": None if any(player.share_ppm for player in players) else "no surplus",
        "scores_digest": digest("scores"),
    }
    return AttributionRecord(**(values | changes))


def logged(connection: Connection) -> list[Entry]:
    """Every entry of the log, read back from its bytes."""
    return [Entry.decode(raw) for _, raw in LOG.entries(connection)]


# What settlement writes, as small as the books can tell. Each returns its log index.


def close_period(books: Books, tx: Transaction, period: str) -> int:
    appended = books.log(tx, "period.closed", period, period, {"period": period})
    if appended.created:
        tx.defer(_ADD_PERIOD, {"period": period, "log_index": appended.log_index, "time": appended.entry.time})
        tx.set_last_closed(period)
    return appended.log_index


def pay_out(books: Books, tx: Transaction, contributor: str, amount_nano: int, period: str) -> int:
    row = {"contributor": contributor, "period": period, "method": "csv", "address": None, "distributor": None}
    postings = transfer(f"contributor:{contributor}", "payouts", amount_nano)
    data = row | {"amount_nano": str(amount_nano)}
    appended = books.log(tx, "payout.recorded", f"{contributor}:{period}", contributor, data, postings)
    if appended.created:
        tx.post(lines_of(tx, appended, postings, in_role("payout", postings)))
        tx.defer(_ADD_PAYOUT, row | {"log_index": appended.log_index, "amount_nano": amount_nano})
    return appended.log_index


def bind_address(books: Books, tx: Transaction, contributor: str, nonce: int = 0) -> int:
    row = {"contributor": contributor, "address": "0x" + "Ab" * 20, "nonce": nonce}
    data = row | {"chain_id": 31337, "contract": "0x" + "Cd" * 20, "signature": "0x" + "00" * 65}
    appended = books.log(tx, "address.bound", f"{contributor}:{nonce}", contributor, data)
    tx.defer(_ADD_ADDRESS, row | {"log_index": appended.log_index})
    return appended.log_index


def audited(connection: Connection, *, settled: bool = False) -> list[Finding]:
    """What the checker finds in log and books, but for registrations that this kit pretends.

    settled: periods were closed by `settle`, not by this kit, which pretends that too.
    """
    law = StoredBooks(connection)
    findings = fsck(
        LOG.entries(connection),
        LOG.checkpoints(connection),
        dict(balances(connection)),
        SIGNER.verifier,
        open_intents={(intent.gateway, intent.gateway_seq) for intent in open_intents(connection)},
        read=partial(LOG.entry, connection),
        laws=[law],
    )

    def pretended(finding: Finding) -> bool:
        if finding.log_index is None:
            return False
        kind = Entry.decode(LOG.entry(connection, finding.log_index)).type
        if kind in {"payout.recorded", "period.closed"}:
            return not settled
        return _PRETENDED.match(finding.message) is not None

    return [finding for finding in findings if not pretended(finding)]
