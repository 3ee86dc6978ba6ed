"""What holds back a session's user lines while its process is bound: MCP servers that connect, a client's initialize.

Synchronous.  Owner: one ``broker.sessions.bind.Bind``.  The CLI reads nothing while it connects to MCP servers and
gives each of them ``MCP_TIMEOUT``; a line behind would wait all the same, and an interrupt with it.
"""

import time
from collections.abc import Callable

from msgspec import Raw

from broker.options.binding import Step
from broker.options.mcp import cause, errors, taken
from broker.sessions.session import Session
from protocol.cli import Answer
from protocol.codes import ErrorCode
from protocol.frames import Error, State

CLI_GRACE_S = 1.0
"""The CLI names the servers that were too slow; only if it does not, the broker does, so much later."""


class Gate:
    """Open when nothing is awaited.  ``initialize_s``: how long a message waits for a client's ``initialize`` before
    its absence is told."""

    def __init__(self, session: Session, mcp_timeout_s: float, initialize_s: float) -> None:
        self._session = session
        self._mcp_timeout_s = mcp_timeout_s
        self._initialize_s = initialize_s
        self._mcp: dict[str, float] = {}
        """Requests that set MCP servers, and until when each is waited for."""
        self._missed_at: float | None = None
        self._has_told_missing = False
        session.exchange.on_initialized = self.look

    def reset(self) -> None:
        """A new process."""
        self._mcp.clear()
        self._missed_at, self._has_told_missing = None, False

    def look(self) -> None:
        """Something changed: hold user lines back, or let the next one go."""
        session = self._session
        was_gated = session.is_gated
        session.is_gated = bool(self._mcp) or not session.exchange.bound.is_initialize_known
        if was_gated and not session.is_gated:
            session.start_next()
        session.wake_task()

    # -- MCP servers --

    def expect(self, step: Step, on_answer: Callable[[Answer], None]) -> None:
        """A step that sets MCP servers was written."""
        assert step.request_id is not None
        request_id = step.request_id
        self._mcp[request_id] = time.monotonic() + self._mcp_timeout_s + CLI_GRACE_S

        def answered(answer: Answer) -> None:
            self._mcp.pop(request_id, None)
            self._tell_servers(answer)
            on_answer(answer)
            self.look()

        self._session.exchange.expect(request_id, answered)

    def _tell_servers(self, answer: Answer) -> None:
        exchange = self._session.exchange
        own, operator = exchange.bound.mcp_servers, exchange.policy.mcp_servers
        found = taken(own, operator)
        if answer.error is None:
            found |= errors(answer.response)
        else:
            found |= dict.fromkeys({**own, **operator}, cause(answer.error))
        if found:
            self._session.publish(State(mcp_errors=found))

    def tick(self, now: float) -> None:
        """Give up on servers that nobody has heard of; tell that an ``initialize`` is missing."""
        late = [request_id for request_id, until in self._mcp.items() if until <= now]
        for request_id in late:
            del self._mcp[request_id]
            self._tell_late()
        if late:
            self.look()
        waits = self._session.turns.queued_ids and not self._session.exchange.bound.is_initialize_known
        if not waits:
            self._missed_at = None
        elif self._missed_at is None:
            self._missed_at = now
        elif now >= self._missed_at + self._initialize_s and not self._has_told_missing:
            self._has_told_missing = True
            self._tell_missing()

    def _tell_late(self) -> None:
        exchange = self._session.exchange
        names = {**exchange.bound.mcp_servers, **exchange.policy.mcp_servers}
        message = f"not connected within pool.mcp_bind_timeout_s = {self._mcp_timeout_s:g}"
        self._session.publish(State(mcp_errors=dict.fromkeys(names, message)))

    def _tell_missing(self) -> None:
        message = "messages wait for the client's initialize (options.initialize: client)"
        for reader in self._session.readers:
            if reader.is_controller:
                reader.send(Error(ErrorCode.INITIALIZE_REQUIRED, message, retryable=True))

    @property
    def wake_times(self) -> list[float]:
        """When ``tick`` has something to do; monotonic seconds."""
        missed = [] if self._missed_at is None or self._has_told_missing else [self._missed_at + self._initialize_s]
        return [*self._mcp.values(), *missed]


def succeeded() -> Answer:
    """The answer to what the CLI does not answer."""
    return Answer("", None, Raw(b"{}"))
