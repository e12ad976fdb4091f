from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution import (
    AttributionError,
    additive_fit,
    all_coalitions,
    linear_datamodeling_score,
    rank_correlation,
    total_variation,
)

from .games import any_games

vectors = st.lists(st.integers(-5, 5), min_size=2, max_size=8).map(lambda items: np.array(items, dtype=float))


@pytest.mark.parametrize(
    ("shares", "reference", "distance"),
    [
        ([0.5, 0.5], [0.5, 0.5], 0.0),
        ([1.0, 0.0], [0.0, 1.0], 1.0),
        ([0.6, 0.4], [0.5, 0.5], 0.1),
        ([0.0, 0.0], [0.5, 0.5], 1.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
    ],
)
def test_total_variation_is_the_money_that_went_elsewhere(shares, reference, distance):
    assert total_variation(shares, reference) == pytest.approx(distance)
    assert total_variation(reference, shares) == pytest.approx(distance)


@given(vectors)
def test_ranks_do_not_change_under_what_keeps_the_order(vector):
    if len(set(vector)) > 1:
        assert rank_correlation(vector, np.exp(vector)) == pytest.approx(1)
        assert rank_correlation(vector, -3 * vector) == pytest.approx(-1)
    else:
        assert math.isnan(rank_correlation(vector, vector))


def test_ties_take_their_mean_rank():
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    rho = rank_correlation(np.array([1.0, 2.0, 2.0 + 1e-13, 3.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert rho == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@given(any_games())
def test_an_additive_game_is_predicted_perfectly_by_its_own_scores(table):
    coalitions = all_coalitions(len(table.players))
    scores = np.arange(1.0, len(table.players) + 1)
    totals = coalitions @ scores - 20
    np.testing.assert_allclose(additive_fit(coalitions, totals), scores, atol=1e-9)
    assert linear_datamodeling_score(scores, coalitions, totals) == pytest.approx(1)


def test_scores_that_tell_coalitions_not_apart_predict_nothing():
    assert linear_datamodeling_score(np.zeros(2), all_coalitions(2), np.array([-3.0, -2.0, -2.0, -1.0])) == 0


def test_vectors_of_different_lengths_are_refused():
    with pytest.raises(AttributionError):
        total_variation([1.0], [0.5, 0.5])
    with pytest.raises(AttributionError):
        rank_correlation(np.zeros(2), np.zeros(3))
