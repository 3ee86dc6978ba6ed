"""Messages that are handed to the CLI while a turn runs, and what the CLI says became of them.

Synchronous.  Owner: one ``broker.sessions.session.Session``.  The CLI takes a steered message into the running turn
when a tool has answered, or runs it as the next turn.  2.1.329 tells so by ``command_lifecycle``, older ones say the
message again (``--replay-user-messages``).
"""

import uuid
from functools import partial
from typing import Protocol

import msgspec
from msgspec import Struct

from broker.processes.process import Process
from broker.sessions.exchange import Exchange
from broker.sessions.terminals import Terminals
from broker.turns.turn import Turn
from broker.turns.turns import Turns
from protocol import cli, traces
from protocol.controls import DECODE_ERRORS

WITHDRAWN = "withdrawn by an interrupt"


class Steerable(Protocol):
    """What steering needs of its session."""

    turns: Turns
    exchange: Exchange
    terminals: Terminals
    process: Process | None
    kill_reason: str | None
    is_gated: bool
    has_untold_changes: bool
    has_held_options: bool

    def write(self, line: bytes) -> None:
        """Queue a line for the CLI."""

    def announce(self, turn: Turn) -> None:
        """Tell everybody that the CLI works on a message from now on."""

    def start_next(self) -> bool:
        """Write the next queued message if the CLI is idle."""


class _Withdrawal(Struct, frozen=True):
    cancelled: bool = False


_withdrawal = msgspec.json.Decoder(_Withdrawal)


class Steering:
    """The steered messages of one session."""

    def __init__(self, session: Steerable) -> None:
        self._session = session

    @property
    def is_possible(self) -> bool:
        """Whether a turn runs that can still be steered: it is not being stopped, and its process lives.

        2.1.197 shows what a turn takes in to no ``UserPromptSubmit`` hook: where there is one, messages have turns of
        their own.
        """
        session = self._session
        turn = session.turns.current
        if turn is None or turn.interrupt_asked_at is not None or session.is_gated or session.kill_reason is not None:
            return False
        if session.has_untold_changes or session.has_held_options:  # of which a message that comes now is to run
            return False
        if session.exchange.bound.hooks.get("UserPromptSubmit"):
            return False
        return session.process is not None and not session.process.is_dead

    def on_lifecycle(self, sign: traces.Lifecycle) -> None:
        """The CLI says what it does with a message."""
        message_id = self._session.turns.own(sign.command_uuid)
        if sign.is_taken:
            self.take(message_id)
        elif sign.is_over and not (sign.is_unread and self._drop(message_id)):
            self._session.turns.finish(message_id)

    def take(self, message_id: str) -> None:
        """The CLI has taken a message in."""
        steered = self._session.turns.take(message_id)
        if steered is not None:
            self._session.announce(steered)

    def _drop(self, message_id: str) -> bool:
        dropped = self._session.turns.drop(message_id, WITHDRAWN)
        if dropped is not None:
            self._session.terminals.publish([dropped])
        return dropped is not None

    def withdraw(self) -> None:
        """Ask the CLI to forget what the running turn has not taken in; each message ends when the CLI agrees."""
        session = self._session
        for message_id in session.turns.waiting_ids:
            request_id = f"withdraw-{uuid.uuid4().hex[:8]}"
            session.exchange.expect(request_id, partial(self._on_answer, message_id))
            request = {"subtype": "cancel_async_message", "message_uuid": session.turns.for_cli(message_id)}
            session.write(cli.control_line(request_id, request))

    def _on_answer(self, message_id: str, answer: cli.Answer) -> None:
        try:
            is_withdrawn = answer.error is None and _withdrawal.decode(answer.response).cancelled
        except DECODE_ERRORS:
            is_withdrawn = False
        if is_withdrawn:
            self._session.terminals.withdraw(message_id, WITHDRAWN)
            self._session.start_next()
