"""From the values of coalitions to scores, their uncertainty, and shares.

A caller whose scoring takes place elsewhere lays out a plan, has its coalitions scored, and concludes. `explain` is
those two steps around a scorer that answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from attribution.errors import AttributionError
from attribution.estimators import TWO_END, Estimator, Plan, plan
from attribution.game import DEFAULT_FLOOR_NATS, Player, Score, Values, checked_values, clipped
from attribution.shares import shares_ppm

SIGNIFICANT_STANDARD_ERRORS = 3.0
# Shares follow from scores as a record prints them, so that they can be worked out again from the record.
SCORE_DECIMALS = 6


class Unpaid(StrEnum):
    """Why no player is paid for an answer."""

    NO_SURPLUS = "the players do not make the answer more likely"
    WITHIN_NOISE = "the surplus is below three standard errors of the scoring noise"
    NO_POSITIVE_SCORE = "no player has a score above zero"


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What each player contributed to one answer, and everything needed to work it out again.

    Arrays follow the order of plan.players (n), plan.coalitions (m) and the answer's tokens (T). Scores and surplus are
    those of the clipped values, except where a name says raw.

    values_nats: (m, T) as the scorer returned them.      token_scores_nats: (n, T), whose sums are scores_nats: (n,).
    stderr_nats: (n,) standard errors of scores_nats that follow from noise_nats, that of one evaluation of an answer.
    surplus_nats: v(all) − v(nobody).                     residual_nats: what the marginals sum to beyond it.
    shares_ppm: of scores_nats rounded to SCORE_DECIMALS; sums to 1,000,000, or is all 0 and unpaid says why.
    """

    plan: Plan
    floor_nats: float
    noise_nats: float
    values_nats: Values
    token_scores_nats: NDArray[np.float64]
    scores_nats: NDArray[np.float64]
    raw_scores_nats: NDArray[np.float64]
    stderr_nats: NDArray[np.float64]
    surplus_nats: float
    surplus_stderr_nats: float
    residual_nats: float
    shares_ppm: tuple[int, ...]
    unpaid: Unpaid | None

    @property
    def evaluations(self) -> int:
        """How many coalitions were scored."""
        return len(self.plan.coalitions)


def explain(
    score: Score,
    players: Sequence[Player],
    *,
    noise_nats: float,
    tie_key: bytes,
    estimator: Estimator = TWO_END,
    floor_nats: float = DEFAULT_FLOOR_NATS,
) -> Explanation:
    """Plan, score, conclude. Arguments and errors are those of `plan` and `conclude`."""
    laid_out = plan(players, estimator)
    values_nats = score(laid_out.coalitions)
    return conclude(laid_out, values_nats, noise_nats=noise_nats, tie_key=tie_key, floor_nats=floor_nats)


def conclude(
    laid_out: Plan,
    values_nats: Values,
    *,
    noise_nats: float,
    tie_key: bytes,
    floor_nats: float = DEFAULT_FLOOR_NATS,
) -> Explanation:
    """Turn the values of a plan's coalitions into scores and shares.

    values_nats: (n_coalitions, n_tokens), log p of each answer token, rows in the order of laid_out.coalitions.
    noise_nats: the standard error, declared by whoever scored, of one coalition's sum over the answer; ≥ 0.
    tie_key: names the answer (its request id), so that equal remainders do not always favour the same player.
    floor_nats: below this a token's log p counts as this.
    Raises AttributionError on values that are no log-probabilities of these coalitions.
    """
    if not (math.isfinite(noise_nats) and noise_nats >= 0):
        raise AttributionError(f"the scoring noise must be finite and not negative, not {noise_nats}")
    raw = checked_values(values_nats, len(laid_out.coalitions))
    values = clipped(raw, floor_nats)
    token_scores = laid_out.weights @ values
    scores = token_scores.sum(axis=1)
    printed = [round(score, SCORE_DECIMALS) for score in scores.tolist()]
    surplus_nats = float(values[-1].sum() - values[0].sum())
    surplus_stderr_nats = math.sqrt(2) * noise_nats

    if surplus_nats <= 0:
        unpaid = Unpaid.NO_SURPLUS
    elif surplus_nats < SIGNIFICANT_STANDARD_ERRORS * surplus_stderr_nats:
        unpaid = Unpaid.WITHIN_NOISE
    elif max(printed) <= 0:
        unpaid = Unpaid.NO_POSITIVE_SCORE
    else:
        unpaid = None
    payable = [0.0] * len(printed) if unpaid else printed

    return Explanation(
        plan=laid_out,
        floor_nats=floor_nats,
        noise_nats=noise_nats,
        values_nats=raw,
        token_scores_nats=token_scores,
        scores_nats=scores,
        raw_scores_nats=(laid_out.weights @ raw).sum(axis=1),
        stderr_nats=noise_nats * np.linalg.norm(laid_out.weights, axis=1),
        surplus_nats=surplus_nats,
        surplus_stderr_nats=surplus_stderr_nats,
        residual_nats=float(laid_out.residual_weights @ values.sum(axis=1)),
        shares_ppm=tuple(shares_ppm(payable, [tie_key + player.key for player in laid_out.players])),
        unpaid=unpaid,
    )
