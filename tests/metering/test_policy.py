from __future__ import annotations

import pytest

from metering import MeteringError, SplitPolicy


def policy(**fixed_ppm: int) -> SplitPolicy:
    return SplitPolicy(name="standard", version=1, fixed_ppm=fixed_ppm)


def test_the_pool_is_what_the_fixed_parts_leave() -> None:
    assert policy(platform=100_000, residual=50_000).pool_ppm == 850_000
    assert policy().pool_ppm == 1_000_000
    assert policy(platform=1_000_000).pool_ppm == 0


def test_parts_beyond_the_whole_are_refused() -> None:
    with pytest.raises(MeteringError, match="exceed the whole"):
        policy(platform=600_000, residual=400_001)


@pytest.mark.parametrize("ppm", [-1, 1_000_001, 0.5, True])
def test_a_part_is_a_whole_number_of_ppm(ppm: object) -> None:
    with pytest.raises(MeteringError, match="fixed part of platform"):
        SplitPolicy(name="standard", version=1, fixed_ppm={"platform": ppm})


@pytest.mark.parametrize("account", ["caller:alice", "suspense", "funding", "contributor:Ann", "base:", "nobody"])
def test_a_charge_is_paid_only_to_accounts_that_earn(account: str) -> None:
    with pytest.raises(MeteringError, match="account must match"):
        SplitPolicy(name="standard", version=1, fixed_ppm={account: 1})
    with pytest.raises(MeteringError, match="account must match"):
        SplitPolicy(name="standard", version=1, fixed_ppm={}, residual=account)


def test_a_policy_does_not_change_with_the_mapping_it_was_made_of() -> None:
    parts = {"platform": 1}
    made = SplitPolicy(name="standard", version=1, fixed_ppm=parts)
    parts["platform"] = 2
    assert made.fixed_ppm == {"platform": 1}
