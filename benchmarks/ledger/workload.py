"""Requests to write to the books: admitted, charged and attributed, each to four players among many."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from metering import (
    AdapterTerms,
    AttributedPlayer,
    AttributionRecord,
    Books,
    DocumentTerms,
    EstimatorRun,
    Expected,
    Intent,
    PlayerShare,
    Price,
    SplitPolicy,
    Transaction,
    Usage,
    UsageRecord,
    split,
)

CONTRIBUTORS, DOCUMENTS = 200, 2_000
RESERVED_NANO = 1_000_000

_PRICE = Price.parse(prompt="0.15", completion="0.60")
_POLICY = SplitPolicy(name="standard", version=1, fixed_ppm={"platform": 100_000, "base:smol": 200_000})
_SHARES_PPM = (400_000, 300_000, 200_000, 100_000)
_COALITIONS = ((), (0,), (1,), (2,), (3,), (1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2), (0, 1, 2, 3))
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request of a caller, and what is to be written of it in three transactions, one after the other.

    expected: the rows that each of the three looks at, as a gateway names them.
    """

    account: str
    request_id: str
    usage: UsageRecord
    attribution: AttributionRecord
    expected: tuple[Expected, Expected, Expected]

    def admit(self, books: Books, transaction: Transaction) -> Intent:
        """Write the first."""
        return books.admit(transaction, self.account, RESERVED_NANO, self.request_id)

    def charge(self, books: Books, intent: Intent, transaction: Transaction) -> int:
        """Write the second, with what the first gave."""
        return books.record_usage(transaction, intent, self.usage)

    def attribute(self, books: Books, transaction: Transaction) -> int:
        """Write the third."""
        return books.record_attribution(transaction, self.attribution)


def account(caller: int) -> str:
    """The account of a caller."""
    return f"caller:caller-{caller}"


def request(number: int, caller: int) -> Request:
    """Make the request of a number, which is all that it depends on.

    Its answer used an adapter and three documents: six lines of split, seven postings, ten coalitions.
    """
    dice = random.Random(number)  # noqa: S311 - a benchmark that is the same each time
    request_id = "req_" + "".join(_ALPHABET[(number >> 5 * place) & 31] for place in range(26))
    prompt_tokens, completion_tokens = dice.randrange(200, 900), dice.randrange(20, 300)
    usage = UsageRecord(
        served_model="harbour",
        base_model="smol",
        adapter="concise",
        usage=Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens),
        finish_reason="stop",
        price=_PRICE,
        price_index=0,
        prompt_digest=_digest("prompt", number),
        answer_digest=_digest("answer", number),
    )
    documents = dice.sample(range(DOCUMENTS), 3)
    terms = [AdapterTerms(developer="dev"), *(DocumentTerms(owner=f"owner-{d % CONTRIBUTORS}") for d in documents)]
    names = ["concise", *(f"doc-{document}" for document in documents)]
    shares = [
        PlayerShare(id=name, share_ppm=share_ppm, terms=of_player)
        for name, share_ppm, of_player in zip(names, _SHARES_PPM, terms, strict=True)
    ]
    attribution = AttributionRecord(
        request_id=request_id,
        policy_index=1,
        adapter_index=2,
        document_indexes={f"doc-{document}": 3 + document for document in documents},
        estimator=EstimatorRun(name="two-end", version="1", evaluations=10, tokens_scored=2210, residual_nats=0.4),
        surplus_nats=dice.uniform(5, 50),
        players=tuple(_player(share, dice) for share in shares),
        coalitions=tuple((present, dice.uniform(-50, -5)) for present in _COALITIONS),
        split=split(usage.charge_nano, _POLICY, shares, request_id),
        reason=None,
        scores_digest=_digest("scores", number),
    )
    of_request = (request_id,)
    paid = ("suspense", *(line.account for line in attribution.split))
    return Request(
        account=account(caller),
        request_id=request_id,
        usage=usage,
        attribution=attribution,
        expected=(
            Expected(accounts=(account(caller),), requests=of_request, budgets=(account(caller),)),
            Expected(accounts=(account(caller), "suspense"), requests=of_request),
            Expected(accounts=paid, requests=of_request),
        ),
    )


def _player(share: PlayerShare, dice: random.Random) -> AttributedPlayer:
    terms = share.terms
    return AttributedPlayer(
        kind=terms.kind,
        id=share.id,
        contributor=terms.owner if isinstance(terms, DocumentTerms) else terms.developer,
        score_nats=dice.uniform(-1, 20),
        stderr_nats=0.0,
        share_ppm=share.share_ppm,
    )


def _digest(what: str, number: int) -> str:
    return hashlib.sha256(f"{what} {number}".encode()).hexdigest()
