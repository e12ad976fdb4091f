from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from attribution import EXACT, LEAVE_ONE_OUT, TWO_END, AttributionError, Player, explain, plan
from attribution.game import unions

from .games import any_games, documents, mean_over_orders, pairwise_games, player_lists

FAR_BELOW = -1e6


def scores(table, estimator):
    """Replay without clipping."""
    explanation = explain(
        table.score, table.players, estimator=estimator, noise_nats=0.0, tie_key=b"", floor_nats=FAR_BELOW
    )
    return explanation.scores_nats


@settings(deadline=None)
@given(any_games())
def test_exact_is_the_owen_value(table):
    np.testing.assert_allclose(scores(table, EXACT), mean_over_orders(table, keep_unions_together=True), atol=1e-9)


@given(any_games(most=7))
def test_exact_divides_the_whole_surplus(table):
    surplus = table.values[-1].sum() - table.values[0].sum()
    assert scores(table, EXACT).sum() == pytest.approx(surplus, abs=1e-9)


@given(any_games(most=7))
def test_two_end_gives_each_union_what_exact_gives_it(table):
    for group in unions(table.players):
        whole = scores(table, EXACT)[group].sum()
        assert scores(table, TWO_END)[group].sum() == pytest.approx(whole, abs=1e-9)


@given(any_games(most=7))
def test_the_residual_is_what_marginals_alone_would_leave_over(table):
    worth = table.values.sum(axis=1)
    everybody = len(worth) - 1
    marginals = [
        (worth[1 << i] - worth[0] + worth[-1] - worth[everybody ^ 1 << i]) / 2 for i in range(len(table.players))
    ]
    found = explain(table.score, table.players, estimator=TWO_END, noise_nats=0.0, tie_key=b"", floor_nats=FAR_BELOW)
    assert found.residual_nats == pytest.approx(sum(marginals) - found.surplus_nats, abs=1e-9)


@given(pairwise_games())
def test_two_end_is_exact_while_interactions_are_pairwise(table):
    np.testing.assert_allclose(scores(table, TWO_END), scores(table, EXACT), atol=1e-9)


@settings(deadline=None)
@given(pairwise_games(most=5))
def test_two_end_is_the_shapley_value_while_interactions_are_pairwise(table):
    np.testing.assert_allclose(scores(table, TWO_END), mean_over_orders(table, keep_unions_together=False), atol=1e-9)


@given(any_games(most=7))
def test_the_lone_adapter_gets_its_union_corner_from_two_end_too(table):
    adapters = [i for i, player in enumerate(table.players) if player.kind == "adapter"]
    if len(adapters) == 1:
        np.testing.assert_allclose(scores(table, TWO_END)[adapters], scores(table, EXACT)[adapters], atol=1e-9)


@given(any_games())
def test_leave_one_out_is_what_the_others_miss(table):
    worth = table.values.sum(axis=1)
    missed = [worth[-1] - worth[len(worth) - 1 - (1 << i)] for i in range(len(table.players))]
    np.testing.assert_allclose(scores(table, LEAVE_ONE_OUT), missed, atol=1e-9)


@pytest.mark.parametrize("estimator", [EXACT, TWO_END, LEAVE_ONE_OUT])
@given(players=player_lists(most=7))
def test_a_plan_asks_for_each_coalition_once_from_nobody_to_everybody(estimator, players):
    laid_out = plan(players, estimator)
    assert laid_out.coalitions.dtype == np.bool_
    assert len(np.unique(laid_out.coalitions, axis=0)) == len(laid_out.coalitions)
    assert not laid_out.coalitions[0].any()
    assert laid_out.coalitions[-1].all()
    np.testing.assert_allclose(laid_out.weights.sum(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("estimator", "evaluations"),
    [
        (EXACT, {1: 2, 2: 4, 3: 8, 7: 128}),
        (TWO_END, {1: 2, 2: 4, 3: 8, 4: 10, 7: 16, 40: 82}),
        (LEAVE_ONE_OUT, {1: 2, 2: 4, 3: 5, 7: 9}),
    ],
)
def test_evaluations(estimator, evaluations):
    assert {n: len(plan(documents(n), estimator).coalitions) for n in evaluations} == evaluations


def test_two_end_scores_the_corners_of_unions_with_several_players():
    adapters = [Player(kind="adapter", id=f"{i}") for i in range(2)]
    assert len(plan([*adapters, *documents(3)], TWO_END).coalitions) == 2 * 5 + 2 + 2


def test_exact_skips_coalitions_that_no_counted_order_passes():
    adapters = [Player(kind="adapter", id=f"{i}") for i in range(2)]
    assert len(plan([*adapters, *documents(3)], EXACT).coalitions) == 20


def test_a_plan_cannot_be_changed():
    laid_out = plan(documents(3), TWO_END)
    with pytest.raises(ValueError, match="read-only"):
        laid_out.weights[0, 0] = 1.0


@pytest.mark.parametrize(
    ("players", "estimator", "message"),
    [
        ([], TWO_END, "no players"),
        ([*documents(2), *documents(1)], TWO_END, "document doc_0 plays twice"),
        (documents(8), EXACT, "at most 7 players, not 8"),
    ],
)
def test_games_that_cannot_be_played_are_refused(players, estimator, message):
    with pytest.raises(AttributionError, match=message):
        plan(players, estimator)
