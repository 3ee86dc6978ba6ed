"""The alphabet: every name once, in one form, and its number says whether to retry."""

import re
from enum import StrEnum

import pytest

from protocol import codes
from protocol.codes import RETRYABLE_CLOSE_CODES, RETRYABLE_ERRORS, CloseCode, ErrorCode
from protocol.errors import ClientError, ConnectionRefused

ALPHABETS = [kind for kind in vars(codes).values() if isinstance(kind, type) and issubclass(kind, StrEnum)]


@pytest.mark.parametrize("alphabet", [kind for kind in ALPHABETS if kind is not StrEnum])
def test_a_code_is_a_metric_label(alphabet: type[StrEnum]) -> None:
    """The wire value is the member's name in lower case, so it is a log field and a label as it stands."""
    for member in alphabet:
        assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", member.value)
        assert member.value.endswith(member.name.lower())


def test_the_close_codes_are_the_documented_ones() -> None:
    """Below 4500 a client may come back, from 4500 on it may not."""
    final = {code.label for code in CloseCode if code >= 4500}
    assert final == {
        "bad_frame", "unauthorized", "hello_expected", "not_allowed", "unknown_session", "session_exists",
        "bind_failed", "session_deleted", "revoked", "replaced", "protocol_version",
    }  # fmt: skip
    again = {code.label for code in CloseCode if code in RETRYABLE_CLOSE_CODES}
    assert again == {
        "slow_consumer", "rate_limited", "pool_unavailable", "queue_timeout", "hello_timeout", "internal"
    }  # fmt: skip
    assert {code.label: int(code) for code in CloseCode if code < 4000} == {
        "ended": 1000, "bad_utf8": 1007, "draining": 1012
    }  # fmt: skip


def test_only_passing_troubles_are_retryable() -> None:
    """What the client did wrong stays wrong when it is sent again."""
    assert {
        ErrorCode.QUEUE_FULL, ErrorCode.POOL_UNAVAILABLE, ErrorCode.RATE_LIMITED, ErrorCode.QUOTA_EXCEEDED,
        ErrorCode.DRAINING, ErrorCode.STORAGE_FAILED,
    } == RETRYABLE_ERRORS  # fmt: skip


def test_an_error_carries_what_goes_on_the_wire() -> None:
    """Code, text, the frame meant and whether the connection ends."""
    error = ClientError(ErrorCode.ID_CONFLICT, "used", close=CloseCode.BAD_FRAME, ref="m-1")
    assert (error.code, error.message, error.close, error.ref) == ("id_conflict", "used", 4500, "m-1")
    assert str(error) == "used"


def test_a_refusal_says_its_close_code_or_its_reason() -> None:
    """Without words of its own a refused connection is told the name of the code."""
    assert ConnectionRefused(CloseCode.HELLO_TIMEOUT).reason == "hello_timeout"
    refused = ConnectionRefused(CloseCode.PROTOCOL_VERSION, "this broker speaks protocol 1")
    assert (refused.close, refused.reason, str(refused)) == (4510, "this broker speaks protocol 1", refused.reason)
