"""Interrupts of clients: answered at once, held until the turn has begun, repeated once.

Synchronous.  Owner: one ``broker.sessions.session.Session``.  When an interrupt is due is decided in
``broker.turns.turns``, when it has failed in ``broker.turns.watchdog``.
"""

import time
import uuid
from typing import Any, Protocol

from msgspec import UNSET

from broker.sessions.exchange import Exchange
from broker.sessions.steering import WITHDRAWN, Steering
from broker.sessions.terminals import Terminals
from broker.turns.occupation import Occupation
from broker.turns.turns import Turns
from protocol import cli
from protocol.codes import FailureReason
from protocol.controls import Interrupt


class Stoppable(Protocol):
    """What an interrupt needs of its session."""

    turns: Turns
    terminals: Terminals
    exchange: Exchange
    steering: Steering
    occupation: Occupation
    is_gated: bool

    def write(self, line: bytes) -> None:
        """Queue a line for the CLI."""


class Interrupts:
    """The interrupts of one session."""

    def __init__(self, session: Stoppable) -> None:
        self._session = session

    def ask(self, control: Interrupt) -> dict[str, Any]:
        """Stop the running turn, or what the CLI does by itself, and empty the queue if that is asked for; the receipt
        for the client.

        A steered message that waits in the CLI is still queued there until the CLI has agreed to forget it.
        """
        turns = self._session.turns
        if control.turn is not UNSET and not turns.is_running(control.turn):
            return {"stale": True}
        cancelled = turns.queued_ids if control.cancel_queued else []
        if control.cancel_queued:
            self._session.terminals.fail_queued(FailureReason.CANCELLED, WITHDRAWN)
            self._session.steering.withdraw()
        if turns.ask_interrupt(time.monotonic()):
            self.send_due()
        elif self._session.occupation.is_own:
            self._write()
        return {"still_queued": [*turns.waiting_ids, *turns.queued_ids], "cancelled": cancelled}

    def send_due(self) -> bool:
        """Write the interrupt that is held for the running turn, once its time has come; True when it was written.

        Not while the CLI connects to MCP servers: it would not read it, and its deadline would run.
        """
        now, turns = time.monotonic(), self._session.turns
        is_blocked = self._session.is_gated or self._session.exchange.is_blocked
        if is_blocked or not turns.is_interrupt_due(now):
            return False
        turns.interrupt_written(now)
        self._write()
        return True

    def _write(self) -> None:
        self._session.write(cli.control_line(f"interrupt-{uuid.uuid4().hex[:8]}", {"subtype": "interrupt"}))
