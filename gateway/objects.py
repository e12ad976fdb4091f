"""What an attribution looks like to each of its readers: the client's object, the split's players, the log's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attribution import SCORE_DECIMALS, Explanation, clipped
from gateway.answers import GroundedPassage, SealedInputs
from gateway.registry import Terms
from gateway.routing.names import Resolved
from gateway.scoring import Scored, table_digest
from metering import (
    AdapterTerms,
    AttributedPlayer,
    AttributionRecord,
    DocumentTerms,
    EstimatorRun,
    PlayerShare,
    SplitLine,
    UsageRecord,
)


def pending_object(request_id: str, usage: UsageRecord, resolved: Resolved | None = None) -> dict[str, Any]:
    """The attribution object of an answer that is metered and not yet attributed.

    It says how the served model was found where the client named something else.
    """
    pending = {
        "id": request_id,
        "status": "pending",
        "url": f"/v1/attributions/{request_id}",
        "served_model": usage.served_model,
        "base_model": usage.base_model,
        "adapter": usage.adapter,
        "usage": {
            "prompt_tokens": usage.usage.prompt_tokens,
            "completion_tokens": usage.usage.completion_tokens,
        },
        "charge_nano": str(usage.charge_nano),
    }
    routing = resolved.data() if resolved else None
    return pending if routing is None else pending | {"routing": routing}


def failed_object(current: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """The attribution object of an answer whose attribution was given up."""
    return {**current, "status": "failed", "reason": reason}


def player_shares(inputs: SealedInputs, terms: Terms, scored: Scored | None) -> list[PlayerShare]:
    """Who is credited how much of the pool, and by which terms inside each player."""
    if scored is None:
        return []
    documents = _documents(inputs)
    shares = []
    for player, ppm in zip(scored.explanation.plan.players, scored.explanation.shares_ppm, strict=True):
        inside: AdapterTerms | DocumentTerms
        if player.kind == "document":
            inside = DocumentTerms(owner=documents[player.id].owner)
        else:
            assert terms.adapter is not None  # noqa: S101 - an adapter plays only where the terms have one
            inside = terms.adapter.terms
        shares.append(PlayerShare(id=player.id, share_ppm=ppm, terms=inside))
    return shares


def attribution_record(
    request_id: str,
    inputs: SealedInputs,
    terms: Terms,
    scored: Scored | None,
    lines: Sequence[SplitLine],
    document_indexes: Mapping[str, int],
) -> AttributionRecord:
    """The log's record. Where there was nothing to score, its reason says so and the residual account has the pool."""
    players = [] if scored is None else _players(inputs, terms, scored)
    explanation = None if scored is None else scored.explanation
    return AttributionRecord(
        request_id=request_id,
        policy_index=terms.policy_index,
        adapter_index=terms.adapter_index,
        document_indexes=document_indexes,
        estimator=_run(scored),
        surplus_nats=explanation.surplus_nats if explanation else 0.0,
        players=tuple(
            AttributedPlayer(**{key: player[key] for key in AttributedPlayer.__dataclass_fields__})
            for player in players
        ),
        coalitions=() if explanation is None else _coalitions(explanation),
        split=tuple(lines),
        reason=_reason(scored),
        scores_digest=table_digest([player["token_scores_nats"] for player in players]),
    )


def attributed_object(
    current: Mapping[str, Any],
    inputs: SealedInputs,
    terms: Terms,
    scored: Scored | None,
    lines: Sequence[SplitLine],
    log_index: int,
) -> dict[str, Any]:
    """The attribution object of an answer whose record is in the log."""
    return {
        **current,
        "status": "not_applicable" if scored is None else "attributed",
        "surplus_nats": round(scored.explanation.surplus_nats, SCORE_DECIMALS) if scored else 0.0,
        "players": [] if scored is None else _players(inputs, terms, scored),
        "split": split_object(lines),
        "reason": _reason(scored),
        "estimator": _run(scored).data(),
        "log_index": log_index,
    }


def split_object(lines: Sequence[SplitLine]) -> list[dict[str, Any]]:
    """The split as an attribution object shows it."""
    return [
        {
            "account": line.account,
            "role": line.role,
            "kind": line.kind,
            "id": line.item,
            "amount_nano": str(line.amount_nano),
        }
        for line in lines
    ]


def _players(inputs: SealedInputs, terms: Terms, scored: Scored) -> list[dict[str, Any]]:
    documents = _documents(inputs)
    explanation = scored.explanation
    players = []
    for position, player in enumerate(explanation.plan.players):
        passage = documents.get(player.id)
        players.append(
            {
                "kind": player.kind,
                "id": player.id,
                "title": passage.title if passage else player.id,
                "contributor": passage.owner if passage else terms.adapter and terms.adapter.developer,
                "score_nats": round(float(explanation.scores_nats[position]), SCORE_DECIMALS),
                "stderr_nats": round(float(explanation.stderr_nats[position]), SCORE_DECIMALS),
                "share_ppm": explanation.shares_ppm[position],
                "token_scores_nats": [
                    round(x, SCORE_DECIMALS) for x in explanation.token_scores_nats[position].tolist()
                ],
            }
        )
    return players


def _coalitions(explanation: Explanation) -> tuple[tuple[tuple[int, ...], float], ...]:
    """Who was present, and v of it: with the estimator's rule, all that the scores follow from."""
    values_nats = clipped(explanation.values_nats, explanation.floor_nats).sum(axis=1)
    rows = explanation.plan.coalitions
    return tuple(
        (tuple(np.flatnonzero(row).tolist()), float(value)) for row, value in zip(rows, values_nats, strict=True)
    )


def _documents(inputs: SealedInputs) -> dict[str, GroundedPassage]:
    return {passage.document: passage for passage in reversed(inputs.passages)}


_NOTHING_RAN = EstimatorRun(name="none", version="1", evaluations=0, tokens_scored=0, residual_nats=0.0)


def _run(scored: Scored | None) -> EstimatorRun:
    if scored is None:
        return _NOTHING_RAN
    explanation = scored.explanation
    return EstimatorRun(
        name=explanation.plan.estimator.name,
        version=explanation.plan.estimator.version,
        evaluations=explanation.evaluations,
        tokens_scored=scored.tokens_scored,
        residual_nats=explanation.residual_nats,
    )


def _reason(scored: Scored | None) -> str | None:
    """Why no contributor is paid, or None when one is."""
    if scored is None:
        return "nothing that could be left out took part in this answer"
    return scored.explanation.unpaid and str(scored.explanation.unpaid)
