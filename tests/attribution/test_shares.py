from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attribution import AttributionError, apportion, shares_ppm

totals = st.integers(0, 10**18)
weights = st.one_of(
    st.integers(0, 10**12),
    st.floats(0, 1e300, allow_nan=False),
    st.fractions(0, 10**6),
)
# Few distinct values, so that ties are common.
weight_lists = st.one_of(
    st.lists(weights, min_size=1, max_size=12),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
).filter(any)


def keys(count: int) -> list[bytes]:
    return [f"player {i}".encode() for i in range(count)]


@given(totals, weight_lists)
def test_parts_sum_to_the_total_and_stay_within_one_unit_of_the_quota(total, given_weights):
    parts = apportion(total, given_weights, keys(len(given_weights)))
    exact = [Fraction(weight) for weight in given_weights]
    assert sum(parts) == total
    for part, weight in zip(parts, exact, strict=True):
        assert abs(part - total * weight / sum(exact)) < 1


@given(totals, weight_lists)
def test_weights_are_proportions_however_they_are_written(total, given_weights):
    parts = apportion(total, given_weights, keys(len(given_weights)))
    exact = [Fraction(weight) for weight in given_weights]
    assert parts == apportion(total, exact, keys(len(exact)))
    assert parts == apportion(total, [weight / 7 for weight in exact], keys(len(exact)))


@given(totals, weight_lists)
def test_a_larger_weight_never_gets_less(total, given_weights):
    parts = apportion(total, given_weights, keys(len(given_weights)))
    ranked = sorted(zip([Fraction(weight) for weight in given_weights], parts, strict=True))
    for (light, less), (heavy, more) in pairwise(ranked):
        assert light == heavy or less <= more


@given(totals, weight_lists)
def test_a_weight_of_zero_gets_nothing(total, given_weights):
    parts = apportion(total, [0, *given_weights], keys(len(given_weights) + 1))
    assert parts[0] == 0


@given(totals, weight_lists, st.randoms(use_true_random=False))
def test_the_order_of_the_players_does_not_matter(total, given_weights, random):
    rows = list(zip(given_weights, keys(len(given_weights)), strict=True))
    shuffled = random.sample(rows, len(rows))

    def divided(some_rows):
        parts = apportion(total, [weight for weight, _ in some_rows], [key for _, key in some_rows])
        return {key: part for (_, key), part in zip(some_rows, parts, strict=True)}

    assert divided(rows) == divided(shuffled)


@given(st.lists(st.binary(max_size=8), min_size=2, max_size=8, unique=True), st.data())
def test_equal_remainders_go_to_the_smaller_digest(tie_keys, data):
    left_over = data.draw(st.integers(0, len(tie_keys) - 1))
    parts = apportion(left_over, [1] * len(tie_keys), tie_keys)
    by_digest = sorted(tie_keys, key=lambda key: hashlib.sha256(key).digest())
    assert {key for key, part in zip(tie_keys, parts, strict=True) if part} == set(by_digest[:left_over])


def test_equal_keys_fall_back_to_position():
    assert apportion(1, [1, 1], [b"same", b"same"]) == [1, 0]


def test_floats_are_divided_at_their_exact_value():
    # 0.1 + 0.2 is not 0.3 in binary, and a float quota would have lost the last units of so large a total.
    assert sum(apportion(10**30 + 1, [0.1, 0.2, 0.3], keys(3))) == 10**30 + 1


@pytest.mark.parametrize(
    ("total", "given_weights", "tie_keys"),
    [
        (10, [], []),
        (10, [0, 0], keys(2)),
        (10, [1, -1], keys(2)),
        (10, [1.0, float("nan")], keys(2)),
        (10, [1.0, float("inf")], keys(2)),
        (10, [10**400, -1], keys(2)),
        (10, [1, 1], keys(1)),
        (-1, [1, 1], keys(2)),
    ],
)
def test_what_cannot_be_divided_is_refused(total, given_weights, tie_keys):
    with pytest.raises(AttributionError):
        apportion(total, given_weights, tie_keys)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=10))
def test_shares_are_a_million_or_nothing(scores):
    shares = shares_ppm(scores, keys(len(scores)))
    assert sum(shares) == (1_000_000 if any(score > 0 for score in scores) else 0)
    assert all(share == 0 for share, score in zip(shares, scores, strict=True) if score <= 0)


def test_shares_of_a_broken_score_are_refused():
    with pytest.raises(AttributionError, match="finite"):
        shares_ppm([1.0, float("nan")], keys(2))
