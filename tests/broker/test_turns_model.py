"""The life of a turn as a state machine: one terminal frame for each accepted message, whatever happens."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from broker.turns import INTERRUPT_REPEAT_S, Repeat, TurnEvent, Turns, TurnState
from protocol.cli import Result
from protocol.codes import Applied, ErrorCode, FailureReason
from protocol.errors import ClientError
from protocol.frames import TurnCompleted, TurnFailed
from tests.broker.test_turns import refusal, submit

IDS = st.sampled_from([f"m-{number}" for number in range(8)])
REASONS = st.sampled_from(list(FailureReason))
MAX_QUEUED = 3


class Conversation(RuleBasedStateMachine):
    """Messages by id: those that wait, the one that runs, and how each ended."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns(MAX_QUEUED)
        self.now = 0.0
        self.queue: list[str] = []
        self.running: str | None = None
        self.seen = False
        self.content: dict[str, str] = {}
        self.terminals: dict[str, TurnCompleted | TurnFailed] = {}

    def ends(self, frame: TurnCompleted | TurnFailed) -> None:
        assert frame.id is not None
        assert frame.id not in self.terminals, "a second terminal frame"
        self.terminals[frame.id] = frame

    @rule(seconds=st.sampled_from([0.1, 0.5, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(message_id=IDS, content=st.sampled_from(["a", "b"]))
    def submit(self, message_id: str, content: str) -> None:
        if message_id in self.content:
            if self.content[message_id] != content:
                assert refusal(self.turns, message_id, content) is ErrorCode.ID_CONFLICT
                return
            end = self.terminals.get(message_id)
            repeat = submit(self.turns, message_id, content, self.now)
            assert isinstance(repeat, Repeat)
            outcome = None if end is None else "completed" if isinstance(end, TurnCompleted) else "failed"
            assert (repeat.id, repeat.outcome) == (message_id, outcome)
        elif len(self.queue) >= MAX_QUEUED:
            assert refusal(self.turns, message_id, content) is ErrorCode.QUEUE_FULL
        else:
            before = len(self.queue) + (self.running is not None)
            assert submit(self.turns, message_id, content, self.now) == before
            self.content[message_id] = content
            self.queue.append(message_id)

    @rule()
    def start(self) -> None:
        found = self.turns.start_next(self.now)
        if self.running is not None or not self.queue:
            assert found is None
            return
        assert found is not None
        self.running, self.seen = self.queue.pop(0), False
        assert (found.id, found.state, found.written_at) == (self.running, TurnState.WRITTEN, self.now)

    @precondition(lambda self: self.running is not None)
    @rule(is_delta=st.booleans())
    def frame(self, is_delta: bool) -> None:
        """As the session does it: the first init and the first visible delta are told to the turn."""
        current = self.turns.current
        assert current is not None
        if is_delta and current.first_delta_at is None:
            current.first_delta_at = self.now
            current.advance(TurnEvent.DELTA)
            self.seen = True
        elif not current.is_initialized:
            current.is_initialized = True
            current.advance(TurnEvent.FRAME)
            self.seen = True

    @rule()
    def interrupt(self) -> None:
        assert self.turns.ask_interrupt(self.now) == (self.running is not None)

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

    @rule(is_stopped=st.booleans())
    def result(self, is_stopped: bool) -> None:
        current = self.turns.current
        sent = current.interrupts_sent if current is not None else 0
        subtype = "error_during_execution" if is_stopped else "success"
        frame = self.turns.complete(Result(subtype=subtype, is_error=is_stopped), self.now)
        assert frame.id == self.running
        assert frame.origin == ("cli" if self.running is None else "client")
        assert frame.stopped == (is_stopped and sent > 0)
        if self.running is not None:
            self.ends(frame)
        self.running = None

    @rule(reason=REASONS)
    def crash(self, reason: FailureReason) -> None:
        frame = self.turns.fail_current(reason, "signal 9")
        assert (frame is not None) == (self.running is not None)
        if frame is not None:
            applied = Applied.YES if self.seen else Applied.UNKNOWN
            assert frame == TurnFailed(str(self.running), reason, applied, retryable=False, detail="signal 9")
            self.ends(frame)
        self.running = None

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
        assert turns.queued_ids == self.queue
        assert (turns.current.id if turns.current is not None else None) == self.running
        assert turns.is_idle == (self.running is None and not self.queue)
        assert set(self.content) - set(self.terminals) == {*self.queue, *([self.running] if self.running else [])}

    def teardown(self) -> None:
        """The end of a session: after it every accepted message has its terminal frame."""
        self.crash(FailureReason.DRAINING)
        self.drop_queue(FailureReason.DRAINING)
        assert set(self.terminals) == set(self.content)


def test_a_conversation_is_its_model() -> None:
    """Submit, start, interrupt, cancel, result, crash: exactly one terminal frame for each accepted message."""
    run_state_machine_as_test(Conversation, settings=settings(max_examples=200, stateful_step_count=40, deadline=None))
