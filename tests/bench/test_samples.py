"""Percentiles are exact, measured values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.samples import COLUMNS, Samples

VALUES = st.lists(st.floats(min_value=0, max_value=1e6, allow_nan=False), min_size=1, max_size=200)
RANKS = st.floats(min_value=0, max_value=100)


@given(VALUES, RANKS)
def test_a_percentile_is_a_sample_with_its_share_below(values: list[float], q: float) -> None:
    """It was measured, at least q percent of the samples do not exceed it, and no smaller sample can say the same."""
    found = Samples(values).percentile(q)
    assert found in values
    share = 100 * sum(value <= found for value in values) / len(values)
    assert share >= q - 1e-6
    smaller = [value for value in values if value < found]
    if smaller:
        assert 100 * sum(value <= max(smaller) for value in values) / len(values) < q + 1e-6


@given(VALUES, RANKS, RANKS)
def test_percentiles_rise_with_their_rank(values: list[float], one: float, other: float) -> None:
    """A higher rank never gives a smaller value; 0 is the minimum, 100 the maximum."""
    samples = Samples(values)
    low, high = sorted((one, other))
    assert samples.percentile(low) <= samples.percentile(high)
    assert (samples.percentile(0), samples.percentile(100)) == (min(values), max(values))


@given(VALUES, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(values: list[float], random: object) -> None:
    """Shuffled samples have the same statistics, and asking for them does not change the samples."""
    shuffled = sorted(values, key=lambda _: getattr(random, "random")())  # noqa: B009 - hypothesis types it as object
    samples = Samples(values)
    assert [samples.statistic(name) for name in COLUMNS] == [Samples(shuffled).statistic(name) for name in COLUMNS]
    assert list(samples.values) == values


@pytest.mark.parametrize(("name", "expected"), [("p50", 500), ("p99", 990), ("p99.9", 999), ("max", 1000), ("min", 1)])
def test_the_usual_statistics_of_a_thousand(name: str, expected: int) -> None:
    """Of 1..1000 the nearest rank is the number itself, also where floating point is a little off."""
    assert Samples(range(1000, 0, -1)).statistic(name) == expected


@pytest.mark.parametrize("name", ["p", "p101", "median", "p50ms", "p1e1"])
def test_an_unknown_statistic_is_refused(name: str) -> None:
    """A name that is no statistic is a ValueError, never a silent zero."""
    with pytest.raises(ValueError, match="no such statistic"):
        Samples([1.0]).statistic(name)


def test_no_samples_have_no_statistics() -> None:
    """Without a sample there is no percentile; the result file says n = 0."""
    with pytest.raises(ValueError, match="no samples"):
        Samples().percentile(50)
    assert Samples().shown() == {"unit": "ms", "n": 0, "samples": []}


def test_the_result_file_holds_every_sample_in_milliseconds() -> None:
    """In the order in which they were measured."""
    shown = Samples([0.002, 0.001]).shown()
    assert (shown["samples"], shown["p50"], shown["max"], shown["mean"]) == ([2.0, 1.0], 1.0, 2.0, 1.5)


@given(st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=100), st.integers(1, 20))
def test_a_full_series_keeps_an_even_choice_and_both_ends(values: list[float], limit: int) -> None:
    """It never holds more than its limit, all it holds was measured, and it knows how many there were."""
    samples = Samples(values, limit)
    assert len(samples) == min(limit, len(values))
    assert samples.seen == len(values)
    assert set(samples.values) <= set(values)
    assert (samples.statistic("min"), samples.statistic("max")) == (min(values), max(values))
