"""The terminal frames of a message: what a ``result``, or the lack of one, says about it.

Pure.  Caller: ``broker.turns.turns``, which sees to it that each message gets exactly one.
"""

from msgspec import UNSET

from broker.turns.turn import APPLIED, Turn
from protocol.cli import Result
from protocol.codes import Applied, FailureReason, UpstreamError
from protocol.frames import SessionTotals, TurnCompleted, TurnFailed

_BY_STATUS = {
    401: UpstreamError.AUTH,
    403: UpstreamError.AUTH,
    429: UpstreamError.RATE_LIMITED,
    529: UpstreamError.OVERLOADED,
}
_BY_NAME = {
    "authentication_failed": UpstreamError.AUTH,
    "oauth_org_not_allowed": UpstreamError.AUTH,
    "rate_limit": UpstreamError.RATE_LIMITED,
    "overloaded": UpstreamError.OVERLOADED,
}
_BY_SUBTYPE = {"error_max_turns": UpstreamError.MAX_TURNS, "error_max_budget_usd": UpstreamError.MAX_BUDGET}


def completed(turn: Turn, result: Result, cost_usd: float | None, total: SessionTotals, now: float) -> TurnCompleted:
    """The end of the turn that ``result`` ends; ``cost_usd`` is its own, ``total`` the conversation's."""
    stopped = is_stopped(turn, result)
    return TurnCompleted(
        id=turn.id,
        subtype=result.subtype,
        is_error=result.is_error,
        error=None if stopped else upstream_error(result, turn.assistant_error),
        stopped=stopped,
        ttft_ms=None if turn.ttft_s is None else round(turn.ttft_s * 1e3, 3),
        queue_ms=_queue_ms(turn, now),
        overhead_ms=round(turn.overhead_s * 1e3, 3),
        duration_ms=_duration_ms(turn, now),
        frames=turn.frames,
        usage=None if result.usage is UNSET else result.usage,
        cost_usd=cost_usd,
        total=total,
    )


def folded(turn: Turn, into: TurnCompleted, now: float) -> TurnCompleted:
    """The end of a message that the CLI took into the turn of ``into``, which counts what both have cost."""
    return TurnCompleted(
        id=turn.id,
        subtype=into.subtype,
        is_error=into.is_error,
        error=into.error,
        stopped=into.stopped,
        ttft_ms=None,
        queue_ms=_queue_ms(turn, now),
        overhead_ms=round(turn.overhead_s * 1e3, 3),
        duration_ms=_duration_ms(turn, now),
        frames=0,
        usage=None,
        cost_usd=None,
        total=into.total,
        folded_into=into.id,
    )


def of_the_cli(result: Result, cost_usd: float | None, total: SessionTotals) -> TurnCompleted:
    """The end of a turn that the CLI began by itself."""
    return TurnCompleted(
        id=None, subtype=result.subtype, is_error=result.is_error, error=upstream_error(result, None), stopped=False,
        ttft_ms=None, queue_ms=0.0, overhead_ms=0.0, duration_ms=0.0, frames=0,
        usage=None if result.usage is UNSET else result.usage, cost_usd=cost_usd, total=total, origin="cli",
    )  # fmt: skip


def failed(turn: Turn, reason: FailureReason, detail: str, *, is_unread: bool = False) -> TurnFailed:
    """The end of a message without a ``result``.  ``is_unread``: the CLI has said that it never looked at it."""
    applied = Applied.NO if is_unread else APPLIED[turn.state]
    return TurnFailed(turn.id, reason, applied, retryable=applied is Applied.NO, detail=detail)


def cut_off(message_id: str, *, is_unwritten: bool) -> TurnFailed:
    """The end of a message that an earlier run of the broker has accepted, and did not live to see the end of.

    ``is_unwritten``: no CLI was given it.
    """
    applied = Applied.NO if is_unwritten else Applied.UNKNOWN
    detail = "the broker was restarted"
    return TurnFailed(message_id, FailureReason.BROKER_RESTARTED, applied, retryable=is_unwritten, detail=detail)


def is_stopped(turn: Turn, result: Result) -> bool:
    """Whether an interrupt ended the turn."""
    return turn.interrupts_sent > 0 and result.subtype == "error_during_execution"


def upstream_error(result: Result, assistant_error: str | None) -> UpstreamError | None:
    """What a ``result`` with ``is_error`` complains of; an API failure arrives with subtype ``success``."""
    if not result.is_error and not result.subtype.startswith("error"):
        return None
    if result.subtype in _BY_SUBTYPE:
        return _BY_SUBTYPE[result.subtype]
    if result.api_error_status in _BY_STATUS:
        return _BY_STATUS[result.api_error_status]
    return _BY_NAME.get(assistant_error or "", UpstreamError.ERROR)


def _queue_ms(turn: Turn, now: float) -> float:
    return round(((turn.written_at or now) - turn.received_at) * 1e3, 3)


def _duration_ms(turn: Turn, now: float) -> float:
    return round((now - turn.received_at) * 1e3, 3)
