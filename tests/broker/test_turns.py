"""The life of a turn, one situation at a time; ``test_turns_model`` has them in any order."""

from typing import Any

import pytest
from msgspec import UNSET, Raw

from broker.turns import (
    APPLIED,
    REMEMBERED_IDS,
    TRANSITIONS,
    Repeat,
    Turn,
    TurnEvent,
    Turns,
    TurnState,
    digest,
    upstream_error,
)
from protocol.cli import Result
from protocol.codes import ErrorCode, FailureReason, UpstreamError
from protocol.errors import ClientError
from protocol.frames import TurnCompleted


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


def ended(turns: Turns, message_id: str, **result: Any) -> TurnCompleted:
    started(turns, message_id)
    return turns.complete(Result(subtype="success", **result), 2.0)


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
    assert turns.complete(Result(subtype="success"), 2.0).id == "m-1"
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
    assert turns.complete(Result(subtype="success"), 2.0).id == "open"


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
    stopped = turns.complete(Result(subtype="error_during_execution", is_error=True), 10.0)
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
    assert not turns.complete(Result(subtype="success"), 2.0).stopped
    started(turns, "m-2")
    failed = turns.complete(Result(subtype="error_during_execution", is_error=True), 2.0)
    assert (failed.stopped, failed.error) == (False, UpstreamError.ERROR)


# -- the terminal frame ----------------------------------------------------------------------------------------------


def test_the_figures_of_a_turn() -> None:
    """Times in milliseconds from the message's arrival, frames, and the result's usage as it stands."""
    turns = Turns(2)
    submit(turns, "m-1", at=10.0)
    current = turns.start_next(10.0003)
    assert current is not None
    current.ttft_s, current.overhead_s, current.frames = 0.2124, 0.0002, 48
    found = turns.complete(Result(subtype="success", usage=Raw(b'{"output_tokens":3}'), total_cost_usd=0.0021), 11.873)
    assert found == TurnCompleted(
        id="m-1", subtype="success", is_error=False, error=None, stopped=False, ttft_ms=212.4, queue_ms=0.3,
        overhead_ms=0.2, duration_ms=1873.0, frames=48, usage=Raw(b'{"output_tokens":3}'), cost_usd=0.0021,
    )  # fmt: skip
    assert turns.completed == 1
    assert ended(turns, "m-2").ttft_ms is None
    assert ended(turns, "m-3").usage is None


def test_a_turn_that_the_cli_began_by_itself() -> None:
    """Its result ends nobody's message: no id, no times, origin ``cli``, and its cost is its own."""
    turns = Turns(2)
    ended(turns, "m-1", total_cost_usd=0.5)
    found = turns.complete(
        Result(subtype="success", is_error=True, api_error_status=529, total_cost_usd=0.7, usage=Raw(b"{}")), 3.0
    )
    assert (found.id, found.origin, found.error, found.cost_usd) == (None, "cli", UpstreamError.OVERLOADED, 0.2)
    assert (found.ttft_ms, found.duration_ms, found.frames, found.usage) == (None, 0.0, 0, Raw(b"{}"))
    assert turns.complete(Result(subtype="success"), 3.0).usage is None
    assert turns.completed == 1


def test_the_cost_is_the_difference() -> None:
    """The CLI's total grows over the turns and over ``--resume``; a process that begins anew begins at zero."""
    turns = Turns(2)
    costs = [ended(turns, f"m-{number}", total_cost_usd=total).cost_usd
             for number, total in enumerate([0.1, 0.3, 0.3, None, 0.35, 0.02, 0.05])]  # fmt: skip
    assert costs == [0.1, 0.2, 0.0, None, 0.05, 0.02, 0.03]


def test_a_failed_turn_costs_the_next_one_nothing_twice() -> None:
    """What a turn without a result had spent is in the next total, and told there."""
    turns = Turns(2)
    ended(turns, "m-1", total_cost_usd=0.1)
    started(turns, "m-2")
    turns.fail_current(FailureReason.CLI_EXITED, "signal 9")
    assert ended(turns, "m-3", total_cost_usd=0.4).cost_usd == 0.3


@pytest.mark.parametrize(
    ("result", "assistant", "expected"),
    [
        (Result(subtype="success"), None, None),
        (Result(subtype="success"), "overloaded", None),
        (Result(subtype="success", is_error=True, api_error_status=401), None, UpstreamError.AUTH),
        (Result(subtype="success", is_error=True, api_error_status=403), None, UpstreamError.AUTH),
        (Result(subtype="success", is_error=True, api_error_status=429), None, UpstreamError.RATE_LIMITED),
        (Result(subtype="success", is_error=True, api_error_status=529), None, UpstreamError.OVERLOADED),
        (Result(subtype="success", is_error=True, api_error_status=400), None, UpstreamError.ERROR),
        (Result(subtype="success", is_error=True, api_error_status=500), None, UpstreamError.ERROR),
        (Result(subtype="success", is_error=True, api_error_status=529), "rate_limit", UpstreamError.OVERLOADED),
        (Result(subtype="success", is_error=True), "authentication_failed", UpstreamError.AUTH),
        (Result(subtype="success", is_error=True), "oauth_org_not_allowed", UpstreamError.AUTH),
        (Result(subtype="success", is_error=True), "rate_limit", UpstreamError.RATE_LIMITED),
        (Result(subtype="success", is_error=True), "overloaded", UpstreamError.OVERLOADED),
        (Result(subtype="success", is_error=True), "server_error", UpstreamError.ERROR),
        (Result(subtype="success", is_error=True), None, UpstreamError.ERROR),
        (Result(subtype="error_max_turns", is_error=True), None, UpstreamError.MAX_TURNS),
        (Result(subtype="error_max_turns", is_error=False), None, UpstreamError.MAX_TURNS),
        (Result(subtype="error_max_budget_usd", is_error=True), "overloaded", UpstreamError.MAX_BUDGET),
        (Result(subtype="error_during_execution", is_error=True), None, UpstreamError.ERROR),
        (Result(subtype="error_during_execution", is_error=True, api_error_status=529), None, UpstreamError.OVERLOADED),
    ],
)
def test_what_a_result_complains_of(result: Result, assistant: str | None, expected: UpstreamError | None) -> None:
    """The limits by subtype, API failures by status (they come as a success), else by the assistant's error."""
    assert upstream_error(result, assistant) is expected


def test_the_error_of_the_assistant_line_reaches_the_terminal() -> None:
    """An API failure without a status is named by what its assistant line said."""
    turns = Turns(2)
    started(turns).assistant_error = "overloaded"
    found = turns.complete(Result(subtype="success", is_error=True), 2.0)
    assert (found.error, found.is_error, found.subtype) == (UpstreamError.OVERLOADED, True, "success")


def test_every_upstream_error_can_occur() -> None:
    """No member of the alphabet is dead: each is what some result complains of."""
    results = [Result(is_error=True, api_error_status=status) for status in (401, 429, 529, 500)]
    results += [Result(subtype=f"error_{name}") for name in ("max_turns", "max_budget_usd")]
    assert {upstream_error(result, None) for result in results} == set(UpstreamError)
    assert Result().usage is UNSET
