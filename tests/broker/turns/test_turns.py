"""The life of a turn, one situation at a time; ``test_turns_model`` has them in any order."""

from typing import Any

import pytest
from msgspec import Raw

from broker.turns.message_ids import REMEMBERED_IDS, Repeat, digest
from broker.turns.turn import APPLIED, TRANSITIONS, Turn, TurnEvent, TurnState
from broker.turns.turns import Ended, Turns
from protocol.cli import Result
from protocol.codes import Applied, ErrorCode, FailureReason, UpstreamError
from protocol.errors import ClientError
from protocol.frames import TurnCompleted, TurnFailed


def turn(message_id: str, content: str = "hello", at: float = 0.0) -> Turn:
    return Turn(message_id, content.encode(), content, "tab", at)


def submit(turns: Turns, message_id: str, content: str = "hello", at: float = 0.0) -> int | Repeat:
    return turns.submit(turn(message_id, content, at), digest(content.encode()))


def refusal(turns: Turns, message_id: str, content: str = "hello") -> ErrorCode:
    with pytest.raises(ClientError) as caught:
        submit(turns, message_id, content)
    assert caught.value.ref == message_id
    return caught.value.code


def started(turns: Turns, message_id: str = "m-1", at: float = 1.0) -> Turn:
    submit(turns, message_id)
    current = turns.start_next(at)
    assert current is not None
    return current


def completed(turns: Turns, result: Result, now: float = 2.0) -> TurnCompleted:
    """The one end of a turn that nothing was steered into."""
    [(frame, _)] = turns.complete(result, now)
    assert isinstance(frame, TurnCompleted)
    return frame


def ended(turns: Turns, message_id: str, **result: Any) -> TurnCompleted:
    started(turns, message_id)
    return completed(turns, Result(subtype="success", **result))


def test_the_table_covers_what_can_occur() -> None:
    """A written turn takes every event but a second write; a queued one only write and fail; an ended one nothing."""
    running = {TurnState.WRITTEN, TurnState.RUNNING, TurnState.STREAMING}
    occurring: set[tuple[TurnState, TurnEvent]] = {
        (state, event) for state in running for event in TurnEvent if event is not TurnEvent.WRITE
    }
    occurring |= {(TurnState.QUEUED, TurnEvent.WRITE), (TurnState.QUEUED, TurnEvent.FAIL)}
    assert set(TRANSITIONS) == occurring
    assert set(APPLIED) == {*running, TurnState.QUEUED}
    for (state, event), after in TRANSITIONS.items():
        ends = {TurnEvent.RESULT: TurnState.COMPLETED, TurnEvent.FAIL: TurnState.FAILED}
        assert after is ends.get(event, after)
        assert after is not TurnState.QUEUED
        assert not (state is TurnState.STREAMING and after is TurnState.RUNNING)
    with pytest.raises(KeyError):
        turn("m-1").advance(TurnEvent.RESULT)


# -- the queue -------------------------------------------------------------------------------------------------------


def test_the_queue_counts_what_waits_behind_the_turn() -> None:
    """So many may wait behind the running turn, and one more is told the limit and its setting."""
    turns = Turns(2)
    started(turns, "m-0")
    assert [submit(turns, "m-1"), submit(turns, "m-2")] == [1, 2]
    with pytest.raises(ClientError, match=r"turn\.queue is 2") as caught:
        submit(turns, "m-3")
    assert caught.value.code is ErrorCode.QUEUE_FULL
    turns.complete(Result(subtype="success"), 2.0)
    assert turns.start_next(3.0) is not None
    assert submit(turns, "m-3") == 2, "a refused id was not used"


def test_without_a_queue_one_message_at_a_time_is_taken() -> None:
    """A queue of none still lets an idle session take a message: it waits behind nothing."""
    turns = Turns(0)
    assert submit(turns, "m-1") == 0
    assert refusal(turns, "m-2") is ErrorCode.QUEUE_FULL
    assert turns.start_next(1.0) is not None
    assert refusal(turns, "m-2") is ErrorCode.QUEUE_FULL
    turns.complete(Result(subtype="success"), 2.0)
    assert submit(turns, "m-2") == 0


def test_a_closed_session_takes_nothing_new() -> None:
    """While the broker stops a new message is refused, a repeat is still told its outcome, and what runs may end."""
    turns = Turns(2)
    started(turns)
    turns.is_closed = True
    assert refusal(turns, "m-2") is ErrorCode.DRAINING
    assert refusal(turns, "m-1", "other") is ErrorCode.ID_CONFLICT
    assert completed(turns, Result(subtype="success")).id == "m-1"
    assert submit(turns, "m-1") == Repeat("m-1", "completed")
    turns.is_closed = False
    assert submit(turns, "m-2") == 0, "a refused id was not used"


