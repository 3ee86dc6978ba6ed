"""Arrival plans: as many as the rate says, in order, the same for the same seed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.traffic.plan import Plan

RATES = st.floats(min_value=0.1, max_value=50)
SECONDS = st.floats(min_value=0.1, max_value=20)


@given(RATES, SECONDS)
def test_a_constant_plan_has_even_distances(rate: float, seconds: float) -> None:
    """One at 0, the next 1 / rate later, and so on, none after the end."""
    moments = list(Plan(rate, rate, seconds).moments(1))
    assert abs(len(moments) - math.ceil(rate * seconds)) <= 1
    for number, moment in enumerate(moments):
        assert moment == pytest.approx(number / rate)


@given(st.floats(min_value=0, max_value=50), st.floats(min_value=0, max_value=50), SECONDS)
def test_a_ramp_sends_as_many_as_lie_under_its_line(first: float, last: float, seconds: float) -> None:
    """Up or down, also from or to nothing: at each moment as many have come as the integral of the rate says."""
    plan = Plan(first, last, seconds)
    moments = list(plan.moments(1))
    assert abs(len(moments) - plan.expected()) <= 1.001
    assert moments == sorted(moments)
    for number, moment in enumerate(moments):
        assert 0 <= moment < seconds
        under = (first + plan.rate(moment)) / 2 * moment
        assert under == pytest.approx(number, abs=1e-6 * max(1, number))


@given(RATES, SECONDS, st.integers(0, 2**32))
def test_chance_is_the_seeds(rate: float, seconds: float, seed: int) -> None:
    """The same seed gives the same arrivals, in order and before the end."""
    plan = Plan(rate, rate, seconds, "poisson")
    moments = list(plan.moments(seed))
    assert moments == list(plan.moments(seed))
    assert moments == sorted(moments)
    assert all(0 <= moment < seconds for moment in moments)


def test_a_poisson_plan_keeps_its_rate() -> None:
    """Their number is within five standard deviations of what is expected, and differs from seed to seed."""
    plan = Plan(10, 30, 100, "poisson")
    counts = [len(list(plan.moments(seed))) for seed in range(30)]
    for count in counts:
        assert abs(count - plan.expected()) < 5 * math.sqrt(plan.expected())
    assert len(set(counts)) > 1
