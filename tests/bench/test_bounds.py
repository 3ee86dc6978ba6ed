"""Targets and assertions: how they are written, what they compare."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.bounds import Bound
from bench.samples import Samples


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("welcome_p50<60ms", "welcome_p50 < 60 ms"),
        ("first_delta_p99.9 <= 1.5s", "first_delta_p99.9 <= 1500 ms"),
        (" cold_together_welcome_max>=250us ", "cold_together_welcome_max >= 0.25 ms"),
    ],
)
def test_a_bound_is_read(text: str, shown: str) -> None:
    """Series, statistic, operator, number and unit, with or without blanks."""
    assert str(Bound.parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "welcome<60ms", "welcome_p50<60", "welcome_p50=60ms", "welcome_p101<6ms", "p50<6ms", "a_p50<-1ms"]
)
def test_what_is_no_bound_is_refused(text: str) -> None:
    """A missing statistic, unit or series, another operator, a percentile that does not exist."""
    with pytest.raises(ValueError, match=r"is not of the form|no such statistic|no such percentile"):
        Bound.parse(text)


@given(st.lists(st.floats(min_value=0.001, max_value=10), min_size=1), st.integers(1, 10_000))
def test_a_bound_holds_exactly_when_its_figure_does(values: list[float], limit_ms: int) -> None:
    """Smaller-than and not-smaller-than are each other's opposite, whatever was measured."""
    series = {"x": Samples(values)}
    below = Bound.parse(f"x_max<{limit_ms}ms").holds(series)
    assert below is (max(values) < limit_ms / 1e3)
    assert below is not Bound.parse(f"x_max>={limit_ms}ms").holds(series)


def test_what_was_not_measured_does_not_hold() -> None:
    """An empty series or none at all fails the bound and says so."""
    bound = Bound.parse("welcome_p50<60ms")
    assert not bound.holds({})
    assert not bound.holds({"welcome": Samples()})
    assert "not measured" in bound.verdict({})