def test_a_session_remembers_that_it_wrote() -> None:
    """Only a written message is something that a CLI could remember."""
    turns = Turns(2)
    submit(turns, "m-1")
    assert not turns.has_written
    turns.start_next(1.0)
    assert turns.has_written


# -- ids -------------------------------------------------------------------------------------------------------------


def test_a_repeat_tells_how_it_ended() -> None:
    """The same id with the same content is the same message: still open, completed or failed."""
    turns = Turns(4)
    started(turns, "m-1")
    submit(turns, "m-2")
    assert submit(turns, "m-1") == Repeat("m-1", None)
    assert submit(turns, "m-2") == Repeat("m-2", None)
    turns.complete(Result(subtype="success"), 2.0)
    turns.fail_queued(FailureReason.DRAINING, "")
    assert submit(turns, "m-1") == Repeat("m-1", "completed")
    assert submit(turns, "m-2") == Repeat("m-2", "failed")
    assert refusal(turns, "m-1", "other") is ErrorCode.ID_CONFLICT


def test_the_last_ids_are_remembered_and_open_ones_always() -> None:
    """1,024 ids are kept; the oldest ended one is forgotten first, an open one never."""
    turns = Turns(2)
    started(turns, "open")
    for number in range(REMEMBERED_IDS):
        submit(turns, f"m-{number}")
        turns.cancel(f"m-{number}")
    assert REMEMBERED_IDS == 1024
    assert submit(turns, "open") == Repeat("open", None)
    assert submit(turns, "m-1") == Repeat("m-1", "failed")
    assert submit(turns, "m-0", "other content") == 1, "forgotten: a new message"
    assert completed(turns, Result(subtype="success")).id == "open"


def test_open_ids_may_exceed_what_is_remembered() -> None:
    """A queue longer than the memory of ids loses none of its messages."""
    turns = Turns(REMEMBERED_IDS + 10)
    for number in range(REMEMBERED_IDS + 10):
        submit(turns, f"m-{number}")
    assert submit(turns, "m-0") == Repeat("m-0", None)
    assert len(turns.fail_queued(FailureReason.DRAINING, "")) == REMEMBERED_IDS + 10


# -- interrupts ------------------------------------------------------------------------------------------------------


def test_an_interrupt_is_held_until_the_turn_began_and_repeated_once() -> None:
    """Never before init; then at once; then once more after half a second without a result; then no more."""
    turns = Turns(2)
    assert not turns.ask_interrupt(0.0)
    assert not turns.is_interrupt_due(0.0)
    current = started(turns)
    assert not turns.is_interrupt_due(1.0)
    assert turns.ask_interrupt(2.0)
    assert not turns.is_interrupt_due(9.0)
    current.is_initialized = True
    assert turns.is_interrupt_due(9.0)
    turns.interrupt_written(9.0)
    assert turns.ask_interrupt(9.1)
    assert current.interrupt_asked_at == 2.0, "asking again changes nothing"
    assert not turns.is_interrupt_due(9.49)
    assert turns.is_interrupt_due(9.5)
    turns.interrupt_written(9.5)
    assert not turns.is_interrupt_due(1000.0)
    stopped = completed(turns, Result(subtype="error_during_execution", is_error=True), 10.0)
    assert (stopped.stopped, stopped.is_error, stopped.error) == (True, True, None)


def test_an_interrupt_does_not_reach_the_next_turn() -> None:
    """What was asked of one turn is forgotten with it."""
    turns = Turns(2)
    started(turns, "m-1").is_initialized = True
    turns.ask_interrupt(1.0)
    turns.complete(Result(subtype="success"), 2.0)
    started(turns, "m-2").is_initialized = True
    assert not turns.is_interrupt_due(9.0)


def test_an_interrupted_turn_that_succeeded_was_not_stopped() -> None:
    """A result that came first wins, and an error without an interrupt is an error."""
    turns = Turns(2)
    started(turns, "m-1").is_initialized = True
    turns.ask_interrupt(1.0)
    turns.interrupt_written(1.0)
    assert not completed(turns, Result(subtype="success")).stopped
    started(turns, "m-2")
    failed = completed(turns, Result(subtype="error_during_execution", is_error=True))
    assert (failed.stopped, failed.error) == (False, UpstreamError.ERROR)


# -- steering --------------------------------------------------------------------------------------------------------


