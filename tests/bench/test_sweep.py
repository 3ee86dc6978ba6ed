"""``bench sweep``, ``ramp`` and ``soak``: the knee, the values, and one small run of each."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import EXIT_ASSERTION, main
from bench.bounds import Bound
from bench.knee import Curve, Point, judged
from bench.report import Subject
from bench.traffic.values import MOST, values_of

SHORT = ("--tokens=2", "--itl=1", "--warm=4", "--progress=60")


def point(value: float, holds: bool, generator_bound: bool = False) -> Point:
    """A load and whether it held."""
    return Point(value, 1.0, 0.0, {}, () if holds else ("ttft_p95 < 1 ms: 2 ms",), generator_bound)


@given(st.dictionaries(st.integers(1, 1000), st.booleans(), min_size=1, max_size=30))
def test_the_knee_is_the_largest_that_holds(held: dict[int, bool]) -> None:
    """Whatever the order; with none there is no knee; with one that did not hold below it, the words say so."""
    curve = Curve("rate", ["ttft_p95 < 1 ms"], [point(value, holds) for value, holds in held.items()])
    good = [value for value, holds in held.items() if holds]
    assert (curve.knee.value if curve.knee else None) == (max(good) if good else None)
    words = "\n".join(curve.told())
    assert ("no knee" in words) is (not good)
    assert ("repeat the sweep" in words) is bool(good and any(v < max(good) and not h for v, h in held.items()))


def test_a_knee_below_a_tired_generator_is_doubtful() -> None:
    """When the next value was the generator's limit, the broker's own may be higher."""
    words = Curve("rate", ["b"], [point(1, True), point(2, False, generator_bound=True)]).told()
    assert "the generator was the limit" in "\n".join(words)
    full = Point(2, 1.0, 0.0, {}, ("b",), waited=3)
    assert "3 sessions waited for a place" in "\n".join(Curve("rate", ["b"], [point(1, True), full]).told())


def test_a_point_is_judged_by_bounds_and_failures() -> None:
    """A bound that was not measured does not hold; too many failures are a reason of their own."""
    subject = Subject("x")
    subject.open_series("ttft", "").extend([0.1] * 10)
    bounds = [Bound.parse("ttft_p95<1s")]
    assert judged(1, subject, 0.01, 1.0, bounds, 0.01).holds
    assert judged(1, subject, 0.02, 1.0, bounds, 0.01).broken == ("2.00% failed, at most 1.00%",)
    assert "not measured" in judged(1, Subject("y"), 0.0, 1.0, bounds, 0.01).broken[0]


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=MOST))
def test_a_list_of_values_is_read(values: list[int]) -> None:
    """Ascending and each once."""
    assert values_of(",".join(map(str, values))) == sorted(set(values))


@given(st.integers(1, 1000), st.integers(0, MOST - 1), st.integers(1, 50))
def test_a_range_of_values_is_read(first: int, count: int, step: int) -> None:
    """Both ends are part of it."""
    values = values_of(f"{first / 10}..{(first + count * step) / 10}:{step / 10}")
    assert len(values) == count + 1
    assert values[-1] == pytest.approx((first + count * step) / 10)


@pytest.mark.parametrize("text", ["", "1,", "0", "-1", "x", "5..1", "1..5:0", "nan", "inf", "1..1000", "1..1e9:1e-9"])
def test_what_is_no_list_is_refused(text: str) -> None:
    """Nothing, no number, none above 0, an end before the beginning, too many."""
    with pytest.raises(ValueError, match=r"no number|not above 0|ends before|more than"):
        values_of(text)
    with pytest.raises(SystemExit):
        main(["sweep", "--rates", text])


def test_a_sweep_finds_its_knee(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two loads that hold: the larger one is the knee; the file has a subject and a point for each."""
    file = tmp_path / "sweep.json"
    arguments = ["sweep", "--rates=4,8", "--duration=0.5", "--pause=0", "--assert=ttft_p95<30s", *SHORT]
    assert main([*arguments, "--output", str(file)]) == 0
    document = json.loads(file.read_text())
    assert [one["value"] for one in document["curve"]["points"]] == [4, 8]
    assert document["curve"]["knee"] == 8
    assert [subject["series"]["ttft"]["n"] for subject in document["subjects"]] == [2, 4]
    assert "knee: sessions per second 8" in capsys.readouterr().out


def test_a_sweep_without_a_knee_exits_99_and_ends_early(tmp_path: Path) -> None:
    """Nothing is as fast as that: one load is enough to see it."""
    file = tmp_path / "sweep.json"
    arguments = ["sweep", "--sessions=1,2,3", "--duration=0.2", "--past=1", "--assert=ttft_p50<1us", *SHORT]
    assert main([*arguments, "--output", str(file)]) == EXIT_ASSERTION
    assert len(json.loads(file.read_text())["curve"]["points"]) == 1


def test_a_ramp_tells_its_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From 2 to 10 a second within half a second are 3 sessions, and the timeline has the rate."""
    file = tmp_path / "ramp.json"
    assert main(["ramp", "--from=2", "--to=10", "--over=0.5", *SHORT, "--output", str(file)]) == 0
    (subject,) = json.loads(file.read_text())["subjects"]
    assert subject["series"]["ttft"]["n"] == 3
    assert all(2 <= line["rate"] <= 10 for line in subject["intervals"])
    assert "ttft_p95" in capsys.readouterr().out


def test_a_soak_compares_the_broker_with_itself(tmp_path: Path) -> None:
    """Memory, descriptors, threads before and after, a look in each interval."""
    file = tmp_path / "soak.json"
    arguments = ["soak", "--sessions=2", "--duration=0.6", "--every=0.2", "--think-time=0.05", *SHORT]
    assert main([*arguments, "--output", str(file)]) == 0
    (subject,) = json.loads(file.read_text())["subjects"]
    assert {"fds", "threads", "tasks"} <= set(subject["facts"]["broker at rest, before and after"])
    assert "broker's memory at rest, before and after (MiB)" in subject["facts"]
    assert len(subject["details"]["vitals"]) >= 3
    assert len(subject["intervals"]) >= 2
