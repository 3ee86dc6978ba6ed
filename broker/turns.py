"""The life of a turn: accepted, written, seen, ended; exactly one terminal frame for each accepted message.

Pure: no I/O; ``now`` is seconds of a monotonic clock.  Owner: one ``broker.session.Session``.  One turn runs at a time;
queued means not written.
"""

import hashlib
from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from msgspec import UNSET

from protocol.cli import Result
from protocol.codes import Applied, ErrorCode, FailureReason, UpstreamError
from protocol.errors import ClientError
from protocol.frames import Content, TurnCompleted, TurnFailed

REMEMBERED_IDS = 1024
"""Finished ids per session that still answer a repeat with their outcome."""

INTERRUPT_REPEAT_S = 0.5
"""An interrupt without a ``result`` is sent once more: a CLI can answer success and lose it."""


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
    """One accepted message.  Times are monotonic seconds, None until they happen."""

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
    is_initialized: bool = False
    assistant_error: str | None = None
    interrupt_asked_at: float | None = None
    interrupt_sent_at: float | None = None
    interrupts_sent: int = 0

    def advance(self, event: TurnEvent) -> None:
        """Follow the table; the only place that assigns ``state``."""
        self.state = TRANSITIONS[self.state, event]


@dataclass(frozen=True, slots=True)
class Repeat:
    """The id was accepted before, with the same content."""

    id: str
    outcome: Literal["completed", "failed"] | None


@dataclass(slots=True)
class _Record:
    digest: bytes
    outcome: Literal["completed", "failed"] | None = None


def digest(content: bytes) -> bytes:
    """The hash by which a repeat is told from a conflict."""
    return hashlib.sha256(content).digest()