def steer(turns: Turns, message_id: str, at: float = 1.5) -> int | Repeat:
    return turns.submit(turn(message_id, at=at), digest(b"hello"), steered_at=at)


def steering(*message_ids: str, limit: int = 4) -> Turns:
    """A running ``m-1`` into which messages were steered."""
    turns = Turns(limit)
    started(turns)
    for message_id in message_ids:
        assert steer(turns, message_id) == 0
    return turns


def told(ended_: list[Ended]) -> list[tuple[str | None, str | None]]:
    """Who was ended, and in whose turn."""
    return [(frame.id, frame.folded_into) for frame, _ in ended_ if isinstance(frame, TurnCompleted)]


DONE = Result(subtype="success")


def test_what_the_turn_took_in_ends_with_it() -> None:
    """One result, and a terminal for each: first the turn's, then those that were folded into it, in their order."""
    turns = steering("m-2", "m-3")
    assert (turns.waiting_ids, turns.is_running("m-2")) == (["m-2", "m-3"], False)
    turns.take("m-1")
    turns.take("m-2")
    assert (turns.waiting_ids, turns.is_running("m-2")) == (["m-3"], True)
    turns.take("m-3")
    assert told(turns.complete(DONE, 2.0)) == [("m-1", None), ("m-2", "m-1"), ("m-3", "m-1")]
    assert turns.is_idle
    assert submit(turns, "m-2") == Repeat("m-2", "completed")
    assert turns.usage.total.turns == 1, "they shared one turn"


def test_what_the_turn_did_not_take_in_is_the_next_turn() -> None:
    """The CLI begins it without being told: its clocks start at the result, and nothing else is written before."""
    turns = steering("m-2")
    submit(turns, "m-3")
    turns.take("m-1")
    assert told(turns.complete(DONE, 2.0)) == [("m-1", None)]
    current = turns.current
    assert current is not None
    assert (current.id, current.written_at, current.last_frame_at) == ("m-2", 2.0, 2.0)
    assert (current.state, current.is_initialized) == (TurnState.WRITTEN, False)
    assert turns.start_next(2.0) is None
    turns.take("m-2")
    assert told(turns.complete(DONE, 3.0)) == [("m-2", None)]
    assert turns.start_next(3.0) is not None


def test_several_that_are_left_share_the_next_turn() -> None:
    """The CLI runs what waits there together: the first is the turn, the others are folded into it."""
    turns = steering("m-2", "m-3")
    turns.complete(Result(subtype="success", user_message_uuids=["m-1"]), 2.0)
    shared = Result(subtype="success", user_message_uuid="m-3", user_message_uuids=["m-2", "m-3"])
    assert told(turns.complete(shared, 3.0)) == [("m-2", None), ("m-3", "m-2")]
    assert turns.is_idle


def test_a_result_names_its_messages_where_the_cli_tells() -> None:
    """The ids of the result decide, also without any other sign."""
    turns = steering("m-2")
    both = Result(subtype="success", user_message_uuid="m-1", user_message_uuids=["m-1", "m-2"])
    assert told(turns.complete(both, 2.0)) == [("m-1", None), ("m-2", "m-1")]


def test_without_any_sign_they_end_in_order() -> None:
    """A CLI that says nothing of its messages: each result ends the oldest."""
    turns = steering("m-2", "m-3")
    assert [told(turns.complete(DONE, 2.0)) for _ in range(3)] == [[("m-1", None)], [("m-2", None)], [("m-3", None)]]
    assert turns.is_idle


def test_a_message_that_a_hook_stopped_ends_with_the_turn_it_was_meant_for() -> None:
    """The CLI says that it is done with it, and its result does not name it: it ends there all the same."""
    turns = steering("m-2")
    turns.take("m-2")
    turns.finish("m-2")
    assert told(turns.complete(Result(subtype="success", user_message_uuids=["m-1"]), 2.0)) == [
        ("m-1", None), ("m-2", "m-1")
    ]  # fmt: skip


@pytest.mark.parametrize(
    "result",
    [
        Result(subtype="success", origin=Raw(b'{"kind":"task-notification"}')),
        Result(subtype="success", user_message_uuids=["another"]),
    ],
)
def test_a_turn_of_the_cli_itself_does_not_end_a_message(result: Result) -> None:
    """A background task has ended: the message that waits behind its turn waits on."""
    turns = steering("m-2")
    assert told(turns.complete(result, 2.0)) == [(None, None)]
    assert turns.current is not None
    assert turns.current.id == "m-1"
    assert turns.waiting_ids == ["m-2"]
    assert turns.completed == 0
    assert told(turns.complete(Result(subtype="success", origin=Raw(b'{"kind":"human"}')), 3.0)) == [("m-1", None)]


