"""Charts: scales, ticks, thinning."""

import math
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.results.svg import Chart, Line, Scale, curve_of, drawn, thinned, ticks

NUMBERS = st.floats(min_value=-1e9, max_value=1e9)


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_a_scale_keeps_order_and_stays_on_the_page(one: float, other: float, first: float, second: float) -> None:
    """Both ends lie on both ends; a larger value never lies before a smaller one; nothing lies outside."""
    low, high = sorted((one, other))
    scale = Scale(low, high, 10, 110)
    assert scale.at(low) == 10
    if high > low:
        assert scale.at(high) == 110
    small, large = sorted((first, second))
    assert 10 <= scale.at(small) <= scale.at(large) <= 110


@given(st.floats(min_value=0, max_value=1e6), st.floats(min_value=1e-3, max_value=1e6))
def test_ticks_are_round_and_within(low: float, span: float) -> None:
    """At equal distances of 1, 2 or 5 times a power of ten, not too many."""
    found = ticks(low, low + span)
    assert len(found) <= 8
    assert found == sorted(found)
    if len(found) > 1:
        step = found[1] - found[0]
        digits = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(digits - factor) for factor in (1, 2, 5, 10)) < 1e-3
        slack = step * 1e-6
        assert low - slack <= found[0]
        assert found[-1] <= low + span + slack


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=300), st.integers(1, 50))
def test_thinning_keeps_the_peak(points: list[tuple[int, int]], most: int) -> None:
    """At most so many, all of them measured, the highest among them."""
    kept = thinned(points, most)
    assert len(kept) <= most
    assert set(kept) <= set(points)
    if points:
        assert max(y for _, y in kept) == max(y for _, y in points)


@example([(0.0, 5e-324)], [], "")
@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), max_size=50),
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 100)), max_size=10),
    st.text("<>&\"'ab", max_size=10),
)
def test_a_chart_is_well_formed(points: list[tuple[float, float]], bars: list[tuple[float, int]], word: str) -> None:
    """Whatever is drawn and whatever it is called; without a point it is a sentence."""
    chart = Chart(word, word, word, [Line(word, "a", sorted(points))], bars=list(bars), bars_label=word)
    element = ElementTree.fromstring(drawn(chart))  # noqa: S314 - of our own making
    assert element.tag == ("figure" if points else "p")


def test_each_nine_is_as_far_as_the_one_before() -> None:
    """p90, p99 and p99.9 stand at equal distances."""
    points = curve_of(lambda q: q, [90, 99, 99.9])
    assert [x for x, _ in points] == pytest.approx([1, 2, 3])
