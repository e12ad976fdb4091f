"""What a gateway tells the books about a request, and how the log says it.

Scores enter the log as JSON numbers of six decimals, amounts as decimal strings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from ledger_client import JSON
from metering._checks import (
    CONTRIBUTOR,
    DIGEST,
    LIMIT_NANO,
    NAME,
    REASON,
    REQUEST_ID,
    WHOLE_PPM,
    check_known,
    check_text,
    check_whole,
)
from metering.errors import MeteringError
from metering.pricing import Price
from metering.splits import SplitLine
from metering.usage import Usage

KINDS = ("adapter", "document")


@dataclass(frozen=True, kw_only=True)
class UsageRecord:
    """What an admitted request took, and the price that makes the charge.

    price_index: log index of the published price. The digests are salted SHA-256, in hex, of prompt and answer.
    """

    served_model: str
    base_model: str
    adapter: str | None
    usage: Usage
    finish_reason: str
    price: Price
    price_index: int
    prompt_digest: str
    answer_digest: str

    def __post_init__(self) -> None:
        check_known("served model", self.served_model, NAME)
        check_known("base model", self.base_model, NAME)
        if self.adapter is not None:
            check_known("adapter", self.adapter, NAME)
        check_known("finish reason", self.finish_reason, NAME)
        check_whole("price_index", self.price_index)
        check_text("prompt_digest", self.prompt_digest, DIGEST)
        check_text("answer_digest", self.answer_digest, DIGEST)
        check_whole("charge_nano", self.charge_nano)

    @property
    def charge_nano(self) -> int:
        """The charge owed, in nano-USD."""
        return self.price.charge_nano(self.usage)

    def data(self) -> dict[str, JSON]:
        """Return this record's part of a `usage.recorded` entry."""
        return {
            "served_model": self.served_model,
            "base_model": self.base_model,
            "adapter": self.adapter,
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "finish_reason": self.finish_reason,
            "price_index": self.price_index,
            "charge_nano": str(self.charge_nano),
            "prompt_digest": self.prompt_digest,
            "answer_digest": self.answer_digest,
        }


@dataclass(frozen=True, kw_only=True)
class EstimatorRun:
    """Which estimator scored an answer, how much it computed, and Σφ − (v(N) − v(∅)), which it left over."""

    name: str
    version: str
    evaluations: int
    tokens_scored: int
    residual_nats: float

    def __post_init__(self) -> None:
        check_known("estimator", self.name, NAME)
        check_known("estimator version", self.version, NAME)
        check_whole("evaluations", self.evaluations)
        check_whole("tokens_scored", self.tokens_scored)
        _check_nats("residual_nats", self.residual_nats)

    def data(self) -> dict[str, JSON]:
        """Return the entry's `estimator` member."""
        return {
            "name": self.name,
            "version": self.version,
            "evaluations": self.evaluations,
            "tokens_scored": self.tokens_scored,
            "residual_nats": _rounded(self.residual_nats),
        }


@dataclass(frozen=True, kw_only=True)
class AttributedPlayer:
    """One player's signed score, its standard error, and its share of the contributors' pool.

    contributor: the document's owner or the adapter's developer.
    """

    kind: str
    id: str
    contributor: str
    score_nats: float
    stderr_nats: float
    share_ppm: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MeteringError(f"a player's kind is one of {', '.join(KINDS)}, not {self.kind!r}")
        check_text("player id", self.id, NAME)
        check_text("contributor", self.contributor, CONTRIBUTOR)
        _check_nats("score_nats", self.score_nats)
        _check_nats("stderr_nats", self.stderr_nats)
        check_whole("share_ppm", self.share_ppm, maximum=WHOLE_PPM)

    def data(self) -> dict[str, JSON]:
        """Return one element of the entry's `players` member."""
        return {
            "kind": self.kind,
            "id": self.id,
            "contributor": self.contributor,
            "score_nats": _rounded(self.score_nats),
            "stderr_nats": _rounded(self.stderr_nats),
            "share_ppm": self.share_ppm,
        }


