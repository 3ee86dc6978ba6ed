"""Which credentials the stand-ins refuse."""

import pytest

from simulator.credentials import is_bad


@pytest.mark.parametrize(
    ("value", "bad"),
    [
        ("bad", True),
        ("bad-token", True),
        ("a-bad-key", True),
        ("canary003x09fbad4c11d2e6aa", False),
        ("0bad0bad-badd-4bad-8bad-badbadbadbad", False),
        ("", False),
    ],
)
def test_bad_is_a_word(value: str, bad: bool) -> None:
    """A random token, or a UUID, is never refused by chance."""
    assert is_bad(value) is bad
