"""How long the broker lets a well-behaved client wait: round trips of ``broker.ping``, one behind the other.

Callers: the end-to-end tests of floods and stalls; figures are printed under soak, never asserted more sharply than by
a deadline.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.kit.client import Client
from tests.waiting import eventually

EVERY_S = 0.005


class Pulse:
    """Round trips in seconds, in order."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.times: list[float] = []

    async def beat(self, count: int) -> None:
        """So many round trips; each has 20 s."""
        for _ in range(count):
            began = time.monotonic()
            await self._client.sync()
            self.times.append(time.monotonic() - began)
            self._client.frames.clear()
            self._client.texts.clear()
            await eventually(lambda due=began + EVERY_S: time.monotonic() >= due)  # type: ignore[misc]

    async def beat_on(self) -> None:
        """Until cancelled."""
        while True:
            await self.beat(1)

    def told(self) -> str:
        """p50, p99 and the longest, for people."""
        return f"p50 {self.at(0.5):.2f} ms, p99 {self.at(0.99):.2f} ms, max {self.at(1):.2f} ms of {len(self.times)}"

    def at(self, share: float) -> float:
        """The quantile in milliseconds."""
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3


@asynccontextmanager
async def beating(client: Client) -> AsyncIterator[Pulse]:
    """Round trips for as long as the block runs."""
    pulse = Pulse(client)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(pulse.beat_on())
        try:
            yield pulse
        finally:
            task.cancel()
