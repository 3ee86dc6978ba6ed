"""A tenant who talks before a crowd of idle sockets has come and while it is there: what the crowd costs her.

Caller: ``bench.connect``.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Final

from bench.clock import now
from bench.tenant import Tenant, connect

TURNS: Final = 30
TEXT: Final = "Talk [[sim tokens=1000 itl_ms=0]]"
"""As fast as the CLI can: what the broker adds is a large part of the turn."""


class Beside:
    """Made by ``beside``."""

    def __init__(self, tenant: Tenant, within_s: float) -> None:
        self._tenant = tenant
        self._within_s = within_s

    async def turn_s(self) -> float:
        """The median of ``TURNS`` turns, in seconds.  Raises ``TenantFailed``."""
        took = []
        for _ in range(TURNS):
            began = now()
            self._tenant.say(TEXT)
            await self._tenant.wait_end(self._within_s)
            took.append(now() - began)
        return median(took)


@asynccontextmanager
async def beside(url: str, token: str, within_s: float) -> AsyncIterator[Beside]:
    """A tenant with a process, warmed up by turns that do not count.  Raises ``TenantFailed``."""
    async with connect(url) as tenant:
        tenant.hello({"credentials": {"oauth_token": "bench-beside"}}, token=token)
        await tenant.wait_welcome(within_s)
        found = Beside(tenant, within_s)
        await found.turn_s()
        yield found
