"""What ``bench peers`` makes of measurements: figures, ratios, targets, the order of steps.  Pure parts."""

import argparse
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.peers import judgement
from bench.peers.figures import bound_by, figures, medians
from bench.peers.job import Kind, Measured
from bench.peers.judgement import TARGETS, ratios, targets
from bench.peers.order import steps
from bench.peers.scenario import FULL, QUICK, Scenario, loads
from bench.peers.subject import Subject
from bench.peers.tables import ratio_table, tables
from bench.ratios import RatioBound, number


def measured(**fields: float | dict[str, float]) -> Measured:
    """A second of measurement."""
    return Measured(**{"wall_s": 1.0, "server_cpu_s": 0.5, **fields})  # type: ignore[arg-type]


def test_cpu_is_per_frame_that_was_delivered() -> None:
    """Half a second of the server for 10,000 frames are 50 us each."""
    found = figures(Kind.BURST, measured(frames=10_000, receiver_cpu_s=0.1), None)
    assert found == {"frames_per_s": 10_000.0, "cpu_us": 50.0, "receiver_us": 10.0}
    assert "cpu_us" not in figures(Kind.BURST, Measured(frames=1, wall_s=1.0), None)


def test_what_is_added_is_over_direct_pipes() -> None:
    """Each statistic less the floor's; the floor itself adds nothing that could be told."""
    floor = measured(frames=1, latency_ms={"p50": 0.1, "p99": 1.0, "mean": 0.2, "max": 2.0})
    broker = measured(frames=1, latency_ms={"p50": 0.3, "p99": 0.9, "mean": 0.25, "max": 3.0})
    found = figures(Kind.PACED, broker, floor)
    assert found["added_p50_ms"] == pytest.approx(0.2)
    assert found["added_p99_ms"] == pytest.approx(-0.1)
    assert not any(name.startswith("added") for name in figures(Kind.PACED, floor, floor))


def test_starts_memory_and_handshakes_have_their_figures() -> None:
    """Percentiles of starts, growth by connections, counts by time."""
    starts = figures(Kind.CONNECT, Measured(connect_ms=[1.0, 2.0, 9.0], first_delta_ms=[3.0]), None)
    assert (starts["connect_p50_ms"], starts["connect_p99_ms"], starts["first_delta_p50_ms"]) == (2.0, 9.0, 3.0)
    assert figures(Kind.MEMORY, measured(memory_bytes=65536, connections=2), None) == {"memory_kib": 32.0}
    assert figures(Kind.HANDSHAKES, measured(connections=2000), None) == {"handshakes_per_s": 2000.0, "cpu_us": 250.0}


@pytest.mark.parametrize(
    ("kind", "one", "told"),
    [
        (Kind.BURST, {"frames": 5}, []),
        (Kind.BURST, {"frames": 5, "busiest_generator": 0.95}, ["the generator"]),
        (Kind.BURST, {"frames": 5, "receiver_cpu_s": 0.95}, ["the receiver"]),
        (Kind.PACED, {"frames": 5, "lag_p99_ms": 40.0}, ["the receiver"]),
        (Kind.PACED, {"frames": 90, "expected": 100.0}, ["a pace that was not kept"]),
        (Kind.PACED, {"frames": 99, "expected": 100.0, "machine_busy": 0.99}, ["the machine"]),
    ],
)
def test_a_run_says_what_it_was_bound_by(kind: Kind, one: dict[str, float], told: list[str]) -> None:
    """Whoever was the limit but the server is named."""
    assert bound_by(kind, measured(**one)) == told


def test_a_ratio_is_made_within_a_round() -> None:
    """The median of the rounds' ratios, not the ratio of medians; what was not measured has none."""
    ours = [{"cpu_us": 1.0}, {"cpu_us": 20.0}, {"cpu_us": 3.0}]
    theirs = [{"cpu_us": 2.0}, {"cpu_us": 10.0}, {"cpu_us": 30.0}]
    found = ratios({("burst", Subject.BROKER): ours, ("burst", Subject.WEBSOCKETD): theirs})
    assert found == {"burst_vs_websocketd": 0.5}


def test_what_drowns_in_noise_has_no_ratio() -> None:
    """A round in which either of the two seems to have added nothing is left out, and with it perhaps the ratio."""
    ours = [{"added_p99_ms": 1.0}, {"added_p99_ms": -1.0}, {"added_p99_ms": 3.0}]
    theirs = [{"added_p99_ms": -0.2}, {"added_p99_ms": 2.0}, {"added_p99_ms": 2.0}]
    found = ratios({("latency", Subject.BROKER): ours, ("latency", Subject.WEBSOCKETD): theirs})
    assert found == {"latency_added_p99_vs_websocketd": 1.5}
    assert ratios({("latency", Subject.BROKER): ours[:2], ("latency", Subject.WEBSOCKETD): theirs[:2]}) == {}


