"""A conversation as a model of pure parts: its turns, its log, its readers, when it rests; time is an argument.

Caller: ``test_life_model``, which gives it processes and takes them away.
"""

from collections import Counter
from dataclasses import dataclass

from broker.config.tree import Session
from broker.pool.slot import Slot
from broker.sessions.rest import Rest
from broker.turns.message_ids import Repeat, digest
from broker.turns.replay import ReplayLog
from broker.turns.turn import Turn
from broker.turns.turns import Ended, Turns
from protocol.cli import Result
from protocol.codes import FailureReason, LostReason
from protocol.frames import TurnFailed

MAX_QUEUED = 3
MAX_FRAMES = 12
LIMITS = Session(detach_timeout_s=5, hibernate_after_s=60, min_resident_s=3)


@dataclass(eq=False)
class View:
    """A connection: it has read everything up to ``cursor``.  ``is_slow``: it takes nothing for now."""

    cursor: int
    epoch: int
    is_slow: bool = False


class Talk:
    """One conversation of a tenant."""

    def __init__(self, tenant: str, profile: str, now: float) -> None:
        self.tenant, self.profile = tenant, profile
        self.slot: Slot | None = None
        self.rest = Rest(LIMITS, now, now)
        self.terminals: Counter[str] = Counter()
        self.accepted: set[str] = set()
        self.views: list[View] = []
        self.gone: list[View] = []
        """What clients remember that may come back."""
        self.last_terminal_at = now
        self.epoch = 0
        self.begin()

    def begin(self) -> None:
        """A run of the broker: another log, and turns that remember nothing but the ids."""
        self.epoch += 1
        self.log = ReplayLog(str(self.epoch), MAX_FRAMES, 1 << 20)
        self.turns = Turns(MAX_QUEUED)

    # -- frames --

    def publish(self) -> None:
        """A frame: the number is all that is in it."""
        frame = b"%d" % (self.log.head + 1)
        assert self.log.append(frame) == int(frame)
        for view in list(self.views):
            if not view.is_slow:
                self.read(view)
        self.log.trim()
        for view in [view for view in self.views if self.log.has_fallen_off(view.cursor)]:
            assert view.is_slow, "a reader that keeps up has lost a frame"
            self.leave(view, 0.0)

    def read(self, view: View) -> None:
        """Whatever there is: each number once, in order."""
        while True:
            frames, cursor = self.log.read(view.cursor, 8)
            if not frames:
                assert view.cursor == self.log.head
                return
            assert [int(frame) for frame in frames] == list(range(view.cursor + 1, cursor + 1))
            view.cursor = cursor

    def resume(self, old: View) -> None:
        """The client of ``old`` comes back: it goes on where it was, or is told what it has lost."""
        found = self.log.resume(str(old.epoch), old.cursor)
        lost = found.lost
        if lost is None:
            assert (found.cursor, old.epoch) == (old.cursor, self.epoch)
        elif lost.reason is LostReason.EPOCH_CHANGED:
            assert old.epoch != self.epoch
            assert found.cursor == self.log.tail
        else:
            assert (lost.from_, lost.to) == (old.cursor + 1, found.cursor)
            assert found.cursor == self.log.tail > old.cursor
        view = View(found.cursor, self.epoch)
        self.views.append(view)
        self.read(view)

    def leave(self, view: View, now: float) -> None:
        """A connection ends; its client may come back."""
        self.views.remove(view)
        self.gone = [*self.gone[-3:], view]
        if not self.views:
            self.rest.detached_at = max(now, self.rest.detached_at)

    # -- messages --

    def send(self, message_id: str, now: float) -> None:
        """A message, or the repeat of one."""
        turn = Turn(message_id, b"", "x", "tab", now)
        found = self.turns.submit(turn, digest(b"x"))
        assert isinstance(found, Repeat) == (message_id in self.accepted)
        self.accepted.add(message_id)
        self.start_next(now)

    def start_next(self, now: float) -> None:
        """As the session does it: with a process, one turn at a time."""
        if self.slot is not None and self.turns.start_next(now) is not None:
            self.publish()

    def ends(self, ended: list[Ended], now: float) -> None:
        """Terminal frames: one for each message, and of accepted ones alone."""
        for frame, _ in ended:
            assert frame.id in self.accepted
            self.terminals[frame.id] += 1
            assert self.terminals[frame.id] == 1, "a second terminal frame"
            self.last_terminal_at = now
            self.publish()

    def result(self, now: float) -> None:
        """The running turn is over."""
        self.ends(self.turns.complete(Result(subtype="success"), now), now)
        self.start_next(now)

    def cancel(self, now: float) -> None:
        """The message that waits longest is withdrawn."""
        frame = self.turns.cancel(self.turns.queued_ids[0])
        self.ends([(frame, None)], now)

    def process_gone(self, reason: FailureReason, now: float) -> None:
        """As the session does it: the turn fails, and what was queued behind it."""
        had_turn, self.slot = self.turns.current is not None, None
        self.ends(self.turns.fail_running(reason, "gone"), now)
        if had_turn:
            self.drop_queue(now)

    def drop_queue(self, now: float) -> None:
        """Queued means not written."""
        frames: list[TurnFailed] = self.turns.fail_queued(FailureReason.CANCELLED, "gone")
        self.ends([(frame, None) for frame in frames], now)

    # -- asking --

    @property
    def is_idle(self) -> bool:
        """The process could be given back."""
        return self.slot is not None and self.turns.is_idle

    @property
    def is_wanted(self) -> bool:
        """A process would have something to do."""
        return self.slot is None and bool(self.views or self.turns.queued_ids)

    @property
    def rests_at(self) -> float:
        """When it gives its process back."""
        return self.rest.due_at(self.last_terminal_at, has_readers=bool(self.views))

    def agree(self) -> None:
        """Every message that was accepted has ended, runs or waits; and is one of these only."""
        current = [] if self.turns.current is None else [self.turns.current.id]
        open_ids = [*self.turns.queued_ids, *current]
        assert len(open_ids) == len(set(open_ids))
        assert set(open_ids) == self.accepted - set(self.terminals)
        assert self.slot is not None or not current, "a turn runs without a process"
