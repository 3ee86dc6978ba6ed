"""The bind of a session's process: the burst, and the answers that guard safety.

Synchronous.  Owner: the session's ``broker.sessions.tenure``, which waits.  What is in a burst is decided in
``broker.options.binding``; what a live process is told afterwards goes by way of ``broker.sessions.changes``.
"""

from collections.abc import Callable

from broker.config.tree import Pool
from broker.options.binding import Spawned, Step, burst
from broker.options.bound import Bound
from broker.processes.process import Process
from broker.sessions.changes import Changes
from broker.sessions.gate import Gate
from broker.sessions.session import Session
from broker.turns.reader import Reader
from protocol.cli import Answer
from protocol.codes import CloseCode, ErrorCode
from protocol.errors import ClientError


class Bind:
    """One session's; used for each of its processes in turn.  ``wake`` tells the tenure that an answer came."""

    def __init__(self, session: Session, limits: Pool, wake: Callable[[], None]) -> None:
        self._session = session
        self._mcp_timeout_s = limits.mcp_bind_timeout_s
        self._wake = wake
        self._gates: dict[str, Step] = {}
        self._refused: ClientError | None = None
        self._has_answered = False
        self._gate = Gate(session, limits.mcp_bind_timeout_s, limits.bind_timeout_s)
        self._changes = Changes(session, self._gate)

    def write(self, process: Process, profile_model: str) -> None:
        """Write the whole burst at once.  Raises ``ProcessError`` when the process is gone."""
        exchange = self._session.exchange
        policy = exchange.policy
        spawned = Spawned(profile_model, self._mcp_timeout_s, policy.mcp_servers, policy.models)
        self._gate.reset()
        self._changes.reset(spawned)
        exchange.handshake.answer = None
        self._refused, self._gates, self._has_answered = None, {}, False
        steps = burst(exchange.bound, spawned)
        for step in steps:
            if step.request_id is None:
                continue
            if step.gates == "welcome":
                self._gates[step.request_id] = step
                exchange.expect(step.request_id, self._on_answer)
            elif step.gates == "message":
                self._gate.expect(step, lambda answer: None)
        self._gate.look()
        process.write(b"".join(step.line for step in steps))

    def _on_answer(self, answer: Answer) -> None:
        step = self._gates.pop(answer.request_id)
        self._has_answered = True
        if step.option == "initialize" and answer.error is None:
            self._session.exchange.handshake.answered(answer.response)
        if answer.error is not None and self._refused is None:
            self._refused = ClientError(ErrorCode.BIND_FAILED, step.refusal(answer.error), close=CloseCode.BIND_FAILED)
        self._wake()

    def is_complete(self) -> bool:
        """Whether every answer that guards safety is in.  Raises ``ClientError(bind_failed)`` naming the option."""
        if self._refused is not None:
            raise self._refused
        return not self._gates

    @property
    def is_silent(self) -> bool:
        """Whether the process has answered nothing of what guards safety."""
        return not self._has_answered

    # -- a live process --

    def change(self, options: frozenset[str], by: Reader | None, before: Bound) -> None:
        """Tell a live process the options that a hello changed; see ``Changes.from_hello``."""
        self._changes.from_hello(options, by, before)

    def tick(self, now: float) -> None:
        """Do what is due."""
        self._changes.drop_unwanted()
        self._gate.tick(now)

    @property
    def wake_times(self) -> list[float]:
        """When ``tick`` has something to do; monotonic seconds."""
        return self._gate.wake_times