def test_growth_is_over_the_fewest_sessions() -> None:
    """The largest of the others by the first; the broker's own numbers stand as they are."""
    found = ratios(
        {
            ("spread_100", Subject.BROKER): [{"cpu_us": 11.0, "p99_ms": 9.0}],
            ("spread_10", Subject.BROKER): [{"cpu_us": 10.0, "p99_ms": 6.0}],
            ("spread_20", Subject.BROKER): [{"cpu_us": 14.0, "p99_ms": 3.0}],
            ("idle", Subject.BROKER): [{"memory_kib": 20.0}],
            ("handshakes", Subject.BROKER): [{"handshakes_per_s": 900.0}],
        }
    )
    assert found == {"spread_cpu": 1.4, "spread_p99": 1.5, "idle_kib": 20.0, "handshakes_per_s": 900.0}


def test_only_what_is_measured_has_a_target() -> None:
    """A run of a part is not held against the rest; without the broker there is nothing to hold."""
    everything = [load.name for load in loads(FULL, list(Scenario))]
    assert targets(everything, list(Subject)) == list(TARGETS)
    assert [str(one) for one in targets(["burst", "paced"], [Subject.BROKER, Subject.WEBSOCKETD])] == [
        "burst_vs_websocketd <= 0.3", "paced_vs_websocketd <= 0.85",
    ]  # fmt: skip
    assert targets(["idle", "spread_10"], [Subject.BROKER]) == [RatioBound("idle_kib", "<=", 32.0)]
    assert targets(everything, [Subject.WEBSOCKETD]) == []
    assert {target.series for target in TARGETS} <= judgement.NAMES


def test_a_verdict_is_ok_or_missed() -> None:
    """What was not measured is missed."""
    bound = RatioBound.parse("burst_vs_websocketd<=0.3")
    assert bound.verdict({"burst_vs_websocketd": 0.25}) == "ok     burst_vs_websocketd <= 0.3: 0.25"
    assert bound.verdict({"burst_vs_websocketd": 0.5}).startswith("MISSED")
    assert bound.verdict({}) == "MISSED burst_vs_websocketd <= 0.3: not measured"
    assert RatioBound.parse("handshakes_per_s > 1000").holds({"handshakes_per_s": 1001.0})
    for wrong in ("burst", "burst<=0.3ms", "burst=1", "burst<=-1"):
        with pytest.raises(ValueError, match="not of the form"):
            RatioBound.parse(wrong)


@given(st.integers(0, 2**32), st.integers(1, 4), st.sets(st.sampled_from(Subject)))
def test_every_round_has_each_pair_once_in_an_order_of_the_seed(seed: int, rounds: int, subjects: set[Subject]) -> None:
    """No pair is missed or repeated, rounds follow each other, and the same seed is the same order."""
    rows = loads(QUICK, [Scenario.BURST, Scenario.PACED, Scenario.MEMORY])
    plan = list(steps(rows, subjects, rounds, seed))
    pairs = Counter((step.load.name, step.subject) for step in plan)
    assert pairs == {(row.name, one): rounds for row in rows for one in row.subjects if one in subjects}
    assert [step.round for step in plan] == sorted(step.round for step in plan)
    assert plan == list(steps(rows, subjects, rounds, seed))


def test_seeds_differ() -> None:
    """The subjects do not meet in one order for ever."""
    rows = loads(QUICK, [Scenario.BURST])
    orders = {tuple(step.subject for step in steps(rows, list(Subject), 1, seed)) for seed in range(20)}
    assert len(orders) > 5


def test_tables_tell_what_was_measured() -> None:
    """A table for each scenario that was, a dash for a figure that was not, and what a row was bound by."""
    rows = loads(QUICK, [Scenario.BURST, Scenario.CONNECT])
    found = {
        ("burst", Subject.DIRECT): medians([{"frames_per_s": 1.0}, {"frames_per_s": 2001.0}, {"frames_per_s": 3e6}])
    }
    (text,) = tables(rows, found, {("burst", Subject.DIRECT): ["the receiver"]})
    assert text.startswith("\nburst\n")
    assert text.splitlines()[-1].split() == [
        "direct", "one", "session,", "20000", "lines", "-", "2,001", "-", "the", "receiver",
    ]  # fmt: skip
    assert [number(value) for value in (1234.5, 123.45, 0.01234)] == ["1,234", "123.5", "0.0123"]


def test_ratios_stand_side_by_side() -> None:
    """A line for each comparison that was made, a column for each peer that was met."""
    text = ratio_table({"burst_vs_websocketd": 0.25, "burst_vs_plain": 0.125, "paced_vs_plain": 0.5, "idle_kib": 9.0})
    assert text is not None
    assert [line.split() for line in text.splitlines()[4:]] == [
        ["burst", "burst", "cpu_us", "0.25", "0.125"],
        ["paced", "paced", "cpu_us", "-", "0.5"],
    ]
    assert ratio_table({"idle_kib": 9.0}) is None


def test_sizes_come_from_the_flags() -> None:
    """What is not given keeps its default, small with ``--quick``."""
    from bench.peers.command import add_arguments, sizes_of  # noqa: PLC0415 - the rest of this file is pure

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    sizes = sizes_of(parser.parse_args(["--quick", "--lines=7", "--spread=30,5"]))
    assert (sizes.lines, sizes.spread, sizes.sessions) == (7, (5, 30), QUICK.sessions)
    assert sizes_of(parser.parse_args([])) == FULL
