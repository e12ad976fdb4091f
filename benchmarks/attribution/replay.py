"""Replays estimators over recorded games and holds them to the exact value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attribution import (
    EXACT,
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
