"""How well scores say what really happened, measured against a game whose every value is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attribution.errors import AttributionError
from attribution.game import Coalitions

# Two predictions that differ by float rounding alone are a tie, not an order.
_RANK_DECIMALS = 9


def total_variation(shares: Sequence[float], reference: Sequence[float]) -> float:
    """Return the fraction of the money that goes elsewhere than in `reference`, from 0 to 1.

    Both: fractions of the pool, ≥ 0, with a sum of at most 1. What they leave over counts as paid to one more account.
    """
    p, q = np.asarray(shares, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if p.shape != q.shape:
        raise AttributionError(f"shares of {p.shape} and {q.shape} players cannot be compared")
    return float(np.abs(p - q).sum() + abs(p.sum() - q.sum())) / 2


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Spearman's rho of two equally long vectors, ties at their mean rank; NaN when either is constant."""
    if a.shape != b.shape or a.ndim != 1:
        raise AttributionError(f"shapes {a.shape} and {b.shape} cannot be ranked against each other")
    ranks_a, ranks_b = _centred_ranks(a), _centred_ranks(b)
    spread = float(np.sqrt((ranks_a @ ranks_a) * (ranks_b @ ranks_b)))
    return float(ranks_a @ ranks_b) / spread if spread else float("nan")


def linear_datamodeling_score(
    scores_nats: NDArray[np.float64], coalitions: Coalitions, totals_nats: NDArray[np.float64]
) -> float:
    """Rank-correlate what the scores predict for each coalition, their sum over it, with what it turned out to be.

    scores_nats: (n_players,). coalitions: (m, n_players). totals_nats: (m,), v of each.
    Returns 0, nothing predicted, when either side is constant.
    """
    rho = rank_correlation(coalitions @ scores_nats, totals_nats)
    return 0.0 if math.isnan(rho) else rho


def additive_fit(coalitions: Coalitions, totals_nats: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scores (n_players,) whose sums come closest to `totals_nats` by least squares, up to a constant.

    Fitted on the coalitions that an estimator is then judged on, they show how far any additive scores could get.
    """
    design = np.column_stack([coalitions, np.ones(len(coalitions))])
    return np.asarray(np.linalg.lstsq(design, totals_nats)[0][:-1], dtype=np.float64)


def _centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, position, count = np.unique(values.round(_RANK_DECIMALS), return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2
    ranks = mean_rank[position]
    return np.asarray(ranks - ranks.mean(), dtype=np.float64)