def test_a_crash_ends_all_that_was_written() -> None:
    """Each by how far it came: what the turn had taken in surely counts, what waited in the CLI is unknown."""
    turns = steering("m-2", "m-3")
    turns.take("m-1")
    turns.take("m-2")
    failed = [frame for frame, _ in turns.fail_running(FailureReason.CLI_EXITED, "signal 9")]
    assert [(frame.id, frame.applied, frame.retryable) for frame in failed if isinstance(frame, TurnFailed)] == [
        ("m-1", Applied.YES, False), ("m-2", Applied.YES, False), ("m-3", Applied.UNKNOWN, False)
    ]  # fmt: skip
    assert turns.is_idle
    assert turns.fail_running(FailureReason.CLI_EXITED, "again") == []


def test_a_message_that_the_cli_dropped_ends_alone() -> None:
    """Withdrawn before the turn took it in: it was never read and may be sent again; a taken one is not dropped."""
    turns = steering("m-2", "m-3")
    turns.take("m-3")
    dropped = turns.drop("m-2", "withdrawn by an interrupt")
    assert dropped is not None
    assert dropped[0] == TurnFailed(
        "m-2", FailureReason.CANCELLED, Applied.NO, retryable=True, detail="withdrawn by an interrupt"
    )
    assert [turns.drop(message_id, "") for message_id in ("m-1", "m-2", "m-3", "m-4")] == [None] * 4
    assert told(turns.complete(DONE, 2.0)) == [("m-1", None), ("m-3", "m-1")]
    assert turns.is_idle


def test_a_message_that_is_withdrawn_after_it_became_the_turn_ends_too() -> None:
    """The CLI's word may come behind the ``result`` that made it the running turn: what is left goes on."""
    turns = steering("m-2", "m-3")
    assert told(turns.complete(Result(user_message_uuids=["m-1"]), 2.0)) == [("m-1", None)]
    assert turns.current is not None
    assert turns.current.id == "m-2"
    withdrawn = turns.withdraw("m-2", "withdrawn by an interrupt", 3.0)
    assert withdrawn is not None
    assert isinstance(withdrawn[0], TurnFailed)
    assert (withdrawn[0].id, withdrawn[0].applied, withdrawn[0].retryable) == ("m-2", Applied.NO, True)
    assert (turns.current.id, turns.current.written_at) == ("m-3", 3.0)
    turns.take("m-3")
    assert turns.withdraw("m-3", "too late", 4.0) is None
    assert turns.withdraw("m-9", "unknown", 4.0) is None


def test_the_queue_bounds_what_is_steered() -> None:
    """Messages behind the running turn count together, in the queue and in the CLI; repeats are repeats."""
    turns = steering("m-2", limit=2)
    assert submit(turns, "m-3") == 1
    with pytest.raises(ClientError) as caught:
        steer(turns, "m-4")
    assert caught.value.code is ErrorCode.QUEUE_FULL
    assert refusal(turns, "m-4") is ErrorCode.QUEUE_FULL
    assert steer(turns, "m-2") == Repeat("m-2", None)
    with pytest.raises(ClientError) as again:
        turns.cancel("m-2")
    assert again.value.code is ErrorCode.ALREADY_STARTED


def test_signs_for_other_messages_change_nothing() -> None:
    """A message of an earlier turn, or of nobody, and the same sign twice."""
    turns = steering("m-2")
    for message_id in ("m-0", "m-2", "m-2", ""):
        turns.take(message_id)
        turns.finish("m-0")
    assert turns.waiting_ids == []
    assert told(turns.complete(DONE, 2.0)) == [("m-1", None), ("m-2", "m-1")]
    turns.take("m-1")
    turns.finish("m-1")
    assert turns.is_idle


def test_a_branch_has_names_of_its_own_for_the_cli() -> None:
    """What the CLI says of a marked id is about the message; of an id that it does not mark, about none of these."""
    turns = steering("m-2")
    turns.mark = "~8f3a01bc"
    assert (turns.for_cli("m-1"), turns.for_cli("m-9")) == ("m-1~8f3a01bc", "m-9")
    assert (turns.own("m-1~8f3a01bc"), turns.own("m-1")) == ("m-1", "m-1")
    assert told(turns.complete(Result(user_message_uuids=["m-1~8f3a01bc", "m-2~8f3a01bc"]), 2.0)) == [
        ("m-1", None), ("m-2", "m-1")
    ]  # fmt: skip
