"""What the terminal frame of a message says, by the ``result`` that ends it or for the lack of one."""

from typing import Any

import pytest
from msgspec import UNSET, Raw

from broker.turns.endings import completed, failed, folded, of_the_cli, upstream_error
from broker.turns.turn import Turn, TurnState
from protocol.cli import Result
from protocol.codes import Applied, FailureReason, UpstreamError
from protocol.frames import SessionTotals, TurnCompleted, TurnFailed

TOTAL = SessionTotals(turns=7, output_tokens=30, cost_usd=0.5)


def turn(message_id: str = "m-1", **fields: Any) -> Turn:
    made = Turn(message_id, b"", "hello", "tab", received_at=10.0, state=TurnState.RUNNING, written_at=10.0003)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_the_figures_of_a_turn() -> None:
    """Times in milliseconds from the message's arrival, frames, and the result's usage as it stands."""
    made = turn(ttft_s=0.2124, overhead_s=0.0002, frames=48)
    result = Result(subtype="success", usage=Raw(b'{"output_tokens":3}'))
    assert completed(made, result, 0.0021, TOTAL, 11.873) == TurnCompleted(
        id="m-1", subtype="success", is_error=False, error=None, stopped=False, ttft_ms=212.4, queue_ms=0.3,
        overhead_ms=0.2, duration_ms=1873.0, frames=48, usage=Raw(b'{"output_tokens":3}'), cost_usd=0.0021, total=TOTAL,
    )  # fmt: skip
    bare = completed(turn(), Result(subtype="success"), None, TOTAL, 11.0)
    assert (bare.ttft_ms, bare.usage, bare.cost_usd, bare.folded_into, bare.origin) == (
        None,
        None,
        None,
        None,
        "client",
    )


def test_a_folded_message_costs_nothing_of_its_own() -> None:
    """It says how the shared turn ended and whose it was; what that cost is told there, once."""
    into = completed(
        turn("m-1", interrupts_sent=1), Result(subtype="error_during_execution", is_error=True), 0.2, TOTAL, 12.0
    )
    found = folded(turn("m-2", received_at=11.0, written_at=11.0, frames=3), into, 12.0)
    assert found == TurnCompleted(
        id="m-2", subtype="error_during_execution", is_error=True, error=None, stopped=True, ttft_ms=None, queue_ms=0.0,
        overhead_ms=0.0, duration_ms=1000.0, frames=0, usage=None, cost_usd=None, total=TOTAL, folded_into="m-1",
    )  # fmt: skip
    into = completed(turn("m-1"), Result(is_error=True, api_error_status=529), 0.2, TOTAL, 12.0)
    assert folded(turn("m-2"), into, 12.0).error is UpstreamError.OVERLOADED


def test_a_turn_of_the_cli_is_nobodys() -> None:
    """No id, no times, origin ``cli``, and its own cost and usage."""
    result = Result(subtype="success", is_error=True, api_error_status=529, usage=Raw(b"{}"))
    found = of_the_cli(result, 0.2, TOTAL)
    assert (found.id, found.origin, found.error, found.cost_usd) == (None, "cli", UpstreamError.OVERLOADED, 0.2)
    assert (found.ttft_ms, found.duration_ms, found.frames, found.usage) == (None, 0.0, 0, Raw(b"{}"))
    assert of_the_cli(Result(), None, TOTAL).usage is None


@pytest.mark.parametrize(
    ("state", "is_unread", "applied"),
    [
        (TurnState.QUEUED, False, Applied.NO),
        (TurnState.WRITTEN, False, Applied.UNKNOWN),
        (TurnState.WRITTEN, True, Applied.NO),
        (TurnState.RUNNING, False, Applied.YES),
        (TurnState.STREAMING, False, Applied.YES),
    ],
)
def test_a_failed_turn_says_whether_it_may_have_had_effects(
    state: TurnState, is_unread: bool, applied: Applied
) -> None:
    """By how far it came; only what was surely not read may be sent again without a thought."""
    assert failed(turn(state=state), FailureReason.CLI_EXITED, "signal 9", is_unread=is_unread) == TurnFailed(
        "m-1", FailureReason.CLI_EXITED, applied, retryable=applied is Applied.NO, detail="signal 9"
    )


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
    made = turn(assistant_error="overloaded")
    found = completed(made, Result(subtype="success", is_error=True), None, TOTAL, 2.0)
    assert (found.error, found.is_error, found.subtype) == (UpstreamError.OVERLOADED, True, "success")


def test_every_upstream_error_can_occur() -> None:
    """No member of the alphabet is dead: each is what some result complains of."""
    results = [Result(is_error=True, api_error_status=status) for status in (401, 429, 529, 500)]
    results += [Result(subtype=f"error_{name}") for name in ("max_turns", "max_budget_usd")]
    assert {upstream_error(result, None) for result in results} == set(UpstreamError)
    assert Result().usage is UNSET