class Turns:
    """The running turn, the queue behind it, and the ids that were used."""

    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued
        self._queue: deque[Turn] = deque()
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self.current: Turn | None = None
        self.is_closed = False
        """The broker is stopping: nothing new is accepted."""
        self._cost_usd = 0.0
        self.completed = 0
        self.has_written = False
        """A CLI was told something that it could remember."""

    @property
    def queued_ids(self) -> list[str]:
        """Ids that wait, in order."""
        return [turn.id for turn in self._queue]

    @property
    def is_idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return self.current is None and not self._queue

    def submit(self, turn: Turn, content_digest: bytes) -> int | Repeat:
        """Accept a message: how many are before it, or the repeat that it is.

        Raises ``ClientError``: ``id_conflict`` (same id, other content), ``queue_full`` or ``draining``.
        """
        record = self._records.get(turn.id)
        if record is not None:
            if record.digest != content_digest:
                raise ClientError(ErrorCode.ID_CONFLICT, "this id was used for other content", ref=turn.id)
            return Repeat(turn.id, record.outcome)
        if self.is_closed:
            raise ClientError(ErrorCode.DRAINING, "the broker is stopping", ref=turn.id)
        is_next = self.current is None and not self._queue
        if len(self._queue) >= self._max_queued and not is_next:
            raise ClientError(ErrorCode.QUEUE_FULL, f"turn.queue is {self._max_queued}", ref=turn.id)
        self._records[turn.id] = _Record(content_digest)
        self._forget_old()
        before = len(self._queue) + (self.current is not None)
        self._queue.append(turn)
        return before

    def start_next(self, now: float) -> Turn | None:
        """Make the oldest queued turn the running one, to be written now; None when one runs or none waits."""
        if self.current is not None or not self._queue:
            return None
        self.current = turn = self._queue.popleft()
        turn.advance(TurnEvent.WRITE)
        turn.written_at = turn.last_frame_at = now
        self.has_written = True
        return turn

    def cancel(self, message_id: str) -> TurnFailed:
        """Withdraw a queued message; raises ``already_started`` or ``unknown_message``."""
        for turn in self._queue:
            if turn.id == message_id:
                self._queue.remove(turn)
                return self._fail(turn, FailureReason.CANCELLED, "withdrawn by a client")
        if message_id in self._records:
            raise ClientError(ErrorCode.ALREADY_STARTED, "the message runs or has ended", ref=message_id)
        raise ClientError(ErrorCode.UNKNOWN_MESSAGE, "no such message", ref=message_id)

    def ask_interrupt(self, now: float) -> bool:
        """Ask the running turn to stop; False when none runs.  It is held until ``is_interrupt_due``."""
        if self.current is None:
            return False
        if self.current.interrupt_asked_at is None:
            self.current.interrupt_asked_at = now
        return True

    def is_interrupt_due(self, now: float) -> bool:
        """Whether an interrupt is to be written now: never before the turn's ``system/init`` (sent in one burst with
        the message the CLI answers success and loses it), and once more when no ``result`` followed."""
        turn = self.current
        if turn is None or turn.interrupt_asked_at is None or not turn.is_initialized:
            return False
        if turn.interrupt_sent_at is None:
            return True
        return turn.interrupts_sent < 2 and now - turn.interrupt_sent_at >= INTERRUPT_REPEAT_S

    def interrupt_written(self, now: float) -> None:
        """Note that the interrupt went out."""
        assert self.current is not None
        self.current.interrupt_sent_at = now
        self.current.interrupts_sent += 1

    def complete(self, result: Result, now: float) -> TurnCompleted:
        """The ``result`` came: end the running turn, or one that the CLI began by itself."""
        cost = self._cost_difference(result)
        turn, self.current = self.current, None
        if turn is None:
            return TurnCompleted(
                id=None, subtype=result.subtype, is_error=result.is_error, error=upstream_error(result, None),
                stopped=False, ttft_ms=None, queue_ms=0.0, overhead_ms=0.0, duration_ms=0.0, frames=0,
                usage=None if result.usage is UNSET else result.usage, cost_usd=cost, origin="cli",
            )  # fmt: skip
        turn.advance(TurnEvent.RESULT)
        self._records[turn.id].outcome = "completed"
        self.completed += 1
        stopped = turn.interrupts_sent > 0 and result.subtype == "error_during_execution"
        return TurnCompleted(
            id=turn.id,
            subtype=result.subtype,
            is_error=result.is_error,
            error=None if stopped else upstream_error(result, turn.assistant_error),
            stopped=stopped,
            ttft_ms=None if turn.ttft_s is None else round(turn.ttft_s * 1e3, 3),
            queue_ms=round(((turn.written_at or now) - turn.received_at) * 1e3, 3),
            overhead_ms=round(turn.overhead_s * 1e3, 3),
            duration_ms=round((now - turn.received_at) * 1e3, 3),
            frames=turn.frames,
            usage=None if result.usage is UNSET else result.usage,
            cost_usd=cost,
        )

    def fail_current(self, reason: FailureReason, detail: str) -> TurnFailed | None:
        """End the running turn without its ``result``; None when none runs."""
        turn, self.current = self.current, None
        return None if turn is None else self._fail(turn, reason, detail)

    def fail_queued(self, reason: FailureReason, detail: str) -> list[TurnFailed]:
        """End every queued message: none was written, all may be sent again."""
        turns = list(self._queue)
        self._queue.clear()
        return [self._fail(turn, reason, detail) for turn in turns]

    def _fail(self, turn: Turn, reason: FailureReason, detail: str) -> TurnFailed:
        applied = APPLIED[turn.state]
        turn.advance(TurnEvent.FAIL)
        self._records[turn.id].outcome = "failed"
        return TurnFailed(turn.id, reason, applied, retryable=applied is Applied.NO, detail=detail)

    def _cost_difference(self, result: Result) -> float | None:
        total = result.total_cost_usd
        if total is None:
            return None
        before, self._cost_usd = self._cost_usd, total
        return round(total - before if total >= before else total, 9)

    def _forget_old(self) -> None:
        while len(self._records) > REMEMBERED_IDS:
            oldest = next((key for key, record in self._records.items() if record.outcome is not None), None)
            if oldest is None:
                return
            del self._records[oldest]


_BY_STATUS = {
    401: UpstreamError.AUTH,
    403: UpstreamError.AUTH,
    429: UpstreamError.RATE_LIMITED,
    529: UpstreamError.OVERLOADED,
}
_BY_NAME = {
    "authentication_failed": UpstreamError.AUTH,
    "oauth_org_not_allowed": UpstreamError.AUTH,
    "rate_limit": UpstreamError.RATE_LIMITED,
    "overloaded": UpstreamError.OVERLOADED,
}
_BY_SUBTYPE = {"error_max_turns": UpstreamError.MAX_TURNS, "error_max_budget_usd": UpstreamError.MAX_BUDGET}


def upstream_error(result: Result, assistant_error: str | None) -> UpstreamError | None:
    """What a ``result`` with ``is_error`` complains of; an API failure arrives with subtype ``success``."""
    if not result.is_error and not result.subtype.startswith("error"):
        return None
    if result.subtype in _BY_SUBTYPE:
        return _BY_SUBTYPE[result.subtype]
    if result.api_error_status in _BY_STATUS:
        return _BY_STATUS[result.api_error_status]
    return _BY_NAME.get(assistant_error or "", UpstreamError.ERROR)
