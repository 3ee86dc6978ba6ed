"""What a load's meter counts, how it judges the generator, and the line it gives while it runs."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.clock import now
from bench.report import Subject
from bench.tenant import TenantFailed, Turn
from bench.traffic.health import CPU_SHARE, LAG_P99_S, SLIP_P99_S, Health
from bench.traffic.meter import REASONS, Meter, reason_of
from bench.traffic.progress import Progress


def turn(sent_at: float, first: float = 0.25) -> Turn:
    """A turn of two deltas, ``first`` seconds after it was sent and half a second later."""
    made = Turn(sent_at)
    made.first_delta_at, made.last_delta_at, made.ended_at = sent_at + first, sent_at + first + 0.5, sent_at + 1
    made.deltas, made.gaps = 2, [0.5]
    return made


def test_latency_counts_from_when_the_message_was_due() -> None:
    """A message sent 2 s late has its 2 s in ttft, and not in ttft_service."""
    meter = Meter(Subject("x"))
    due = meter.began_at + 1
    meter.turn(due, turn(due + 2))
    assert meter.series["ttft"].percentile(50) == pytest.approx(2.25)
    assert meter.series["ttft_service"].percentile(50) == pytest.approx(0.25)
    assert meter.series["worst_gap"].percentile(50) == 0.5


def test_the_warm_up_is_not_counted_and_its_failures_are() -> None:
    """What was due before counts nowhere; who gives up then takes load away, so that is told."""
    meter = Meter(Subject("x"), warmup_s=10)
    meter.turn(meter.began_at + 9, turn(now()))
    meter.failed(TenantFailed("no", "queue_full"))
    assert (meter.turns, len(meter.series["ttft"]), meter.failures) == (0, 0, {"queue_full": 1})
    meter.turn(meter.began_at + 10, turn(now()))
    assert meter.turns == 1


@given(st.lists(st.text(min_size=1, max_size=3), max_size=200))
def test_reasons_are_bounded(reasons: list[str]) -> None:
    """A broker that names a new reason each time fills no memory; nothing goes uncounted."""
    meter = Meter(Subject("x"))
    for reason in reasons:
        meter.failed(TenantFailed("no", reason))
    assert len(meter.failures) <= REASONS + 1
    assert sum(meter.failures.values()) == len(reasons)


def test_a_reason_cannot_move_the_cursor() -> None:
    """The word is of somebody else's server, and goes to a terminal."""
    meter = Meter(Subject("x"))
    meter.failed(TenantFailed("no", "a\x1b[2J\n" + "b" * 100))
    (reason,) = meter.failures
    assert reason.startswith("a?[2J?bb")
    assert len(reason) == 60


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TenantFailed("closed", "closed_4004"), "closed_4004"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "connect_connectionrefused"),
        (TimeoutError(), "connect_timeout"),
    ],
)
def test_a_failure_has_one_word(error: TenantFailed | OSError, reason: str) -> None:
    """The broker's code, or what kind of connection failure it was."""
    assert reason_of(error) == reason


def test_intervals_add_up() -> None:
    """Each line of the timeline is of its own interval alone."""
    meter = Meter(Subject("x"))
    meter.rate = lambda at: 5.0
    for number in range(3):
        for _ in range(number):
            meter.turn(now(), turn(now()))
        meter.cut()
    meter.failed(TenantFailed("no", "queue_full"))
    meter.conclude()
    lines = meter.subject.intervals
    assert [line["turns"] for line in lines] == [0, 1, 2, 0]
    assert [line["failures"] for line in lines] == [0, 0, 0, 1]
    assert "ttft_p95" not in lines[0]
    assert lines[2]["rate"] == 5.0


@pytest.mark.parametrize(
    ("health", "count"),
    [
        (Health(None, None, 0.0), 0),
        (Health(LAG_P99_S, SLIP_P99_S, CPU_SHARE), 0),
        (Health(LAG_P99_S * 2, None, 0.0), 1),
        (Health(LAG_P99_S * 2, SLIP_P99_S * 2, 1.0), 3),
    ],
)
def test_a_generator_that_was_the_limit_says_why(health: Health, count: int) -> None:
    """One reason for each of lag, slip and share of a core that is beyond its limit."""
    assert len(health.reasons()) == count


def test_a_line_of_progress() -> None:
    """Time, sessions, turns, rolling figures, failures with their most frequent reasons."""
    meter = Meter(Subject("x"), warmup_s=60)
    progress = Progress(meter, 100.0)
    assert "warm-up" in progress.line()
    meter.counts_from = meter.began_at
    for _ in range(4):
        meter.turn(now(), turn(now()))
    meter.failed(TenantFailed("no", "queue_full"))
    with meter.present():
        line = progress.line()
    for part in ("/100 s", "1 open", "4 turns", "ttft p50 250.", "1 failed (queue_full 1)"):
        assert part in line
