"""One accepted message, from its frame to its end: the states, the table, and what is noted on the way.

Pure: times are seconds of a monotonic clock.  Owner: ``broker.turns.turns``.  Callers: ``broker.sessions.session``
and ``broker.sessions.interpreter`` note what they see, ``broker.turns.watchdog`` and ``broker.turns.endings`` read.
"""

from dataclasses import dataclass
from enum import StrEnum

from protocol.codes import Applied
from protocol.content import Content


class TurnState(StrEnum):
    """Where a turn stands."""

    QUEUED = "queued"
    WRITTEN = "written"
    RUNNING = "running"
    STREAMING = "streaming"
    COMPLETED = "completed"
    FAILED = "failed"


class TurnEvent(StrEnum):
    """What happens to a turn."""

    WRITE = "write"
    FRAME = "frame"
    DELTA = "delta"
    RESULT = "result"
    FAIL = "fail"


S, E = TurnState, TurnEvent
TRANSITIONS: dict[tuple[TurnState, TurnEvent], TurnState] = {
    (S.QUEUED, E.WRITE): S.WRITTEN,
    (S.QUEUED, E.FAIL): S.FAILED,
    (S.WRITTEN, E.FRAME): S.RUNNING,
    (S.WRITTEN, E.DELTA): S.STREAMING,
    (S.WRITTEN, E.RESULT): S.COMPLETED,
    (S.WRITTEN, E.FAIL): S.FAILED,
    (S.RUNNING, E.FRAME): S.RUNNING,
    (S.RUNNING, E.DELTA): S.STREAMING,
    (S.RUNNING, E.RESULT): S.COMPLETED,
    (S.RUNNING, E.FAIL): S.FAILED,
    (S.STREAMING, E.FRAME): S.STREAMING,
    (S.STREAMING, E.DELTA): S.STREAMING,
    (S.STREAMING, E.RESULT): S.COMPLETED,
    (S.STREAMING, E.FAIL): S.FAILED,
}
"""The whole life of a turn; a pair that is missing is a bug in the session."""

APPLIED = {S.QUEUED: Applied.NO, S.WRITTEN: Applied.UNKNOWN, S.RUNNING: Applied.YES, S.STREAMING: Applied.YES}


@dataclass(slots=True)
class Turn:
    """One accepted message.  Times are monotonic seconds, None until they happen.

    A steered message lives the same life: written while another turn runs, it waits in the CLI until that one takes it
    in (``is_taken``) or until it gets a turn of its own.
    """

    id: str
    line: bytes
    content: Content
    by: str
    received_at: float
    state: TurnState = TurnState.QUEUED
    written_at: float | None = None
    first_frame_at: float | None = None
    first_delta_at: float | None = None
    last_frame_at: float | None = None
    ttft_s: float | None = None
    overhead_s: float = 0.0
    frames: int = 0
    first_seq: int = 0
    is_noted_waiting: bool = False
    """The journal says that no CLI was given it: that has to change before one is."""
    is_initialized: bool = False
    is_awaited: bool = False
    """Somebody waits for its first token: it is counted as such."""
    is_taken: bool = False
    """The CLI has said that the message is part of the turn that runs there."""
    is_over: bool = False
    """The CLI has said that it is done with the message."""
    assistant_error: str | None = None
    interrupt_asked_at: float | None = None
    interrupt_sent_at: float | None = None
    interrupts_sent: int = 0

    def advance(self, event: TurnEvent) -> None:
        """Follow the table; the only place that assigns ``state``."""
        self.state = TRANSITIONS[self.state, event]
