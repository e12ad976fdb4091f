from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering import MeteringError, Posting, balanced, base_account, caller_account, contributor_account

AMOUNTS = st.integers(-(10**18), 10**18).filter(bool)


@given(st.lists(AMOUNTS, max_size=8))
def test_postings_balance_only_when_they_sum_to_zero(amounts: list[int]) -> None:
    postings = [Posting(account="platform", amount_nano=amount) for amount in amounts]
    if sum(amounts) == 0:
        assert balanced(postings) == tuple(postings)
    else:
        with pytest.raises(MeteringError, match="sum to zero"):
            balanced(postings)
        postings.append(Posting(account="suspense", amount_nano=-sum(amounts)))
        assert balanced(iter(postings)) == tuple(postings)


@pytest.mark.parametrize("amount", [0, 1.0, True, "1", 9_200_000_000_000_000_001, -9_200_000_000_000_000_001])
def test_an_amount_is_a_whole_number_that_a_column_holds_and_never_zero(amount: object) -> None:
    with pytest.raises(MeteringError, match=r"amount_nano|moves nothing"):
        Posting(account="platform", amount_nano=amount)


def test_accounts_have_one_spelling() -> None:
    assert contributor_account("ann-2") == "contributor:ann-2"
    assert base_account("org/model-7B") == "base:org/model-7B"
    assert caller_account("k1.A_b") == "caller:k1.A_b"
    for account in ("Platform", "platform ", "contributor:", "contributor:-a", "caller:", "base:a b", "platform\n"):
        with pytest.raises(MeteringError, match="account must match"):
            Posting(account=account, amount_nano=1)
    for name in ("Ann", "", "a" * 64, "ann\n", "ann:x"):
        with pytest.raises(MeteringError, match="contributor must match"):
            contributor_account(name)
