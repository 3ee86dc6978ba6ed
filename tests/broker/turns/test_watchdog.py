"""Every clock of a turn, alone and together."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.config.tree import Turn as TurnLimits
from broker.turns.turn import Turn
from broker.turns.turns import INTERRUPT_REPEAT_S
from broker.turns.watchdog import INTERRUPT_DEADLINE_S, INTERRUPT_HELD_S, limits, overdue, wake_times
from protocol.codes import FailureReason as Reason
from tests.soak import size

CONFIG = TurnLimits(first_token_timeout_s=120, idle_timeout_s=600, timeout_s=3600)


def turn(**fields: Any) -> Turn:
    made = Turn("m-9", b"", "hello", "tab", received_at=90.0)
    made.written_at = made.last_frame_at = 100.0
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def why(made: Turn | None, now: float, *, has_prompts: bool = False) -> Reason | None:
    return overdue(made, CONFIG, now, has_prompts=has_prompts)


def test_nothing_runs_nothing_is_late() -> None:
    """Without a turn, or with one that waits in the queue, no clock runs."""
    assert overdue(None, CONFIG, 1e9, has_prompts=False) is None
    assert wake_times(None, CONFIG, has_prompts=False) == []
    queued = turn(written_at=None, last_frame_at=None)
    assert why(queued, 1e9) is None
    assert wake_times(queued, CONFIG, has_prompts=False) == []


@pytest.mark.parametrize(
    ("fields", "at", "reason"),
    [
        ({}, 220.0, Reason.FIRST_TOKEN_TIMEOUT),
        ({"last_frame_at": 219.0}, 220.0, Reason.FIRST_TOKEN_TIMEOUT),
        ({"first_delta_at": 110.0}, 700.0, Reason.IDLE_TIMEOUT),
        ({"first_delta_at": 110.0, "last_frame_at": None}, 700.0, Reason.IDLE_TIMEOUT),
        ({"first_delta_at": 110.0, "last_frame_at": 1000.0}, 1600.0, Reason.IDLE_TIMEOUT),
        ({"first_delta_at": 110.0, "last_frame_at": 3600.0}, 3700.0, Reason.TURN_TIMEOUT),
        ({"interrupt_asked_at": 101.0}, 101.0 + INTERRUPT_HELD_S, Reason.INTERRUPTED),
        ({"interrupt_asked_at": 101.0, "interrupt_sent_at": 109.0}, 109.0 + INTERRUPT_DEADLINE_S, Reason.INTERRUPTED),
    ],
)
def test_each_clock_fires_at_its_time_and_not_before(fields: dict[str, Any], at: float, reason: Reason) -> None:
    """First token, silence, the whole turn, an interrupt that is held or ends nothing."""
    made = turn(**fields)
    assert why(made, at - 0.001) is None
    assert why(made, at) is reason
    assert at in wake_times(made, CONFIG, has_prompts=False)


def test_of_several_the_earliest_is_the_reason() -> None:
    """A broker that looked away for an hour names what came first."""
    made = turn(first_delta_at=110.0, interrupt_asked_at=650.0, interrupt_sent_at=650.0)
    assert why(made, 1e6) is Reason.INTERRUPTED
    assert why(turn(), 1e6) is Reason.FIRST_TOKEN_TIMEOUT
    assert why(turn(first_delta_at=110.0), 1e6) is Reason.IDLE_TIMEOUT


def test_a_prompt_stops_the_clocks_of_waiting() -> None:
    """While a person thinks neither the first token nor silence counts; the whole turn and an interrupt do."""
    assert why(turn(), 3699.0, has_prompts=True) is None
    assert why(turn(first_delta_at=110.0), 3699.0, has_prompts=True) is None
    assert why(turn(), 3700.0, has_prompts=True) is Reason.TURN_TIMEOUT
    asked = turn(interrupt_asked_at=101.0, interrupt_sent_at=101.0)
    assert why(asked, 101.0 + INTERRUPT_DEADLINE_S, has_prompts=True) is Reason.INTERRUPTED


def test_the_broker_wakes_to_repeat_an_interrupt() -> None:
    """After the first interrupt it looks again half a second later, after the second only at the deadline."""
    once = turn(interrupt_asked_at=101.0, interrupt_sent_at=101.0, interrupts_sent=1)
    twice = turn(interrupt_asked_at=101.0, interrupt_sent_at=101.0, interrupts_sent=2)
    assert 101.0 + INTERRUPT_REPEAT_S in wake_times(once, CONFIG, has_prompts=False)
    assert 101.0 + INTERRUPT_REPEAT_S not in wake_times(twice, CONFIG, has_prompts=False)


TIMES = st.none() | st.floats(100, 5000)


@given(TIMES, TIMES, TIMES, st.booleans(), st.floats(100, 10_000))
@settings(max_examples=size(37, 150), deadline=None)
def test_who_sleeps_until_the_next_time_misses_nothing(
    delta: float | None, asked: float | None, sent: float | None, has_prompts: bool, now: float
) -> None:
    """A turn is overdue exactly from the earliest of its wake times on, the repeat of an interrupt apart."""
    made = turn(first_delta_at=delta, interrupt_asked_at=asked, interrupt_sent_at=sent, interrupts_sent=2)
    times = [at for at, _ in limits(made, CONFIG, has_prompts=has_prompts)]
    assert wake_times(made, CONFIG, has_prompts=has_prompts) == times
    assert (why(made, now, has_prompts=has_prompts) is not None) == (min(times) <= now)
