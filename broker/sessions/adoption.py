"""Options of hellos, adopted into what a session's processes are told; and taken back when a process cannot have them.

Synchronous.  Owner: one ``broker.sessions.tenure.Tenure``, whose task says how each bind ended.
"""

from dataclasses import dataclass

from msgspec import UNSET
from msgspec.structs import replace

from broker.options.bound import OWN_PROMPT, Bound
from broker.options.declared import Declared
from broker.sessions.bind import Bind
from broker.sessions.exchange import Exchange
from broker.sessions.session import Session
from broker.turns.reader import Reader
from protocol.options import Credentials, SessionOptions


@dataclass(frozen=True, slots=True)
class Standing:
    """What a hello may change: options, who serves the MCP servers of clients, how long a person has to answer."""

    bound: Bound
    declared: Declared
    permission_timeout_s: float

    @classmethod
    def of(cls, exchange: Exchange) -> "Standing":
        """What holds now."""
        declared = Declared()
        declared.take_over(exchange.declared)
        return cls(exchange.bound.copy(), declared, exchange.questions.timeout_s)

    def hold_again(self, exchange: Exchange) -> None:
        """Take back whatever came since."""
        exchange.bound, exchange.questions.timeout_s = self.bound, self.permission_timeout_s
        exchange.declared.take_over(self.declared)


class Adoption:
    """One session's.  ``is_branch``: its first process takes up another conversation's transcript."""

    def __init__(self, session: Session, bind: Bind, *, is_branch: bool) -> None:
        self._session = session
        self._bind = bind
        self._inherited = session.exchange.bound.initialize if is_branch else None
        self._before: Standing | None = None
        """What held before the options that the next process is the first to hear of."""

    def take(
        self, options: SessionOptions, paid: Credentials | None, reader: Reader, *, is_bound: bool, is_starting: bool
    ) -> list[str]:
        """Adopt hello's options; returns the names of those that a bound conversation cannot change any more.

        ``paid``: the server's credential, where the policy says that the server pays.  ``is_bound``: a process has been
        bound before, or is now; ``is_starting``: the first one is on its way.  On a live process the changed ones are
        written before the next turn; a refusal is told to ``reader``.
        """
        exchange, has_process = self._session.exchange, self._session.process is not None
        if paid is not None:
            options = replace(options, credentials=paid)
        is_fixed = is_bound or is_starting  # its process is the first hello's, or was
        ignored = exchange.bound.differing(options) if is_fixed else []
        before = Standing.of(exchange)
        if not is_fixed:
            exchange.bound.take_spawn(options)
        changed = exchange.bound.merge(options, with_initialize=not is_fixed)
        if paid is not None:
            exchange.bound.is_paid = True
        exchange.declare(options, reader)
        if options.permission_timeout_s is not UNSET:
            exchange.questions.timeout_s = options.permission_timeout_s
        if not is_fixed and self._inherited is not None:
            bound = exchange.bound
            if bound.initialize != self._inherited or bound.initialize_by == "client":
                bound.initialize = bound.initialize | OWN_PROMPT
        if has_process:  # there is nothing to go back to but what the process itself refuses
            if changed:
                self._bind.change(changed, reader, before.bound)
        elif self._before is None and (is_bound or options.lazy is not True):
            self._before = before  # a lazy session has nothing to go back to before its first process
        return ignored

    def succeed(self) -> None:
        """A process has them all."""
        self._before = None

    def take_back(self) -> None:
        """The bind was refused: what held before holds again."""
        if self._before is not None:
            before, self._before = self._before, None
            before.hold_again(self._session.exchange)
