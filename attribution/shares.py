"""Dividing a whole into integer parts: the only division of money in the project."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

from attribution.errors import AttributionError

WHOLE_PPM = 1_000_000


def apportion(total: int, weights: Sequence[int | float | Fraction], tie_keys: Sequence[bytes]) -> list[int]:
    """Divide `total` units in proportion to `weights`, by the method of largest remainder.

    total: ≥ 0. weights: finite, ≥ 0, not all zero; floats are taken at their exact binary value. tie_keys: one for each
    weight; where remainders are equal, the smaller SHA-256 of the key goes first, then the earlier position.
    Returns one integer ≥ 0 for each weight, each less than one unit from its exact quota; they sum to `total` exactly.
    Raises AttributionError, a ValueError, on anything else.
    """
    exact = _whole_weights(weights)
    if len(tie_keys) != len(exact):
        raise AttributionError(f"{len(exact)} weights need as many tie keys, not {len(tie_keys)}")
    if total < 0:
        raise AttributionError(f"the total must not be negative: {total}")
    weight_sum = sum(exact)
    if weight_sum == 0:
        raise AttributionError("at least one weight must be above zero")

    divided = [divmod(total * weight, weight_sum) for weight in exact]
    parts = [part for part, _ in divided]
    if left := total - sum(parts):
        digests = [hashlib.sha256(key).digest() for key in tie_keys]
        order = sorted(range(len(parts)), key=lambda i: (-divided[i][1], digests[i]))
        for i in order[:left]:
            parts[i] += 1
    assert sum(parts) == total  # noqa: S101 - money that does not add up must stop here, whatever the caller checks
    return parts


def shares_ppm(scores_nats: Sequence[float], tie_keys: Sequence[bytes]) -> list[int]:
    """Turn signed scores into shares of the contributors' pool.

    scores_nats: finite; what is below zero is paid nothing. tie_keys: as for `apportion`.
    Returns integer parts per million: their sum is 1,000,000, or all are 0 when no score is above zero.
    """
    if not all(math.isfinite(score) for score in scores_nats):
        raise AttributionError("a score is not a finite number")
    weights = [max(score, 0.0) for score in scores_nats]
    if not any(weights):
        return [0] * len(weights)
    return apportion(WHOLE_PPM, weights, tie_keys)


def _whole_weights(weights: Sequence[int | float | Fraction]) -> list[int]:
    """Return whole numbers in the same proportions."""
    try:
        exact = [weight if type(weight) is int else Fraction(weight) for weight in weights]
    except (ValueError, OverflowError) as error:
        raise AttributionError(f"a weight is not a finite number: {error}") from error
    if any(weight < 0 for weight in exact):
        raise AttributionError("a weight must not be negative")
    common = math.lcm(*(weight.denominator for weight in exact))
    return [weight.numerator * (common // weight.denominator) for weight in exact]
