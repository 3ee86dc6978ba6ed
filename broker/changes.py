"""What a live process is told after its bind: options that a later hello, or a control request, has changed.

Synchronous.  Owner: one ``broker.bind.Bind``.  Control requests are told at once, one after another: each is made of
what holds then, and what the CLI refuses is taken back.  A hello waits for the end of the running turn, but for its MCP
servers, which no running turn uses.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from broker.binding import Spawned, Step, burst
from broker.bound import Bound
from broker.gate import Gate, succeeded
from broker.reader import Reader
from broker.session import Session
from protocol.cli import Answer
from protocol.codes import ErrorCode
from protocol.frames import Error

AT_ONCE = frozenset({"mcp_servers"})


@dataclass(slots=True)
class Change:
    """A control request that changes options: how it alters what is bound, and who hears the CLI's answer."""

    alter: Callable[[Bound], frozenset[str]]
    on_done: Callable[[Answer], None]
    before: Bound | None = None
    steps: list[Step] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    error: Answer | None = None


class Changes:
    """The changes of one session's processes."""

    def __init__(self, session: Session, gate: Gate) -> None:
        self._session = session
        self._gate = gate
        self._spawned = Spawned("", 0.0, {})
        self._held: frozenset[str] = frozenset()
        """Options of a hello, for the next turn."""
        self._by: Reader | None = None
        self._before: Bound | None = None
        self._queue: deque[Change] = deque()
        self._current: Change | None = None
        self._has_new_credential = False
        session.lines_before_turn = self._lines_before_turn
        session.exchange.change = self.from_control
        session.exchange.on_gone = self._gone

    def reset(self, spawned: Spawned) -> None:
        """A new process, which is told everything."""
        self._spawned = spawned
        self._held, self._has_new_credential = frozenset(), False

    def _gone(self) -> None:
        """The process is gone: what it had not accepted is taken back."""
        current, self._current = self._current, None
        self._queue.clear()
        if current is not None:
            self._forget(current)

    # -- control requests --

    def from_control(self, alter: Callable[[Bound], frozenset[str]], on_done: Callable[[Answer], None]) -> None:
        """Tell a change as soon as those before it are answered; bounded by the control requests in flight.

        ``alter`` changes what is bound and returns the names of the options; ``on_done`` hears the CLI's answer.
        """
        self._queue.append(Change(alter, on_done))
        self._next()

    def _next(self) -> None:
        while self._current is None and self._queue:
            self._tell(self._queue.popleft())

    def _tell(self, change: Change) -> None:
        exchange = self._session.exchange
        change.before = exchange.bound.copy()
        options = change.alter(exchange.bound)
        steps = self._steps(options)
        if not steps:
            change.on_done(succeeded())
            return
        self._current = change
        change.steps = steps
        change.waiting = {step.request_id for step in steps if step.request_id is not None}
        for step in steps:
            self._expect(step, self._on_answer_to(change))
        self._session.write(b"".join(step.line for step in steps))

    def _on_answer_to(self, change: Change) -> Callable[[Answer], None]:
        def on_answer(answer: Answer) -> None:
            change.waiting.discard(answer.request_id)
            if answer.error is not None:
                change.error = change.error or answer
            if not change.waiting and change is self._current:
                self._done(change, change.error or answer)

        return on_answer

    def _done(self, change: Change, answer: Answer) -> None:
        self._current = None
        if answer.error is not None:  # all of it or nothing
            self._forget(change)
            self._tell_again(frozenset().union(*(step.names for step in change.steps)))
        change.on_done(answer)
        self._next()

    def _forget(self, change: Change) -> None:
        assert change.before is not None
        for step in change.steps:
            self._session.exchange.bound.take_back(step.fields, change.before)

    # -- hello --

    def from_hello(self, options: frozenset[str], by: Reader | None, before: Bound) -> None:
        """Tell what changed, before the next turn.

        A refusal goes to ``by``; what held ``before`` then holds again, and is told again, since a CLI that refuses a
        model may take another one for the turn.
        """
        self._by, self._before = by, before
        self._held |= options
        now = self._held if self._session.turns.current is None else self._held & AT_ONCE
        self._held -= now
        self._session.write(self._lines(now))

    def _lines_before_turn(self) -> bytes:
        held, self._held = self._held, frozenset()
        lines = self._lines(held)
        if self._has_new_credential:  # only a turn that begins now is sure to use it
            self._has_new_credential = False
            self._session.check_key_source()
        return lines

    def _lines(self, options: frozenset[str]) -> bytes:
        steps = self._steps(options)
        for step in steps:
            self._expect(step, self._on_hello_answer(step))
        return b"".join(step.line for step in steps)

    def _on_hello_answer(self, step: Step) -> Callable[[Answer], None]:
        by, before = self._by, self._before

        def on_answer(answer: Answer) -> None:
            if answer.error is None or before is None:
                return
            if by is not None:
                by.send(Error(ErrorCode.BIND_FAILED, f"{step.option}: {answer.error[:256]}"))
            self._session.exchange.bound.take_back(step.fields, before)
            self._tell_again(step.names)

        return on_answer

    # -- both --

    def _steps(self, options: frozenset[str]) -> list[Step]:
        if not options:
            return []
        self._has_new_credential |= "credentials" in options
        exchange = self._session.exchange
        spawned = Spawned(self._spawned.model, self._spawned.mcp_timeout_s, exchange.policy.mcp_servers)
        return burst(exchange.bound, spawned, options)

    def _expect(self, step: Step, on_answer: Callable[[Answer], None]) -> None:
        if step.request_id is None:
            return
        if step.gates == "message":
            self._gate.expect(step, on_answer)
            self._gate.look()
        elif step.gates == "welcome":
            self._session.exchange.expect(step.request_id, on_answer)

    def _tell_again(self, options: frozenset[str]) -> None:
        """What holds again after a refusal, whatever the answer."""
        steps = self._steps(options)
        for step in steps:
            if step.request_id is not None:
                self._session.exchange.expect(step.request_id, _ignore)
        self._session.write(b"".join(step.line for step in steps))


def _ignore(answer: Answer) -> None:
    """What holds again was accepted before."""
