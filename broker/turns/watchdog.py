"""When a turn has taken too long: first token, silence, the whole turn, an interrupt that ends nothing.

Pure: ``now`` is seconds of a monotonic clock.  Caller: ``broker.sessions.session``.  A pending permission prompt stops
the clocks for the first token and for silence: a person is thinking.
"""

from broker.config.tree import Turn as TurnLimits
from broker.turns.turn import Turn
from broker.turns.turns import INTERRUPT_REPEAT_S
from protocol.codes import FailureReason

INTERRUPT_DEADLINE_S = 5.0
"""From an interrupt written to the turn's ``result``; the process is killed after it."""
INTERRUPT_HELD_S = 10.0
"""Longest wait of an interrupt for its turn's ``system/init``."""


def limits(turn: Turn, config: TurnLimits, *, has_prompts: bool) -> list[tuple[float, FailureReason]]:
    """The times at which ``turn`` is given up, and why; monotonic seconds."""
    if turn.written_at is None:
        return []
    found = [(turn.written_at + config.timeout_s, FailureReason.TURN_TIMEOUT)]
    if turn.interrupt_sent_at is not None:
        found.append((turn.interrupt_sent_at + INTERRUPT_DEADLINE_S, FailureReason.INTERRUPTED))
    elif turn.interrupt_asked_at is not None:
        found.append((turn.interrupt_asked_at + INTERRUPT_HELD_S, FailureReason.INTERRUPTED))
    if not has_prompts:
        if turn.first_delta_at is None:
            found.append((turn.written_at + config.first_token_timeout_s, FailureReason.FIRST_TOKEN_TIMEOUT))
        found.append(((turn.last_frame_at or turn.written_at) + config.idle_timeout_s, FailureReason.IDLE_TIMEOUT))
    return found


def overdue(turn: Turn | None, config: TurnLimits, now: float, *, has_prompts: bool) -> FailureReason | None:
    """Why ``turn`` is given up now, or None."""
    if turn is None:
        return None
    past = [limit for limit in limits(turn, config, has_prompts=has_prompts) if limit[0] <= now]
    return min(past)[1] if past else None


def wake_times(turn: Turn | None, config: TurnLimits, *, has_prompts: bool) -> list[float]:
    """When to look again: at each limit, and when an interrupt is to be repeated."""
    if turn is None:
        return []
    times = [at for at, _ in limits(turn, config, has_prompts=has_prompts)]
    if turn.interrupt_sent_at is not None and turn.interrupts_sent < 2:
        times.append(turn.interrupt_sent_at + INTERRUPT_REPEAT_S)
    return times
