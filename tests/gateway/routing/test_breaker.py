"""What a breaker lets in, and for how long it lets in nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.breaker import Breaker, BreakerLimits, State
from tests.gateway.routing.kit import Clock

LIMITS = BreakerLimits(failures=3, first_s=1, limit_s=8)


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.failed(breaker.admit())


def test_it_opens_at_failures_in_a_row_only() -> None:
    breaker = Breaker(LIMITS, clock=Clock())
    for _ in range(5):
        fail(breaker, 2)
        breaker.succeeded(breaker.admit())
    assert breaker.state is State.CLOSED
    fail(breaker, 3)
    assert breaker.state is State.OPEN
    assert not breaker.admits
    with pytest.raises(RuntimeError):
        breaker.admit()


def test_each_wait_is_twice_the_last_up_to_the_limit_and_a_success_begins_anew() -> None:
    clock = Clock()
    breaker = Breaker(LIMITS, clock=clock)
    fail(breaker, 3)
    for wait_s in (1, 2, 4, 8, 8, 8):
        clock.now_s += wait_s - 0.001
        assert breaker.state is State.OPEN
        clock.now_s += 0.001
        assert breaker.state is State.HALF_OPEN
        fail(breaker)
    clock.now_s += 8
    breaker.began(breaker.admit())
    assert breaker.state is State.CLOSED
    fail(breaker, 3)
    clock.now_s += 1
    assert breaker.state is State.HALF_OPEN


def test_half_open_lets_one_in_at_a_time() -> None:
    clock = Clock()
    breaker = Breaker(LIMITS, clock=clock)
    fail(breaker, 3)
    clock.now_s += 1
    probe = breaker.admit()
    assert not breaker.admits
    breaker.abandoned(probe)
    assert breaker.admits
    breaker.succeeded(breaker.admit())
    assert breaker.state is State.CLOSED


def test_the_beginning_of_an_answer_is_no_success_while_it_is_closed() -> None:
    breaker = Breaker(LIMITS, clock=Clock())
    for _ in range(3):
        admitted = breaker.admit()
        breaker.began(admitted)
        breaker.failed(admitted)
    assert breaker.state is State.OPEN


@given(st.lists(st.sampled_from(["failed", "succeeded", "began", "abandoned"]), max_size=10))
def test_stragglers_from_an_earlier_round_change_nothing(verdicts: list[str]) -> None:
    clock = Clock()
    breaker = Breaker(LIMITS, clock=clock)
    stragglers = [breaker.admit() for _ in verdicts]
    fail(breaker, 3)
    clock.now_s += 1
    probe = breaker.admit()
    for verdict, admitted in zip(verdicts, stragglers, strict=True):
        getattr(breaker, verdict)(admitted)
    assert breaker.state is State.HALF_OPEN
    assert not breaker.admits
    breaker.succeeded(probe)
    for verdict, admitted in zip(verdicts, stragglers, strict=True):
        getattr(breaker, verdict)(admitted)
    fail(breaker, 2)
    assert breaker.state is State.CLOSED


def test_waits_may_be_spread() -> None:
    clock = Clock()
    breaker = Breaker(LIMITS, clock=clock, spread=lambda: 0.5)
    fail(breaker, 3)
    clock.now_s += 0.5
    assert breaker.state is State.HALF_OPEN


@pytest.mark.parametrize("wrong", [{"failures": 0}, {"first_s": 0}, {"first_s": 2, "limit_s": 1}])
def test_limits_that_make_no_breaker_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="breaker"):
        BreakerLimits(**wrong)  # type: ignore[arg-type]
