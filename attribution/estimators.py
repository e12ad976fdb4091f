"""Which coalitions to score, and how their values become scores.

Every estimator here is a weighted sum of marginal contributions v(S ∪ i) − v(S). It is therefore linear: a plan holds
the coalitions to score and one matrix of weights, scores are weights @ values, and the standard error of a score
follows exactly from that of one evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attribution.errors import AttributionError
from attribution.game import Coalitions, Player, check_players, coalition_rows, unions

EXACT_PLAYERS_MAX = 7


class Marginal(NamedTuple):
    """`weight` times what player number `player` adds to the coalition `before`, an integer of player bits."""

    player: int
    before: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """A rule that says which marginal contributions make up a player's score.

    closes: whether what the scores of a union leave over, against what exact gives that union as a whole, is then
    divided equally within it. The record of an answer names the rule by name and version, so a rule that changes takes
    a new version.
    """

    name: str
    version: str
    marginals: Callable[[Sequence[Player]], Iterator[Marginal]]
    closes: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What to score for an answer's players, and what to make of it.

    coalitions: bool (n_coalitions, n_players), all different, from the empty one to the full one by size.
    weights: float64 (n_players, n_coalitions); each row sums to 0. residual_weights: float64 (n_coalitions,), of what
    the marginal contributions sum to beyond the surplus, before anything was closed.
    """

    players: tuple[Player, ...]
    estimator: Estimator
    coalitions: Coalitions
    weights: NDArray[np.float64]
    residual_weights: NDArray[np.float64]


def plan(players: Sequence[Player], estimator: Estimator) -> Plan:
    """Lay out the coalitions that `estimator` needs for `players`, each once.

    The same arguments give the same plan, so it can be laid out again when the values arrive. The empty and the full
    coalition are always among them: the surplus is their difference.
    Raises AttributionError when there are no players, a player twice, or more players than the estimator can take.
    """
    check_players(players)
    everybody = _mask(range(len(players)))
    closed = [(group, _mask(group)) for group in unions(players)] if estimator.closes else []
    corners = {0, everybody, *(mask for _, union in closed for mask in (union, everybody ^ union))}
    columns = {mask: np.zeros(len(players)) for mask in corners}
    for player, before, weight in estimator.marginals(players):
        for mask, sign in ((before, -1), (before | 1 << player, 1)):
            columns.setdefault(mask, np.zeros(len(players)))[player] += sign * weight
    masks = sorted(columns, key=lambda mask: (mask.bit_count(), mask))

    weights = np.stack([columns[mask] for mask in masks], axis=1)
    value_of = dict(zip(masks, np.eye(len(masks)), strict=True))
    residual_weights = weights.sum(axis=0) - (value_of[everybody] - value_of[0])
    for group, union in closed:
        whole = (value_of[union] - value_of[0] + value_of[everybody] - value_of[everybody ^ union]) / 2
        weights[group] += (whole - weights[group].sum(axis=0)) / len(group)

    coalitions = coalition_rows(masks, len(players))
    for array in (coalitions, weights, residual_weights):
        array.flags.writeable = False
    return Plan(
        players=tuple(players),
        estimator=estimator,
        coalitions=coalitions,
        weights=weights,
        residual_weights=residual_weights,
    )


def _owen(players: Sequence[Player]) -> Iterator[Marginal]:
    """Average over the orders in which players can arrive when no union is interrupted by another (Owen 1977).

    With one union this is the Shapley value. 2^n coalitions, or fewer when both unions have several players: no order
    that is counted passes through a part of each.
    """
    if len(players) > EXACT_PLAYERS_MAX:
        raise AttributionError(
            f"exact takes at most {EXACT_PLAYERS_MAX} players, not {len(players)}: "
            f"it would need 2^{len(players)} evaluations; use two-end"
        )
    groups = unions(players)
    for group in groups:
        others = [_mask(other) for other in groups if other is not group]
        for earlier_unions in _subsets(others):
            union_weight = _order_weight(len(earlier_unions), len(groups))
            for player in group:
                for earlier in _subsets([i for i in group if i != player]):
                    weight = union_weight * _order_weight(len(earlier), len(group))
                    yield Marginal(player, sum(earlier_unions) | _mask(earlier), weight)


def _two_end(players: Sequence[Player]) -> Iterator[Marginal]:
    """Average what a player adds to nobody and to everybody else: 2n + 2 coalitions, the unions' corners among them.

    Equal to the Owen and the Shapley value when interactions are at most pairwise, whatever the unions: in every order
    that is counted, as often as not, the other player of a pair came first.
    """
    everybody = _mask(range(len(players)))
    for player in range(len(players)):
        yield Marginal(player, 0, 0.5)
        yield Marginal(player, everybody ^ 1 << player, 0.5)


def _leave_one_out(players: Sequence[Player]) -> Iterator[Marginal]:
    """Take what a player adds to everybody else. A baseline: players that can stand in for one another get nothing."""
    everybody = _mask(range(len(players)))
    for player in range(len(players)):
        yield Marginal(player, everybody ^ 1 << player, 1.0)


def _mask(positions: Sequence[int]) -> int:
    return sum(1 << i for i in positions)


def _subsets(items: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for size in range(len(items) + 1):
        yield from combinations(items, size)


def _order_weight(earlier: int, count: int) -> float:
    """Return the share of the orders of `count` things in which a given one comes right after `earlier` given ones."""
    return factorial(earlier) * factorial(count - earlier - 1) / factorial(count)


EXACT = Estimator(name="exact", version="1", marginals=_owen)
TWO_END = Estimator(name="two-end", version="1", marginals=_two_end, closes=True)
LEAVE_ONE_OUT = Estimator(name="leave-one-out", version="1", marginals=_leave_one_out)

ESTIMATORS = {estimator.name: estimator for estimator in (EXACT, TWO_END, LEAVE_ONE_OUT)}
