"""Binds go a few at a time, so that in a burst of tenants the first are served before the last have begun.

Owner: ``broker.pool.pool``.  Caller: ``broker.sessions.tenure``.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

AT_ONCE = 4
WAIT_S = 0.05
"""Nobody waits longer for a turn, so that processes that hang in their bind hold up no other."""


class BindTurns:
    """One broker's."""

    def __init__(self) -> None:
        self._free = anyio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Take a turn at binding, or go ahead when none is free within ``WAIT_S``.  A cancel loses the place."""
        with anyio.move_on_after(WAIT_S) as waiting:
            await self._free.acquire()
        try:
            yield
        finally:
            if not waiting.cancelled_caught:
                self._free.release()
