"""The ends of a session's messages: each gets one terminal frame, which is published, counted and logged.

Synchronous.  Owner: one ``broker.sessions.session.Session``.  Which messages end, and how, is decided in
``broker.turns.turns``.
"""

import time
from collections.abc import Callable
from typing import Protocol

import structlog

from broker.errors import BrokerError, ProcessError
from broker.metrics import Metrics
from broker.processes.process import Process
from broker.sessions.exchange import Exchange
from broker.sessions.journal import Journal
from broker.turns.message_ids import Outcome
from broker.turns.turn import Turn
from broker.turns.turns import Ended, Turns
from protocol.cli import Result
from protocol.codes import FailureReason
from protocol.errors import ClientError
from protocol.frames import ServerFrame, TurnCompleted, TurnFailed

log = structlog.get_logger(__name__)


class Ending(Protocol):
    """What the ends of messages need of their session."""

    key: tuple[str, str, str]
    turns: Turns
    exchange: Exchange
    journal: Journal
    process: Process | None
    pool: str
    start: str
    last_terminal_at: float
    wake_task: Callable[[], None]
    on_awaiting_first_token: Callable[[int], None]

    def publish(self, frame: ServerFrame) -> int:
        """Number, log and send a session event."""

    def announce(self, turn: Turn) -> None:
        """Tell everybody that the CLI works on a message from now on."""


class Terminals:
    """Ends messages, and keeps count of those whose first token somebody waits for."""

    def __init__(self, session: Ending, metrics: Metrics) -> None:
        self._session = session
        self._metrics = metrics

    # -- the first token --

    def await_first_token(self, turn: Turn) -> None:
        """The CLI works on the turn from now on."""
        turn.is_awaited = True
        self._session.on_awaiting_first_token(+1)

    def first_token_delivered(self, turn: Turn, seen_at: float) -> None:
        """The readers have been given the turn's first delta, which was read at ``seen_at`` (monotonic seconds)."""
        now = time.monotonic()
        turn.ttft_s = now - turn.received_at
        turn.overhead_s += now - seen_at
        self._metrics.first_token(self._session.pool, self._session.start, turn.ttft_s)
        self._awaits_no_more(turn)

    def _awaits_no_more(self, turn: Turn) -> None:
        if turn.is_awaited:
            turn.is_awaited = False
            self._session.on_awaiting_first_token(-1)

    # -- ends --

    def complete(self, result: Result) -> None:
        """A ``result`` came: whatever it ends, ends; a steered message that is left is the next turn."""
        before = self._session.turns.current
        self.publish(self._session.turns.complete(result, time.monotonic()))
        self._go_on(before)

    def withdraw(self, message_id: str, detail: str) -> None:
        """The CLI has agreed to forget a steered message, which may be the running turn by now."""
        before = self._session.turns.current
        withdrawn = self._session.turns.withdraw(message_id, detail, time.monotonic())
        self.publish([] if withdrawn is None else [withdrawn])
        self._go_on(before)

    def _go_on(self, before: Turn | None) -> None:
        """Tell of the turn that the CLI begins without being told, if there is one."""
        turn = self._session.turns.current
        if turn is not None and turn is not before:
            self.await_first_token(turn)
            self._session.announce(turn)

    def fail_running(self, reason: FailureReason, detail: str) -> None:
        """The running turn, and what was steered into it, ends without a ``result``."""
        failed = self._session.turns.fail_running(reason, detail)
        if failed:
            self._session.exchange.withdraw_prompts()
        self.publish(failed)

    def fail_queued(self, reason: FailureReason, detail: str) -> None:
        """Every queued message ends unwritten."""
        self.publish([(frame, None) for frame in self._session.turns.fail_queued(reason, detail)])

    def fail_for(self, error: Exception) -> None:
        """Every message ends where ``error`` is a bug; what is foreseen is told by whoever stops it."""
        if not isinstance(error, BrokerError | ClientError | ProcessError | OSError):
            self.fail_running(FailureReason.INTERNAL, "the session failed")
            self.fail_queued(FailureReason.INTERNAL, "the session failed: nothing was written")

    def publish(self, ended: list[Ended]) -> None:
        """Tell everybody, count it and log it."""
        session = self._session
        session.journal.end([(frame.id, _outcome(frame)) for frame, _ in ended if frame.id is not None])
        for frame, turn in ended:
            session.publish(frame)
            session.last_terminal_at = time.monotonic()
            if turn is not None:
                self._awaits_no_more(turn)
            is_before = turn is None or turn.ttft_s is None
            self._metrics.turn_ended(session.pool, frame, is_before_first_token=is_before)
            self._log(frame)
            session.wake_task()

    def cut_off(self, ended: list[TurnFailed]) -> None:
        """Messages of an earlier run, which ended with it: the first frames of the new log."""
        self.publish([(frame, None) for frame in ended])

    def _log(self, frame: TurnCompleted | TurnFailed) -> None:
        """The one canonical line of a message."""
        session = self._session
        tenant, subject, session_id = session.key
        fields = {name: getattr(frame, name) for name in frame.__struct_fields__ if name not in ("usage", "total")}
        log.info("turn.ended", tenant=tenant, subject=subject, session=session_id, pool=session.pool,
                 start=session.start, pid=session.process.pid if session.process else None, **fields)  # fmt: skip


def _outcome(frame: TurnCompleted | TurnFailed) -> Outcome:
    return "completed" if isinstance(frame, TurnCompleted) else "failed"
