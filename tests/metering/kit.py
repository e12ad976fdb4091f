"""What the tests of the books are made with: a real database, a clock that is told the time, and plain records."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, Engine

import ledger_client
import metering
from gateway.database import Database
from ledger_client import Entry, Log, Signer
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
    Usage,
    UsageRecord,
    split,
)

from ..databases import engine_of  # noqa: TID252  the tests are no package of their own

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


def new_books(gateway_id: str = "gw-1", clock: Clock | None = None, signer: Signer | None = None) -> tuple[Books, Log]:
    log = Log(signer or Signer.generate("example.com/log"))
    return Books(log, gateway_id, clock or Clock()), log


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


def logged(log: Log, connection: Connection) -> list[Entry]:
    """Every entry of the log, read back from its bytes."""
    return [Entry.decode(raw) for _, raw in log.entries(connection)]
