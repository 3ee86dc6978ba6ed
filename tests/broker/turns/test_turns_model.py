"""The life of a turn as a state machine: one terminal frame for each accepted message, whatever happens."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import Raw

from broker.turns.message_ids import Repeat, digest
from broker.turns.turn import TurnEvent, TurnState
from broker.turns.turns import INTERRUPT_REPEAT_S, Ended, Turns
from protocol.cli import Result
from protocol.codes import Applied, ErrorCode, FailureReason
from protocol.errors import ClientError
from protocol.frames import TurnCompleted, TurnFailed
from tests.broker.turns.test_turns import refusal, submit, turn
from tests.soak import size

IDS = st.sampled_from([f"m-{number}" for number in range(8)])
REASONS = st.sampled_from(list(FailureReason))
MAX_QUEUED = 3
OWN = Raw(b'{"kind":"task-notification"}')


class Conversation(RuleBasedStateMachine):
    """Messages by id: those that wait in the broker, those that wait in the CLI, those of its running turn, and how
    each ended.  The CLI tells which messages a turn has taken in, or names them in its result, or both."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns(MAX_QUEUED)
        self.now = 0.0
        self.queue: list[str] = []
        self.waiting: list[str] = []
        """Written, and not yet part of a turn of the CLI."""
        self.in_turn: list[str] = []
        self.seen: set[str] = set()
        """Written messages of which the broker knows that the CLI has looked at them."""
        self.content: dict[str, str] = {}
        self.terminals: dict[str, TurnCompleted | TurnFailed] = {}
        self.tells = self.names = True

    @initialize(tells=st.booleans(), names=st.booleans())
    def begin(self, tells: bool, names: bool) -> None:
        """Which of its signs this CLI gives; at least one of them."""
        self.tells, self.names = tells or not names, names

    @property
    def written(self) -> list[str]:
        return [*self.in_turn, *self.waiting]

    def ends(self, frame: TurnCompleted | TurnFailed) -> None:
        assert frame.id is not None
        assert frame.id not in self.terminals, "a second terminal frame"
        self.terminals[frame.id] = frame

    def known(self, message_id: str, found: int | Repeat) -> None:
        """A repeat is told how the message ended."""
        end = self.terminals.get(message_id)
        assert isinstance(found, Repeat)
        outcome = None if end is None else "completed" if isinstance(end, TurnCompleted) else "failed"
        assert (found.id, found.outcome) == (message_id, outcome)

    @property
    def is_full(self) -> bool:
        return len(self.queue) + max(0, len(self.written) - 1) >= MAX_QUEUED

    @rule(seconds=st.sampled_from([0.1, 0.5, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(message_id=IDS, content=st.sampled_from(["a", "b"]))
    def submit(self, message_id: str, content: str) -> None:
        if message_id in self.content:
            if self.content[message_id] != content:
                assert refusal(self.turns, message_id, content) is ErrorCode.ID_CONFLICT
                return
            self.known(message_id, submit(self.turns, message_id, content, self.now))
        elif self.is_full:
            assert refusal(self.turns, message_id, content) is ErrorCode.QUEUE_FULL
        else:
            before = len(self.queue) + bool(self.written)
            assert submit(self.turns, message_id, content, self.now) == before
            self.content[message_id] = content
            self.queue.append(message_id)

    @precondition(lambda self: self.written)
    @rule(message_id=IDS)
    def steer(self, message_id: str) -> None:
        made = turn(message_id, "a", self.now)
        if self.content.get(message_id, "a") != "a" or (message_id not in self.content and self.is_full):
            with pytest.raises(ClientError):
                self.turns.submit(made, digest(b"a"), steered_at=self.now)
            return
        found = self.turns.submit(made, digest(b"a"), steered_at=self.now)
        if message_id in self.content:
            self.known(message_id, found)
            return
        assert found == 0
        assert (made.state, made.written_at) == (TurnState.WRITTEN, self.now)
        self.content[message_id] = "a"
        self.waiting.append(message_id)

    @rule()
    def start(self) -> None:
        found = self.turns.start_next(self.now)
        if self.written or not self.queue:
            assert found is None
            return
        assert found is not None
        self.waiting = [self.queue.pop(0)]
        assert (found.id, found.state, found.written_at) == (self.waiting[0], TurnState.WRITTEN, self.now)

    @precondition(lambda self: self.waiting)
    @rule(count=st.integers(1, 3))
    def take_in(self, count: int) -> None:
        """The CLI begins a turn with what waits there, or takes it into the one that runs."""
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        self.in_turn += taken
        if self.tells:
            for message_id in taken:
                self.turns.take(message_id)
            self.seen.update(taken)

    @precondition(lambda self: self.in_turn)
    @rule(is_delta=st.booleans())
    def frame(self, is_delta: bool) -> None:
        """As the session does it: the first init and the first visible delta are told to the turn."""
        current = self.turns.current
        assert current is not None
        if is_delta and current.first_delta_at is None:
            current.first_delta_at = self.now
            current.advance(TurnEvent.DELTA)
            self.seen.add(current.id)
        elif not current.is_initialized:
            current.is_initialized = True
            current.advance(TurnEvent.FRAME)
            self.seen.add(current.id)

    @rule()
    def interrupt(self) -> None:
        assert self.turns.ask_interrupt(self.now) == bool(self.written)

    @rule()
    def tick(self) -> None:
        current = self.turns.current
        if self.turns.is_interrupt_due(self.now):
            assert current is not None
            assert current.is_initialized
            assert current.interrupt_asked_at is not None
            assert current.interrupts_sent < 2
            previous = current.interrupt_sent_at
            assert previous is None or self.now - previous >= INTERRUPT_REPEAT_S
            self.turns.interrupt_written(self.now)
            assert not self.turns.is_interrupt_due(self.now)

    @rule(message_id=IDS)
    def cancel(self, message_id: str) -> None:
        if message_id in self.queue:
            frame = self.turns.cancel(message_id)
            assert frame == TurnFailed(
                message_id, FailureReason.CANCELLED, Applied.NO, retryable=True, detail="withdrawn by a client"
            )
            self.queue.remove(message_id)
            self.ends(frame)
            return
        with pytest.raises(ClientError) as caught:
            self.turns.cancel(message_id)
        known = message_id in self.content
        assert caught.value.code is (ErrorCode.ALREADY_STARTED if known else ErrorCode.UNKNOWN_MESSAGE)

    @rule(message_id=IDS)
    def drop(self, message_id: str) -> None:
        """The CLI says that it has thrown a waiting message away; of the turn's own it says something else."""
        dropped = self.turns.drop(message_id, "thrown away") if message_id not in self.in_turn else None
        if message_id not in self.waiting or message_id == self.written[0]:
            assert dropped is None
            return
        assert dropped is not None
        assert isinstance(dropped[0], TurnFailed)
        assert (dropped[0].applied, dropped[0].retryable) == (Applied.NO, True)
        self.waiting.remove(message_id)
        self.ends(dropped[0])

    @precondition(lambda self: self.in_turn)
    @rule(is_stopped=st.booleans(), is_blocked=st.booleans())
    def result(self, is_stopped: bool, is_blocked: bool) -> None:
        """The CLI's turn ends.  ``is_blocked``: a hook stopped its last message, which the result does not name."""
        assert self.turns.current is not None
        sent = self.turns.current.interrupts_sent
        named = self.in_turn
        if is_blocked and self.tells and len(named) > 1:
            self.turns.finish(named[-1])
            named = named[:-1]
        ended = self.turns.complete(
            Result(
                subtype="error_during_execution" if is_stopped else "success",
                is_error=is_stopped,
                user_message_uuid=named[-1] if self.names else None,
                user_message_uuids=named if self.names else [],
            ),
            self.now,
        )
        self.check(ended, is_stopped=is_stopped and sent > 0)
        self.in_turn = []
        if self.turns.current is not None:
            assert self.turns.current.written_at == self.now

    def check(self, ended: list[Ended], *, is_stopped: bool) -> None:
        """One frame for each message of the turn: the first is its own, the others were folded into it."""
        assert [frame.id for frame, _ in ended] == self.in_turn
        for frame, of in ended:
            assert isinstance(frame, TurnCompleted)
            assert of is not None
            assert of.state is TurnState.COMPLETED
            assert frame.folded_into == (None if frame.id == self.in_turn[0] else self.in_turn[0])
            assert (frame.origin, frame.stopped) == ("client", is_stopped)
            self.ends(frame)

    @precondition(lambda self: not self.in_turn)
    @rule()
    def result_of_its_own(self) -> None:
        """A turn that the CLI began by itself ends; what waits behind it waits on."""
        [(frame, of)] = self.turns.complete(Result(subtype="success", origin=OWN), self.now)
        assert isinstance(frame, TurnCompleted)
        assert (frame.id, frame.origin, of) == (None, "cli", None)

    @rule(reason=REASONS)
    def crash(self, reason: FailureReason) -> None:
        written = self.written
        ended = self.turns.fail_running(reason, "signal 9")
        assert [frame.id for frame, _ in ended] == written
        for message_id, (frame, _) in zip(written, ended, strict=True):
            applied = Applied.YES if message_id in self.seen else Applied.UNKNOWN
            assert frame == TurnFailed(message_id, reason, applied, retryable=False, detail="signal 9")
            self.ends(frame)
        self.in_turn, self.waiting = [], []

    @rule(reason=REASONS)
    def drop_queue(self, reason: FailureReason) -> None:
        frames = self.turns.fail_queued(reason, "gone")
        assert [frame.id for frame in frames] == self.queue
        for frame in frames:
            assert (frame.applied, frame.retryable) == (Applied.NO, True)
            self.ends(frame)
        self.queue.clear()

    @invariant()
    def agree(self) -> None:
        turns = self.turns
        current = [] if turns.current is None else [turns.current]
        assert turns.queued_ids == self.queue
        assert [turn.id for turn in [*current, *turns.steered]] == self.written
        assert turns.is_idle == (not self.written and not self.queue)
        assert set(self.content) - set(self.terminals) == {*self.queue, *self.written}
        if self.tells and self.in_turn:
            assert turns.waiting_ids == self.waiting
            assert all(turns.is_running(message_id) for message_id in self.in_turn)

    def teardown(self) -> None:
        """The end of a session: after it every accepted message has its terminal frame."""
        self.crash(FailureReason.DRAINING)
        self.drop_queue(FailureReason.DRAINING)
        assert set(self.terminals) == set(self.content)


def test_a_conversation_is_its_model() -> None:
    """Submit, steer, start, interrupt, cancel, result, crash: exactly one terminal frame for each accepted message."""
    run_state_machine_as_test(
        Conversation, settings=settings(max_examples=size(50, 200), stateful_step_count=40, deadline=None)
    )
