from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution import (
    DEFAULT_FLOOR_NATS,
    ESTIMATORS,
    EXACT,
    LEAVE_ONE_OUT,
    TWO_END,
    AttributionError,
    Unpaid,
    ValueTable,
    conclude,
    explain,
    plan,
)

from .games import any_games, documents

estimators = st.sampled_from(list(ESTIMATORS.values()))


def replay(values, *, noise_nats=0.0, estimator=TWO_END, **options):
    """Explain a game given as one row of token values for each coalition."""
    values = np.asarray(values, dtype=float)
    table = ValueTable(players=tuple(documents(len(values).bit_length() - 1)), values=values)
    return explain(table.score, table.players, estimator=estimator, noise_nats=noise_nats, tie_key=b"req_1", **options)


@given(any_games(), estimators, st.floats(0, 2))
def test_every_figure_follows_from_the_values(table, estimator, noise_nats):
    result = explain(table.score, table.players, estimator=estimator, noise_nats=noise_nats, tie_key=b"req_1")
    np.testing.assert_allclose(result.token_scores_nats.sum(axis=1), result.scores_nats)
    left_over_nats = 0 if estimator.closes else result.residual_nats
    assert result.scores_nats.sum() == pytest.approx(result.surplus_nats + left_over_nats)
    assert result.evaluations == len(result.values_nats) == len(result.plan.coalitions)
    assert sum(result.shares_ppm) == (0 if result.unpaid else 1_000_000)
    again = conclude(plan(table.players, estimator), result.values_nats, noise_nats=noise_nats, tie_key=b"req_1")
    np.testing.assert_array_equal(again.scores_nats, result.scores_nats)
    assert again.shares_ppm == result.shares_ppm


def test_a_known_game():
    # Two tokens. Document 0 makes the first likely, document 1 the second; neither touches the other's.
    result = replay([[-4, -2], [-1, -2], [-4, -1], [-1, -1]])
    np.testing.assert_allclose(result.token_scores_nats, [[3, 0], [0, 1]])
    assert result.surplus_nats == pytest.approx(4)
    assert result.residual_nats == pytest.approx(0)
    assert result.shares_ppm == (750_000, 250_000)
    assert result.unpaid is None


def test_a_surprising_token_counts_no_further_than_the_floor():
    result = replay([[-50.0], [-1.0]])
    assert result.scores_nats[0] == pytest.approx(-1 - DEFAULT_FLOOR_NATS)
    assert result.raw_scores_nats[0] == pytest.approx(49)
    assert result.values_nats[0, 0] == -50
    assert replay([[-50.0], [-1.0]], floor_nats=-60.0).scores_nats[0] == pytest.approx(49)


def test_a_harmful_player_keeps_its_sign_and_is_paid_nothing():
    result = replay([[-4], [-2], [-5], [-3]])
    np.testing.assert_allclose(result.scores_nats, [2, -1])
    assert result.shares_ppm == (1_000_000, 0)


@pytest.mark.parametrize("estimator", [EXACT, TWO_END, LEAVE_ONE_OUT])
@pytest.mark.parametrize("n_players", [1, 2, 4])
def test_standard_errors_are_what_scoring_noise_does(estimator, n_players):
    noise_nats = 0.01
    laid_out = plan(documents(n_players), estimator)
    random = np.random.default_rng(7)
    runs = [
        conclude(laid_out, random.normal(-3, noise_nats, (len(laid_out.coalitions), 1)), noise_nats=0.01, tie_key=b"")
        for _ in range(1500)
    ]
    np.testing.assert_allclose(np.std([run.scores_nats for run in runs], axis=0), runs[0].stderr_nats, rtol=0.08)
    assert np.std([run.surplus_nats for run in runs]) == pytest.approx(runs[0].surplus_stderr_nats, rel=0.08)


def test_standard_errors_of_two_end():
    laid_out = plan(documents(4), TWO_END)
    result = conclude(laid_out, np.full((10, 1), -1.0), noise_nats=0.2, tie_key=b"")
    # Of the two ends 3/8 each, of nobody and everybody 1/4 each, of the other players' six ends 1/8 each.
    np.testing.assert_allclose(result.stderr_nats, 0.2 * math.sqrt((2 * 9 + 2 * 4 + 6) / 64))
    assert result.surplus_stderr_nats == pytest.approx(0.2 * math.sqrt(2))


@pytest.mark.parametrize(
    ("values", "noise_nats", "unpaid"),
    [
        ([[-2], [-2]], 0.0, Unpaid.NO_SURPLUS),
        ([[-2], [-3]], 0.0, Unpaid.NO_SURPLUS),
        ([[-2], [-3]], 9.0, Unpaid.NO_SURPLUS),
        ([[-2], [-1.9]], 0.03, Unpaid.WITHIN_NOISE),
        ([[-2], [-1.9]], 0.02, None),
    ],
)
def test_nobody_is_paid_without_a_surplus_to_pay_for(values, noise_nats, unpaid):
    result = replay(values, noise_nats=noise_nats)
    assert result.unpaid is unpaid
    assert any(result.shares_ppm) is (unpaid is None)


def test_nobody_is_paid_where_no_score_is_positive():
    # Nobody is missed: any two of them would have done.
    values = [[-4], [-4], [-4], [-1], [-4], [-1], [-1], [-1]]
    assert replay(values, estimator=LEAVE_ONE_OUT).unpaid is Unpaid.NO_POSITIVE_SCORE
    assert sum(replay(values, estimator=TWO_END).shares_ppm) == 1_000_000


def test_equal_players_take_turns_at_the_odd_unit():
    values = np.full((8, 1), -2.0)
    values[-1] = -1.0
    table = ValueTable(players=tuple(documents(3)), values=values)
    shares = {
        explain(table.score, table.players, noise_nats=0.0, tie_key=f"req_{i}".encode()).shares_ppm for i in range(40)
    }
    assert shares == {(333_334, 333_333, 333_333), (333_333, 333_334, 333_333), (333_333, 333_333, 333_334)}


def test_a_certain_token_may_end_a_hair_above_log_one():
    result = replay([[-1.0], [2e-6]])
    assert result.scores_nats[0] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[-1.0], [math.nan]], "NaN or infinity"),
        ([[-math.inf], [-1.0]], "NaN or infinity"),
        ([[-1.0], [0.5]], "never above 0"),
        ([[-1.0]], r"shape \(2, tokens\)"),
        ([[-1.0], [-1.0], [-1.0]], r"shape \(2, tokens\)"),
        ([-1.0, -2.0], r"shape \(2, tokens\)"),
        ([[], []], "answer is empty"),
    ],
)
def test_what_is_no_log_probability_is_refused(values, message):
    with pytest.raises(AttributionError, match=message):
        explain(lambda _: np.array(values), documents(1), noise_nats=0.0, tie_key=b"")


@pytest.mark.parametrize(
    "options",
    [
        {"noise_nats": -1.0},
        {"noise_nats": math.nan},
        {"noise_nats": math.inf},
        {"floor_nats": 0.0},
        {"floor_nats": -math.inf},
        {"floor_nats": math.nan},
    ],
)
def test_meaningless_noise_and_floor_are_refused(options):
    with pytest.raises(AttributionError):
        replay([[-2.0], [-1.0]], **options)
