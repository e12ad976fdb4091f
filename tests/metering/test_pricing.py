from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering import MeteringError, Price, Usage

TOKENS = st.integers(0, 10**7)
NANO = st.integers(0, 10**9)


def test_a_thousandth_of_a_dollar_for_a_million_tokens_is_one_nano_a_token() -> None:
    assert Price.parse(prompt="0.001", completion="0.60") == Price(
        prompt_nano_per_token=1, completion_nano_per_token=600
    )
    assert Price.parse(prompt="0", completion="12") == Price(prompt_nano_per_token=0, completion_nano_per_token=12_000)


@given(st.integers(0, 10**9 - 1), st.integers(0, 3))
def test_a_price_is_its_decimal_exactly(thousandths: int, places: int) -> None:
    text = f"{Decimal(thousandths - thousandths % 10 ** (3 - places)) / 1000:.{places}f}"
    assert Price.parse(prompt=text, completion="0").prompt_nano_per_token == Decimal(text) * 1000


@pytest.mark.parametrize(
    "text",
    ["", " 1", "1\n", "+1", "-1", "01", "1.", ".5", "1.0005", "1e3", "1_000", "٣", "0x1", "NaN", "1,5", "1" * 10],
)
def test_another_spelling_is_refused(text: str) -> None:
    with pytest.raises(MeteringError, match="completion price"):
        Price.parse(prompt="0.15", completion=text)


@pytest.mark.parametrize("value", [0.15, 1, None, Decimal("0.15"), b"0.15"])
def test_a_price_that_is_not_a_string_is_refused(value: object) -> None:
    with pytest.raises(MeteringError, match="as a string"):
        Price.parse(prompt=value, completion="0.60")


@given(TOKENS, TOKENS, NANO, NANO)
def test_no_split_of_the_context_costs_more_than_the_maximum(read: int, emitted: int, prompt: int, answer: int) -> None:
    price = Price(prompt_nano_per_token=prompt, completion_nano_per_token=answer)
    charge_nano = price.charge_nano(Usage(prompt_tokens=read, completion_tokens=emitted))
    assert charge_nano == read * prompt + emitted * answer
    assert charge_nano <= price.maximum_nano(read + emitted)


@given(TOKENS, st.lists(TOKENS, min_size=1, max_size=8), st.integers(0, 10**7), NANO, NANO)
def test_no_choices_of_one_prompt_cost_more_than_the_maximum(
    read: int, emitted: list[int], spare: int, prompt: int, answer: int
) -> None:
    price = Price(prompt_nano_per_token=prompt, completion_nano_per_token=answer)
    charge_nano = price.charge_nano(Usage(prompt_tokens=read, completion_tokens=sum(emitted)))
    assert charge_nano <= price.maximum_nano(read + max(emitted) + spare, max(emitted), len(emitted))


@pytest.mark.parametrize("tokens", [-1, 1.0, True, "1"])
def test_token_counts_are_whole_numbers(tokens: object) -> None:
    with pytest.raises(MeteringError, match="prompt_tokens"):
        Usage(prompt_tokens=tokens, completion_tokens=0)
