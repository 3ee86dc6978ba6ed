"""How many messages pass: never more than a bucket gives, in any window, and whoever waits as told is let through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.limits import Limits
from broker.pool.limits import FLOOD_WITHIN_S, NEARLY, Allowance, Bucket, RateLimited, Window, milliseconds
from protocol.codes import CloseCode, ErrorCode, Limit

RATES = st.floats(0.01, 1000)
BURSTS = st.integers(1, 200)
STARTS = st.floats(0, 1e6)
PAUSES = st.lists(st.floats(0, 30) | st.floats(0, 0.01) | st.just(0.0), max_size=200)


def moments(start: float, pauses: list[float]) -> list[float]:
    """The times at which messages come, ascending."""
    times = [start]
    for pause in pauses:
        times.append(times[-1] + pause)
    return times


def passed(bucket: Bucket, times: list[float]) -> list[float]:
    """The times at which a token was taken."""
    taken = []
    for now in times:
        if bucket.wait_s(now) == 0:
            bucket.take(now)
            taken.append(now)
    return taken


# -- the bucket ------------------------------------------------------------------------------------------------------


@given(RATES, BURSTS, STARTS, PAUSES)
def test_no_window_gets_more_than_burst_and_rate(rate: float, burst: int, start: float, pauses: list[float]) -> None:
    """Between any two messages that passed, both counted, there are at most ``burst + rate * t``."""
    taken = passed(Bucket(rate, burst), moments(start, pauses))
    for first, since in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - since) + 2 * NEARLY


@given(RATES, BURSTS, STARTS, PAUSES)
def test_nothing_is_refused_too_early(rate: float, burst: int, start: float, pauses: list[float]) -> None:
    """It lets as many pass as one that counts its tokens, message by message."""
    bucket, level, before = Bucket(rate, burst), float(burst), start
    for now in moments(start, pauses):
        level, before = min(burst, level + (now - before) * rate), now
        if bucket.wait_s(now) == 0:
            bucket.take(now)
            level -= 1
            assert level >= -NEARLY
        else:
            assert level < 1


@given(RATES, BURSTS, STARTS)
def test_a_full_bucket_gives_its_burst_at_once(rate: float, burst: int, start: float) -> None:
    """Exactly ``burst`` in one moment, then one for each ``1 / rate`` seconds."""
    bucket = Bucket(rate, burst)
    assert len(passed(bucket, [start] * (burst + 5))) == burst
    assert bucket.wait_s(start) == 1 / rate


@given(RATES, BURSTS, STARTS, PAUSES)
def test_whoever_waits_as_told_is_let_through(rate: float, burst: int, start: float, pauses: list[float]) -> None:
    """After ``wait_s``, rounded up to a millisecond as clients are told, there is a token."""
    bucket = Bucket(rate, burst)
    for now in moments(start, pauses):
        wait = bucket.wait_s(now)
        assert wait <= (1 + NEARLY) / rate
        if wait:
            assert bucket.wait_s(now + milliseconds(wait) / 1000) == 0
        else:
            bucket.take(now)


def test_a_bucket_that_rests_is_full_and_no_more() -> None:
    """An hour of silence gives the burst, not an hour's messages."""
    bucket = Bucket(20, 40)
    assert len(passed(bucket, [0.0] * 100)) == 40
    assert len(passed(bucket, [3600.0] * 100)) == 40


# -- the window ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10), STARTS, PAUSES)
def test_a_window_never_holds_more_than_its_limit(limit: int, start: float, pauses: list[float]) -> None:
    """Whoever adds only where ``wait_s`` is 0 has no more than ``limit`` in any 60 s; waiting as told is enough."""
    window, taken = Window(60.0), []
    for now in moments(start, pauses):
        wait = window.wait_s(limit, now)
        if wait == 0:
            window.add(now)
            taken.append(now)
        else:
            assert 0 < wait <= 60.0
            assert window.count(now) == limit
        assert sum(now - at < 60.0 for at in taken) == window.count(now) <= limit


# -- a connection ----------------------------------------------------------------------------------------------------


def refusal(allowance: Allowance, now: float, message_id: str | None = "m-1") -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        allowance.take(message_id, now)
    return caught.value


def test_a_refusal_names_the_limit_and_when_to_come_again() -> None:
    """Code, message id, both settings and their values, and the milliseconds until the next token."""
    allowance = Allowance(Limits(messages_per_second=4, messages_burst=2), None)
    allowance.take("m-1", 0.0)
    allowance.take("m-2", 0.0)
    error = refusal(allowance, 0.1, "m-3")
    assert (error.code, error.ref, error.close, error.limit) == (
        ErrorCode.RATE_LIMITED, "m-3", None, Limit.MESSAGES_PER_SECOND,
    )  # fmt: skip
    assert error.message == "limits.messages_per_second = 4, limits.messages_burst = 2"
    assert error.retry_after_ms == 150
    allowance.take("m-3", 0.25)
    assert refusal(allowance, 0.25, None).ref is None


def test_a_tenants_connections_share_a_bucket() -> None:
    """What one has taken the other lacks; a message that the tenant may not send costs the connection nothing."""
    limits, shared = Limits(messages_per_second=0.5, messages_burst=2), Bucket(2, 3)
    one, two = Allowance(limits, shared), Allowance(limits, shared)
    one.take("m-1", 0.0)
    two.take("m-2", 0.0)
    two.take("m-3", 0.0)
    error = refusal(one, 0.0)
    assert error.limit is Limit.TENANT_MESSAGES_PER_SECOND
    assert "limits.tenant_messages_per_second = 2" in error.message
    assert error.retry_after_ms == 500
    one.take("m-4", 0.5)
    error = refusal(one, 0.5)
    assert (error.limit, error.retry_after_ms) == (Limit.MESSAGES_PER_SECOND, 1500), "the longer of both waits"


def test_a_flood_ends_the_connection() -> None:
    """One more than ``refused_messages`` refusals in 10 s: the error closes with 4003 and names that setting."""
    allowance = Allowance(Limits(messages_per_second=0.01, messages_burst=1, refused_messages=3), None)
    allowance.take("m-1", 0.0)
    assert [refusal(allowance, now).close for now in (1.0, 2.0, 3.0)] == [None] * 3
    error = refusal(allowance, 1.0 + FLOOD_WITHIN_S - 0.001)
    assert (error.close, error.limit) == (CloseCode.RATE_LIMITED, Limit.REFUSED_MESSAGES)
    assert error.message == "more than limits.refused_messages = 3 in 10 s"


def test_a_slow_offender_stays() -> None:
    """Refusals that are 10 s old are forgotten."""
    allowance = Allowance(Limits(messages_per_second=0.001, messages_burst=1, refused_messages=3), None)
    allowance.take("m-1", 0.0)
    assert {refusal(allowance, 4.0 * now).close for now in range(1, 100)} == {None}