@dataclass(frozen=True, kw_only=True)
class AttributionRecord:
    """What an answer owes to whom, and on which registrations in the log that rests.

    policy_index, adapter_index, document_indexes: log indexes. reason: why no contributor is paid, None when one is.
    coalitions: the values that the scores follow from: positions in `players` of those present, and the value in nats.
    split: from `metering.split`; the books check it against the charge. scores_digest: SHA-256, in hex, of the scores
    by token.
    """

    request_id: str
    policy_index: int
    adapter_index: int | None
    document_indexes: Mapping[str, int]
    estimator: EstimatorRun
    surplus_nats: float
    players: tuple[AttributedPlayer, ...]
    coalitions: tuple[tuple[tuple[int, ...], float], ...]
    split: tuple[SplitLine, ...]
    reason: str | None
    scores_digest: str

    def __post_init__(self) -> None:
        check_text("request_id", self.request_id, REQUEST_ID)
        check_whole("policy_index", self.policy_index)
        if self.adapter_index is not None:
            check_whole("adapter_index", self.adapter_index)
        for document, index in self.document_indexes.items():
            check_text("document", document, NAME)
            check_whole(f"the log index of {document}", index)
        _check_nats("surplus_nats", self.surplus_nats)
        for present, value_nats in self.coalitions:
            _check_nats("a coalition's value", value_nats)
            if not set(present) <= set(range(len(self.players))):
                raise MeteringError(f"a coalition is made of positions in the {len(self.players)} players")
        if self.reason is not None:
            check_text("reason", self.reason, REASON)
        check_text("scores_digest", self.scores_digest, DIGEST)
        shares_ppm = sum(player.share_ppm for player in self.players)
        if shares_ppm != (WHOLE_PPM if self.reason is None else 0):
            raise MeteringError(f"shares sum to {WHOLE_PPM} ppm, or to 0 with a reason; these sum to {shares_ppm}")
        check_whole("the split's total", self.total_nano, maximum=LIMIT_NANO)
        object.__setattr__(self, "document_indexes", MappingProxyType(dict(self.document_indexes)))

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """Read a record back from the data of its entry, whatever else the entry holds.

        Raises MeteringError unless `data()` of what is read says the same.
        """
        try:
            record = cls(
                request_id=data["request_id"],
                policy_index=data["policy_index"],
                adapter_index=data["adapter_index"],
                document_indexes=data["document_indexes"],
                estimator=EstimatorRun(**data["estimator"]),
                surplus_nats=data["surplus_nats"],
                players=tuple(AttributedPlayer(**player) for player in data["players"]),
                coalitions=tuple((tuple(present), value_nats) for present, value_nats in data["coalitions"]),
                split=tuple(SplitLine(**{**line, "amount_nano": int(line["amount_nano"])}) for line in data["split"]),
                reason=data["reason"],
                scores_digest=data["scores_digest"],
            )
            same = all(data[name] == value for name, value in record.data().items())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, MeteringError):
                raise
            raise MeteringError(f"this is no attribution record: {error!r}") from None
        if not same:
            raise MeteringError("this attribution record is not written as records are")
        return record

    @property
    def total_nano(self) -> int:
        """The sum of the split, in nano-USD."""
        return sum(line.amount_nano for line in self.split)

    def data(self) -> dict[str, JSON]:
        """Return this record's part of an `answer.attributed` entry."""
        return {
            "request_id": self.request_id,
            "policy_index": self.policy_index,
            "adapter_index": self.adapter_index,
            "document_indexes": dict(self.document_indexes),
            "estimator": self.estimator.data(),
            "surplus_nats": _rounded(self.surplus_nats),
            "players": [player.data() for player in self.players],
            "coalitions": [[list(present), _rounded(value_nats)] for present, value_nats in self.coalitions],
            "split": [
                {
                    "account": line.account,
                    "role": line.role,
                    "kind": line.kind,
                    "item": line.item,
                    "amount_nano": str(line.amount_nano),
                }
                for line in self.split
            ],
            "reason": self.reason,
            "scores_digest": self.scores_digest,
        }


def _check_nats(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise MeteringError(f"{name} must be a finite number, not {value!r}")


def _rounded(nats: float) -> float:
    return round(nats, 6) + 0.0  # + 0.0 turns −0.0 into 0.0
