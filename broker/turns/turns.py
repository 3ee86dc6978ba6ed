"""The life of a conversation's turns: accepted, written, seen, ended; exactly one terminal frame for each message.

Pure: no I/O; ``now`` is seconds of a monotonic clock.  Owner: one ``broker.sessions.session.Session``.  One turn runs
at a time; queued means not written.  A steered message is written behind the running turn: the CLI takes it into that
turn (at the next tool result), or runs it as the next one.  Which of the two it was, the CLI tells by the ids.
"""

from collections.abc import Callable, Iterable, Iterator

from broker.turns import endings
from broker.turns.message_ids import MessageIds, Noted, Repeat
from broker.turns.turn import Turn, TurnEvent
from broker.turns.usage import Usage
from protocol.cli import Result
from protocol.codes import ErrorCode, FailureReason
from protocol.errors import ClientError
from protocol.frames import SessionTotals, TurnCompleted, TurnFailed

INTERRUPT_REPEAT_S = 0.5
"""An interrupt without a ``result`` is sent once more: a CLI can answer success and lose it."""

Ended = tuple[TurnCompleted | TurnFailed, Turn | None]
"""A terminal frame, and the turn that it ends; None for one that the CLI began by itself."""


class Turns:
    """The running turn, what was steered into it, the queue behind it, and the ids that were used."""

    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued
        self.mark = ""
        """Ends the ids by which the CLI knows the messages of a branch.  Its transcript may know the ids themselves,
        and a resumed CLI does not hear, a forked one may not write down, a message whose id it knows."""
        self._queue: list[Turn] = []  # short, and an empty deque holds 0.7 KiB
        self._ids = MessageIds()
        self.current: Turn | None = None
        self.steered: list[Turn] = []
        """Written behind the running turn, in this order; empty without one."""
        self.is_closed = False
        """The broker is stopping: nothing new is accepted."""
        self.usage = Usage()
        self.completed = 0
        self.has_written = False
        """A CLI was told something that it could remember."""

    def take_up(self, messages: Iterable[tuple[str, bytes, Noted]], total: SessionTotals) -> list[TurnFailed]:
        """Go on with a conversation of an earlier run: its ids, oldest first, and what it has cost.

        Returns the ends of those that had none: of what did not wait any more nobody knows how far it came.
        """
        self.usage = Usage(total)
        cut_off = []
        for message_id, content_digest, noted in messages:
            self._ids.restore(message_id, content_digest, "completed" if noted == "completed" else "failed")
            if noted is None or noted == "waiting":
                cut_off.append(endings.cut_off(message_id, is_unwritten=noted == "waiting"))
        return cut_off

    @property
    def queued_ids(self) -> list[str]:
        """Ids that wait unwritten, in order."""
        return [turn.id for turn in self._queue]

    @property
    def waiting_ids(self) -> list[str]:
        """Ids of steered messages that the running turn has not taken in, in order."""
        return [turn.id for turn in self.steered if not turn.is_taken]

    @property
    def is_idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return self.current is None and not self._queue

    def knows(self, message_id: str) -> bool:
        """Whether a message with this id was accepted, and is remembered."""
        return message_id in self._ids

    def for_cli(self, message_id: str) -> str:
        """The id by which the CLI knows a message; of one that was not accepted here, the id itself."""
        return message_id + self.mark if self.knows(message_id) else message_id

    def own(self, cli_id: str) -> str:
        """The message that the CLI knows by ``cli_id``."""
        return cli_id.removesuffix(self.mark)

    def is_running(self, message_id: str) -> bool:
        """Whether the running turn is this message's, or has taken it in."""
        return any(turn.id == message_id and (turn is self.current or turn.is_taken) for turn in self._written())

    def _written(self) -> Iterator[Turn]:
        if self.current is not None:
            yield self.current
            yield from self.steered

    def submit(
        self,
        turn: Turn,
        content_digest: bytes,
        steered_at: float | None = None,
        commit: Callable[[str, bytes, bool], None] = lambda message_id, content_digest, is_waiting: None,
    ) -> int | Repeat:
        """Accept a message: how many are before it, or the repeat that it is.

        ``steered_at``: it is written now, behind the running turn, which has to be there; the queue does not delay it.
        ``commit`` is called once nothing else speaks against it and before anything is changed; it may raise.
        Raises ``ClientError``: ``id_conflict`` (same id, other content), ``queue_full`` or ``draining``.
        """
        repeat = self._ids.repeat(turn.id, content_digest)
        if repeat is not None:
            return repeat
        if self.is_closed:
            raise ClientError(ErrorCode.DRAINING, "the broker is stopping", ref=turn.id)
        is_next = self.current is None and not self._queue
        if len(self._queue) + len(self.steered) >= self._max_queued and not is_next:
            raise ClientError(ErrorCode.QUEUE_FULL, f"turn.queue is {self._max_queued}", ref=turn.id)
        commit(turn.id, content_digest, turn.is_noted_waiting)
        self._ids.accept(turn.id, content_digest)
        if steered_at is not None:
            assert self.current is not None
            self._write(turn, steered_at)
            self.steered.append(turn)
            return 0
        before = len(self._queue) + (self.current is not None)
        self._queue.append(turn)
        return before

    def start_next(self, now: float, commit: Callable[[str], None] = lambda message_id: None) -> Turn | None:
        """Make the oldest queued turn the running one, to be written now; None when one runs or none waits.

        ``commit`` is called first where the turn was noted as waiting; it may raise, and nothing is changed then.
        """
        if self.current is not None or not self._queue:
            return None
        if self._queue[0].is_noted_waiting:
            commit(self._queue[0].id)
        self.current = turn = self._queue.pop(0)
        self._write(turn, now)
        return turn

    def _write(self, turn: Turn, now: float) -> None:
        turn.advance(TurnEvent.WRITE)
        turn.written_at = turn.last_frame_at = now
        self.has_written = True

    def cancel(self, message_id: str) -> TurnFailed:
        """Withdraw a queued message; raises ``already_started`` or ``unknown_message``."""
        for turn in self._queue:
            if turn.id == message_id:
                self._queue.remove(turn)
                return self._fail(turn, FailureReason.CANCELLED, "withdrawn by a client")
        if message_id in self._ids:
            raise ClientError(ErrorCode.ALREADY_STARTED, "the message runs or has ended", ref=message_id)
        raise ClientError(ErrorCode.UNKNOWN_MESSAGE, "no such message", ref=message_id)

    # -- interrupts --

    def ask_interrupt(self, now: float) -> bool:
        """Ask the running turn to stop; False when none runs.  It is held until ``is_interrupt_due``."""
        if self.current is None:
            return False
        if self.current.interrupt_asked_at is None:
            self.current.interrupt_asked_at = now
        return True

    def is_interrupt_due(self, now: float) -> bool:
        """Whether an interrupt is to be written now: never before the turn's ``system/init`` (sent in one burst with
        the message the CLI answers success and loses it), and once more when no ``result`` followed."""
        turn = self.current
        if turn is None or turn.interrupt_asked_at is None or not turn.is_initialized:
            return False
        if turn.interrupt_sent_at is None:
            return True
        return turn.interrupts_sent < 2 and now - turn.interrupt_sent_at >= INTERRUPT_REPEAT_S

    def interrupt_written(self, now: float) -> None:
        """Note that the interrupt went out."""
        assert self.current is not None
        self.current.interrupt_sent_at = now
        self.current.interrupts_sent += 1

    # -- what the CLI says of a message --

    def take(self, message_id: str) -> Turn | None:
        """The turn that runs in the CLI began with the message, or has taken it in; then it is returned, once."""
        for turn in self._written():
            if turn.id == message_id and not turn.is_taken:
                turn.is_taken = True
                turn.advance(TurnEvent.FRAME)
                return None if turn is self.current else turn
        return None

    def finish(self, message_id: str) -> None:
        """The CLI is done with the message: the next ``result`` is its end, whether it names it or not."""
        for turn in self._written():
            if turn.id == message_id:
                turn.is_over = True

    def drop(self, message_id: str, detail: str) -> Ended | None:
        """The CLI has thrown a steered message away, unread: it ends here.  None for any other message."""
        for turn in self.steered:
            if turn.id == message_id and not turn.is_taken:
                self.steered.remove(turn)
                return self._fail(turn, FailureReason.CANCELLED, detail, is_unread=True), turn
        return None

    def withdraw(self, message_id: str, detail: str, now: float) -> Ended | None:
        """As ``drop``, on the CLI's word that it forgets the message: no ``result`` comes of it, even where an earlier
        one has made it the running turn meanwhile."""
        turn = self.current
        if turn is None or turn.id != message_id or turn.is_taken or turn.is_initialized:
            return self.drop(message_id, detail)
        self._go_on(self.steered, now)
        return self._fail(turn, FailureReason.CANCELLED, detail, is_unread=True), turn

    # -- ends --

    def complete(self, result: Result, now: float) -> list[Ended]:
        """A ``result`` came: end the running turn and what it has taken in, or one that the CLI began by itself.

        A steered message that is left is the next turn, which the CLI begins without being told.
        """
        cost = self.usage.add(result)
        covered = self._covered(result)
        if not covered:
            return [(endings.of_the_cli(result, cost, self.usage.total), None)]
        first, *others = covered
        frame = endings.completed(first, result, cost, self.usage.total, now)
        ended: list[Ended] = [(frame, first), *((endings.folded(turn, frame, now), turn) for turn in others)]
        for turn in covered:
            turn.advance(TurnEvent.RESULT)
            self._ids.ended(turn.id, "completed")
        self.completed += 1
        self._go_on([turn for turn in self._written() if turn not in covered], now)
        return ended

    def _covered(self, result: Result) -> list[Turn]:
        """The messages that ``result`` ends, the running turn's first."""
        told = {result.user_message_uuid, *result.user_message_uuids} - {None}
        named = {self.own(name) for name in told if name is not None}
        found = [turn for turn in self.steered if turn.is_taken or turn.is_over or turn.id in named]
        current = self.current
        if current is None:
            return []
        is_named = found or current.is_taken or current.is_over or current.id in named
        if is_named or not (named or result.is_of_the_cli):  # nothing tells: they end in the order of their writing
            return [current, *found]  # what is steered comes behind the turn, never before it
        return []

    def _go_on(self, left: list[Turn], now: float) -> None:
        """What the CLI still has to run: one of them becomes the running turn, whose clocks begin now."""
        before, self.current = self.current, left[0] if left else None
        self.steered = left[1:]
        if self.current is not None and self.current is not before:
            self.current.written_at = self.current.last_frame_at = now

    def fail_running(self, reason: FailureReason, detail: str) -> list[Ended]:
        """End the running turn, and everything that was steered into it, without a ``result``."""
        turns = list(self._written())
        self.current = None
        self.steered = []
        return [(self._fail(turn, reason, detail), turn) for turn in turns]

    def fail_queued(self, reason: FailureReason, detail: str) -> list[TurnFailed]:
        """End every queued message: none was written, all may be sent again."""
        turns = list(self._queue)
        self._queue.clear()
        return [self._fail(turn, reason, detail) for turn in turns]

    def _fail(self, turn: Turn, reason: FailureReason, detail: str, *, is_unread: bool = False) -> TurnFailed:
        frame = endings.failed(turn, reason, detail, is_unread=is_unread)
        turn.advance(TurnEvent.FAIL)
        self._ids.ended(turn.id, "failed")
        return frame
