"""What a live process is told after its bind: options that a later hello, or a control request, has changed.

Synchronous.  Owner: one ``broker.sessions.bind.Bind``.  Control requests are told at once, one after another: each is
made of what holds then, and what the CLI refuses is taken back.  A hello waits for the end of the running turn, but for
its MCP servers, which no running turn uses.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass, field, replace
from typing import Any

from broker.options.binding import ENVIRONMENT, Spawned, Step, burst
from broker.options.bound import Bound
from broker.sessions.gate import Gate, succeeded
from broker.sessions.session import Session
from broker.turns.reader import Reader
from protocol.cli import Answer
from protocol.codes import ErrorCode
from protocol.frames import Error

AT_ONCE = frozenset({"mcp_servers"})
FIELDS = {"settings": "rules"}
"""Where ``Bound`` keeps an option, if not under its own name."""


@dataclass(slots=True)
class Change:
    """A control request that changes options: how it alters what is bound, and who hears the CLI's answer."""

    alter: Callable[[Bound], frozenset[str]]
    on_done: Callable[[Answer], None]
    is_wanted: Callable[[], bool]
    before: Bound | None = None
    after: Bound | None = None
    steps: list[Step] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    error: Answer | None = None


@dataclass(slots=True, eq=False)
class Wish:
    """One option of a hello, until the CLI has answered: who hears its refusal, and what then holds again.

    ``after``: with the value that was told, once it was.
    """

    by: Reader | None
    before: Bound
    after: Bound | None = None


class Changes:
    """The changes of one session's processes."""

    def __init__(self, session: Session, gate: Gate) -> None:
        self._session = session
        self._gate = gate
        self._spawned = Spawned("", 0.0, {})
        self._held: dict[str, Wish] = {}
        """Options of hellos, for the next turn."""
        self._sent: list[tuple[str, Wish]] = []
        """Options of hellos that the CLI has not answered yet, oldest first."""
        self._environment: dict[str, Any] = {}
        """What the process was told of the options that share its variables: one line carries all of them."""
        self._queue: list[Change] = []
        self._current: Change | None = None
        self._has_new_credential = False
        session.lines_before_turn = self._lines_before_turn
        session.exchange.change = self.from_control
        session.exchange.on_gone = self._gone

    def reset(self, spawned: Spawned) -> None:
        """A new process, which is told everything."""
        self._spawned = spawned
        self._held, self._has_new_credential = {}, False
        self._session.has_held_options = False
        self._sent.clear()
        self._note_environment(ENVIRONMENT)
        self._session.check_key_source()

    def _gone(self) -> None:
        """The process is gone: what it had not accepted is taken back."""
        current, self._current = self._current, None
        self._queue.clear()
        self._session.has_untold_changes = False
        if current is not None:
            self._forget(current)

    # -- control requests --

    def from_control(
        self,
        alter: Callable[[Bound], frozenset[str]],
        on_done: Callable[[Answer], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        """Tell a change as soon as those before it are answered; bounded by the control requests in flight.

        ``alter`` changes what is bound and returns the names of the options; ``on_done`` hears the CLI's answer.
        ``is_wanted``: False once the request has expired; then it is dropped, untold.
        """
        self._queue.append(Change(alter, on_done, is_wanted))
        self._next()

    def drop_unwanted(self) -> None:
        """Forget the changes whose clients were told that their time is over."""
        if self._queue:
            self._queue = [change for change in self._queue if change.is_wanted()]
            self._next()

    def _next(self) -> None:
        session = self._session
        while self._current is None and self._queue:
            change = self._queue.pop(0)
            if change.is_wanted():
                self._tell(change)
        had_untold, session.has_untold_changes = session.has_untold_changes, bool(self._queue)
        if had_untold and not self._queue:
            session.start_next()

    def _tell(self, change: Change) -> None:
        exchange = self._session.exchange
        change.before = exchange.bound.copy()
        options = change.alter(exchange.bound)
        change.after = exchange.bound.copy()
        steps = self._steps(options)
        if not steps:
            change.on_done(succeeded())
            return
        self._current = change
        change.steps = steps
        change.waiting = {step.request_id for step in steps if step.request_id and step.gates != "nothing"}
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
            fields = [name for name in step.fields if getattr(change.before, name) != getattr(change.after, name)]
            self._session.exchange.bound.take_back(fields, change.before, change.after)

    # -- hello --

    def from_hello(self, options: frozenset[str], by: Reader | None, before: Bound) -> None:
        """Tell what changed, before the next turn.

        A refusal goes to ``by``; what held ``before`` then holds again, and is told again, since a CLI that refuses a
        model may take another one for the turn.
        """
        self._session.exchange.supersede(options)
        for option in options:  # what was held but never told is nothing to go back to
            self._held[option] = Wish(by, self._held[option].before if option in self._held else before)
        is_idle = self._session.turns.current is None
        self._session.write(self._lines(self._held.keys() if is_idle else self._held.keys() & AT_ONCE))

    def _lines_before_turn(self) -> bytes:
        lines = self._lines(self._held.keys())
        if self._has_new_credential:  # only a turn that begins now is sure to use it
            self._has_new_credential = False
            self._session.check_key_source()
        return lines

    def _lines(self, options: Set[str]) -> bytes:
        wishes = {option: self._held.pop(option) for option in sorted(options)}
        self._session.has_held_options = bool(self._held)
        steps = self._steps(frozenset(wishes))
        after = self._session.exchange.bound.copy()
        for wish in wishes.values():
            wish.after = after
        for step in steps:
            told = [(option, wish) for option, wish in wishes.items() if option in step.names]
            if step.request_id is not None:
                self._sent += told
            self._expect(step, self._on_hello_answer(step, told))
        return b"".join(step.line for step in steps)

    def _on_hello_answer(self, step: Step, told: list[tuple[str, Wish]]) -> Callable[[Answer], None]:
        def on_answer(answer: Answer) -> None:
            self._sent = [one for one in self._sent if one not in told]
            if answer.error is None:
                return
            readers: list[Reader] = []
            for option, wish in told:
                self._refused(option, wish)
                if wish.by is not None and wish.by not in readers:
                    readers.append(wish.by)
            for reader in readers:
                reader.send(Error(ErrorCode.BIND_FAILED, step.refusal(answer.error)))
            self._tell_again(step.names)

        return on_answer

    def _refused(self, option: str, wish: Wish) -> None:
        """Take back one option; later wishes for it do not go back to what was refused either."""
        name = FIELDS.get(option, option)
        self._session.exchange.bound.take_back((name,), wish.before, wish.after)
        for other, later in [*self._held.items(), *self._sent]:
            if other == option and getattr(later.before, name) == getattr(wish.after, name):
                setattr(later.before, name, getattr(wish.before, name))

    # -- both --

    def _steps(self, options: frozenset[str]) -> list[Step]:
        if not options:
            return []
        exchange = self._session.exchange
        if "credentials" in options:  # a turn that runs may name either: the next one is sure to
            self._has_new_credential, self._session.expected_key_source = True, None
        self._note_environment(options & ENVIRONMENT)
        bound = exchange.bound.copy()
        for name, value in self._environment.items():  # what is held stays untold, whatever else shares its line
            setattr(bound, name, value)
        spawned = replace(self._spawned, operator_servers=exchange.policy.mcp_servers)
        return burst(bound, spawned, options)

    def _note_environment(self, options: frozenset[str]) -> None:
        """The process is being told these as they are bound now."""
        for name in options:
            self._environment[name] = getattr(self._session.exchange.bound, name)

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
