"""The bind of a session's process: the burst, the answers that guard safety, the gate for slow MCP servers.

Synchronous.  Owner: the session's ``broker.tenure``, which waits.  What is in a burst is decided in ``broker.binding``.
"""

import time
from collections.abc import Callable

from broker.binding import Bound, Step, burst, mcp_errors
from broker.exchange import Reader
from broker.process import Process
from broker.session import Session
from protocol.cli import Answer
from protocol.codes import CloseCode, ErrorCode
from protocol.errors import ClientError
from protocol.frames import Error, State


class Bind:
    """One session's; used for each of its processes in turn.  ``wake`` tells the tenure that an answer came."""

    def __init__(self, session: Session, mcp_timeout_s: float, wake: Callable[[], None]) -> None:
        self._session = session
        self._mcp_timeout_s = mcp_timeout_s
        self._wake = wake
        self._profile_model = ""
        self._gates: dict[str, str] = {}
        self._refused: ClientError | None = None
        self._gate_until: float | None = None
        self._changed: frozenset[str] = frozenset()
        self._changed_by: Reader | None = None
        self._before: Bound | None = None
        session.lines_before_turn = self._lines_before_turn

    def write(self, process: Process, profile_model: str) -> None:
        """Write the whole burst at once.  Raises ``ProcessError`` when the process is gone."""
        self._profile_model = profile_model
        steps = burst(self._session.exchange.bound, profile_model)
        self._changed, self._refused = frozenset(), None
        self._gates = {step.request_id: step.option for step in steps if step.request_id and step.gates_welcome}
        for request_id in self._gates:
            self._session.exchange.expect(request_id, self._on_answer)
        self._gate_mcp(steps)
        process.write(b"".join(step.line for step in steps))

    def _on_answer(self, answer: Answer) -> None:
        option = self._gates.pop(answer.request_id)
        if answer.error is not None and self._refused is None:
            message = f"{option}: {answer.error[:256]}"
            self._refused = ClientError(ErrorCode.BIND_FAILED, message, close=CloseCode.BIND_FAILED)
        self._wake()

    def is_complete(self) -> bool:
        """Whether every answer that guards safety is in.  Raises ``ClientError(bind_failed)`` naming the option."""
        if self._refused is not None:
            raise self._refused
        return not self._gates

    # -- options that a later hello changed --

    def change(self, options: frozenset[str], by: Reader | None, before: Bound | None) -> None:
        """Tell a live process what changed, before its next turn.

        A refusal goes to ``by``; what held ``before`` then holds again, and is told again, since a CLI that refuses a
        model may take another one for the turn.
        """
        self._changed |= options
        self._changed_by, self._before = by, before
        if self._session.turns.current is None:
            self._session.write(self._lines_before_turn())

    def _lines_before_turn(self) -> bytes:
        changed, self._changed = self._changed, frozenset()
        if not changed:
            return b""
        steps = burst(self._session.exchange.bound, self._profile_model, is_changed_only=changed)
        for step in steps:
            if step.request_id is not None:
                self._session.exchange.expect(step.request_id, self._on_change_answer(step.option))
        self._gate_mcp(steps)
        self._session.check_key_source()
        return b"".join(step.line for step in steps)

    def _on_change_answer(self, option: str) -> Callable[[Answer], None]:
        by, before = self._changed_by, self._before

        def on_answer(answer: Answer) -> None:
            if answer.error is None or before is None:
                return
            if by is not None:
                by.send(Error(ErrorCode.BIND_FAILED, f"{option}: {answer.error[:256]}"))
            self._session.exchange.bound.take_back(option, before)
            self.change(frozenset({option}), None, None)

        return on_answer

    # -- MCP servers: they hold back user lines, not the welcome --

    def _gate_mcp(self, steps: list[Step]) -> None:
        for step in steps:
            if step.request_id is not None and not step.gates_welcome:
                self._session.is_gated = self._session.turns.current is None
                self._gate_until = time.monotonic() + self._mcp_timeout_s
                self._session.exchange.expect(step.request_id, self._on_mcp_answer)

    def _on_mcp_answer(self, answer: Answer) -> None:
        errors = {"*": answer.error[:256]} if answer.error is not None else mcp_errors(answer.response)
        if errors:
            self._session.publish(State(mcp_errors=errors))
        self._open_gate()

    def _open_gate(self) -> None:
        self._gate_until = None
        if self._session.is_gated:
            self._session.is_gated = False
            self._session.start_next()

    def tick(self, now: float) -> None:
        """Open the gate when the servers have had their time."""
        if self._gate_until is not None and now >= self._gate_until:
            if self._session.is_gated:
                message = f"not connected within pool.mcp_bind_timeout_s = {self._mcp_timeout_s:g}"
                self._session.publish(State(mcp_errors={"*": message}))
            self._open_gate()

    @property
    def wake_times(self) -> list[float]:
        """When ``tick`` has something to do; monotonic seconds."""
        return [] if self._gate_until is None else [self._gate_until]
