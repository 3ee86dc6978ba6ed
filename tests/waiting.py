"""The one polling helper: a test waits for something to become true, with a deadline, never for a fixed time.

Callers: tests.  ``tests/test_architecture.py`` forbids every other positive ``sleep``.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

POLL_S: Final = 0.01


async def eventually(check: Callable[[], T | None], within_s: float = 5.0) -> T:
    """Return the first true value of ``check()``, asked every few milliseconds; AssertionError after ``within_s``."""
    deadline = time.monotonic() + within_s
    while not (value := check()):
        assert time.monotonic() < deadline, f"not true within {within_s} s: {check!r}"
        await asyncio.sleep(POLL_S)
    return value


def eventually_sync(check: Callable[[], T | None], within_s: float = 5.0) -> T:
    """As ``eventually``, for a test without an event loop."""
    deadline = time.monotonic() + within_s
    while not (value := check()):
        assert time.monotonic() < deadline, f"not true within {within_s} s: {check!r}"
        time.sleep(POLL_S)
    return value
