"""Replays estimators over recorded games and holds them to the exact value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attribution import (
    EXACT,
    TWO_END,
    WHOLE_PPM,
    Estimator,
    additive_fit,
    all_coalitions,
    clipped,
    explain,
    linear_datamodeling_score,
    rank_correlation,
    total_variation,
)
from benchmarks.attribution.recording import RecordedAnswer, Recording

_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One estimator on one answer, against `exact` on the same answer.

    tv: fraction of the money misplaced. lds: over all coalitions; lds_ceiling is that of the best additive scores.
    rank: Spearman's rho of the scores; NaN where there is nothing to rank, as with a single player.
    """

    evaluations: int
    tv: float
    lds: float
    lds_ceiling: float
    rank: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One estimator over all answers; means, with the 95 % bootstrap interval of mean tv over answers."""

    evaluations: float
    tv: float
    tv_low: float
    tv_high: float
    tv_max: float
    lds: float
    lds_ratio: float
    rank: float


def replay(recording: Recording, estimator: Estimator) -> list[Comparison]:
    """Compare `estimator` with `exact` on every recorded answer."""
    return [_compare(answer, estimator, recording.noise_nats) for answer in recording.answers]


def summarise(comparisons: Sequence[Comparison]) -> Summary:
    """Average over answers."""
    tv = np.array([comparison.tv for comparison in comparisons])
    lds = float(np.mean([comparison.lds for comparison in comparisons]))
    random = np.random.default_rng(0)
    resampled = random.choice(tv, (_RESAMPLES, len(tv))).mean(axis=1)
    return Summary(
        evaluations=float(np.mean([comparison.evaluations for comparison in comparisons])),
        tv=float(tv.mean()),
        tv_low=float(np.quantile(resampled, 0.025)),
        tv_high=float(np.quantile(resampled, 0.975)),
        tv_max=float(tv.max()),
        lds=lds,
        lds_ratio=lds / float(np.mean([comparison.lds_ceiling for comparison in comparisons])),
        rank=float(np.nanmean([comparison.rank for comparison in comparisons])),
    )


def lead(answer: RecordedAnswer, noise_nats: float) -> bool:
    """Whether a document that holds the answer has the largest share of all documents, by the default estimator."""
    shares = _document_shares(answer, noise_nats)
    return max(shares, key=lambda player: shares[player]) in answer.holders


def idle_changes_nats(answer: RecordedAnswer, noise_nats: float) -> list[float]:
    """How far log p of the answer moves, in nats, when a document with a share below 1 % is left out; one for each."""
    shares = _document_shares(answer, noise_nats)
    totals = answer.game.values.sum(axis=1)
    full = len(totals) - 1
    return [
        float(abs(totals[full] - totals[full & ~(1 << position)]))
        for position, player in enumerate(answer.game.players)
        if player.kind == "document" and shares[player.id] < WHOLE_PPM // 100
    ]


def _document_shares(answer: RecordedAnswer, noise_nats: float) -> dict[str, int]:
    game = answer.game
    found = explain(
        game.score, game.players, estimator=TWO_END, noise_nats=noise_nats, tie_key=answer.question.encode()
    )
    pairs = zip(game.players, found.shares_ppm, strict=True)
    return {player.id: share for player, share in pairs if player.kind == "document"}


def _compare(answer: RecordedAnswer, estimator: Estimator, noise_nats: float) -> Comparison:
    game = answer.game
    tie_key = answer.question.encode()
    estimate = explain(game.score, game.players, estimator=estimator, noise_nats=noise_nats, tie_key=tie_key)
    exact = explain(game.score, game.players, estimator=EXACT, noise_nats=noise_nats, tie_key=tie_key)
    coalitions = all_coalitions(len(game.players))
    totals = clipped(game.values, exact.floor_nats).sum(axis=1)
    ceiling = additive_fit(coalitions, totals)
    return Comparison(
        evaluations=estimate.evaluations,
        tv=total_variation(_fractions(estimate.shares_ppm), _fractions(exact.shares_ppm)),
        lds=linear_datamodeling_score(estimate.scores_nats, coalitions, totals),
        lds_ceiling=linear_datamodeling_score(ceiling, coalitions, totals),
        rank=rank_correlation(estimate.scores_nats, exact.scores_nats),
    )


def _fractions(shares_ppm: Sequence[int]) -> list[float]:
    return [share / WHOLE_PPM for share in shares_ppm]
