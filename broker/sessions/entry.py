"""A conversation that the registry holds: its session, the task that gives it processes, when it was last used.

Owner: ``broker.sessions.registry``.  Times are monotonic seconds where nothing else is said; in a record they are
seconds since 1970, by an offset that is taken once, so that a clock that is set moves no conversation before another.
"""

import time
from dataclasses import dataclass, field

from broker.pool.disk_quota import Place
from broker.processes.session_directory import Transcript
from broker.sessions.farewells import Farewells
from broker.sessions.record import Record, encode, kept
from broker.sessions.session import Session
from broker.sessions.stores import Key
from broker.sessions.tenure import Tenure
from broker.sessions.transcript import SETTLE_S, Scans

EPOCH_S = time.time() - time.monotonic()
"""Monotonic seconds to seconds since 1970."""


@dataclass(slots=True, eq=False)
class Entry:
    """A session and the task that gives it its processes.  ``created_at`` is seconds since 1970."""

    session: Session
    tenure: Tenure
    scans: Scans
    farewells: Farewells = field(default_factory=Farewells)
    created_at: float = field(default_factory=time.time)
    touched_at: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> Key:
        """Tenant, subject, id."""
        return self.session.key

    @property
    def cli_session_id(self) -> str:
        """By which the CLI knows it; empty before its first process."""
        return self.session.cli_session_id

    @property
    def transcript(self) -> Transcript | None:
        """The CLI's file of the conversation, None while there is none.  Blocks for a look at a folder."""
        return self.tenure.succession.transcript(self.session.cli_session_id)

    def touch(self) -> None:
        """A controller came, spoke or left."""
        self.touched_at = time.monotonic()

    @property
    def last_active(self) -> float:
        """The last time that anything happened in it."""
        return max(self.touched_at, self.session.last_terminal_at)

    @property
    def place(self) -> Place | None:
        """Where it lies, and since when nothing has written there; None while it lies nowhere."""
        directory = self.tenure.succession.directory
        return None if directory is None else Place(directory, max(self.last_active, self.tenure.processless_since))

    @property
    def settles_until(self) -> float:
        """Until when the answer of the turn that ended may be missing in the transcript."""
        turns = self.session.turns
        is_idle = self.tenure.is_live and turns.current is None and turns.has_written
        return self.session.last_terminal_at + SETTLE_S if is_idle else 0.0

    @property
    def state(self) -> str:
        """``running`` a turn, ``idle`` with a process, ``starting`` one, or ``hibernated`` without."""
        if self.session.turns.current is not None:
            return "running"
        if self.tenure.is_live:
            return "idle"
        is_starting = self.session.process is not None or self.tenure.lobby.is_process_wanted
        return "starting" if is_starting else "hibernated"

    def keep(self) -> None:
        """Note what the conversation is now, for another run of the broker; from its first message on."""
        session, tenure, again = self.session, self.tenure, self.tenure.succession.again
        if again is None or tenure.is_deleted or not session.journal.is_used:
            return
        turns = session.turns
        found = Record(
            directory=again.directory.root.name,
            cli_session_id=session.cli_session_id or again.session_id,
            created_at=round(self.created_at, 3),
            last_active=round(self.last_active + EPOCH_S, 3),
            fork_of=again.fork_of,
            mark=turns.mark,
            has_written=turns.has_written,
            total=turns.usage.total,
            bound=kept(session.exchange.bound),
        )
        session.journal.keep(encode(found))


@dataclass(frozen=True, slots=True)
class Asleep:
    """A conversation of an earlier run, or whose task has failed, that nobody has come back to."""

    key: Key
    record: Record

    @property
    def cli_session_id(self) -> str:
        """By which the CLI knows it."""
        return self.record.cli_session_id

    @property
    def created_at(self) -> float:
        """Seconds since 1970."""
        return self.record.created_at

    @property
    def state(self) -> str:
        """As of a session whose process was stopped."""
        return "hibernated"

    @property
    def last_active(self) -> float:
        """When it was last used; monotonic seconds, which may lie before this machine's start."""
        return self.record.last_active - EPOCH_S
