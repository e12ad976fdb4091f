"""The attribution game: players, coalitions, estimators and shares. Pure mathematics over numpy."""

from attribution.errors import AttributionError
from attribution.estimators import (
    ESTIMATORS,
    EXACT,
    EXACT_PLAYERS_MAX,
    LEAVE_ONE_OUT,
    TWO_END,
    Estimator,
    Marginal,
    Plan,
    plan,
)
from attribution.explanation import SCORE_DECIMALS, Explanation, Unpaid, conclude, explain
from attribution.faithfulness import additive_fit, linear_datamodeling_score, rank_correlation, total_variation
from attribution.game import (
    DEFAULT_FLOOR_NATS,
    Coalitions,
    Kind,
    Player,
    Score,
    Values,
    ValueTable,
    all_coalitions,
    clipped,
    tabulate,
)
from attribution.shares import WHOLE_PPM, apportion, shares_ppm

__all__ = [
    "DEFAULT_FLOOR_NATS",
    "ESTIMATORS",
    "EXACT",
    "EXACT_PLAYERS_MAX",
    "LEAVE_ONE_OUT",
    "SCORE_DECIMALS",
    "TWO_END",
    "WHOLE_PPM",
    "AttributionError",
    "Coalitions",
    "Estimator",
    "Explanation",
    "Kind",
    "Marginal",
    "Plan",
    "Player",
    "Score",
    "Unpaid",
    "ValueTable",
    "Values",
    "additive_fit",
    "all_coalitions",
    "apportion",
    "clipped",
    "conclude",
    "explain",
    "linear_datamodeling_score",
    "plan",
    "rank_correlation",
    "shares_ppm",
    "tabulate",
    "total_variation",
]
