"""A neighbour whose turn streams on while others misbehave, and what the broker must look like afterwards.

Callers: the end-to-end tests of bad input and of slow readers.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.vitals import status_of
from tests.kit.broker import Broker
from tests.kit.client import Client, connected, contiguous
from tests.kit.raw import RawClient

LONGEST_GAP_S = 1.0
"""Between two frames of the neighbour, which come every 10 ms."""


@asynccontextmanager
async def neighbour(broker: Broker) -> AsyncIterator[Client]:
    """Somebody whose turn streams all the while; fails when a frame is missing or comes late."""
    async with connected(broker.url, hello={}) as client:
        await client.say("[[sim tokens=100000 itl_ms=10]] all the while", "long")
        await client.until_type("stream_event")
        loop = asyncio.get_running_loop()
        arrivals = [loop.time()]

        async def read() -> None:
            while (await client.receive())["type"] != "broker.turn_completed":
                arrivals.append(loop.time())

        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read())
            yield client
            await client.ask("interrupt", "stop")
            await asyncio.wait_for(reading, 20)
        gaps = (later - earlier for earlier, later in itertools.pairwise(arrivals))
        assert contiguous(client.frames)
        assert max(gaps) < LONGEST_GAP_S


def no_bug(broker: Broker) -> bool:
    """Whether the log tells of no exception and no error so far; of a shared broker's tests, which one it was."""
    return not broker.bugs()


def rss_mb(broker: Broker) -> float:
    """Resident memory of the broker's own process."""
    return _kib(broker, "VmRSS") / 1024


def peak_mb(broker: Broker) -> float:
    """The most that was resident since ``forget_peak``."""
    return _kib(broker, "VmHWM") / 1024


def _kib(broker: Broker, name: str) -> int:
    return int(status_of(broker.pid)[name].split()[0])


def forget_peak(broker: Broker) -> float:
    """Begin to watch for a peak; returns what is resident now."""
    Path(f"/proc/{broker.pid}/clear_refs").write_text("5")
    return rss_mb(broker)


async def welcomed(raw: RawClient, session: str | None = None, **hello: object) -> None:
    """Say hello (for that session) and read until ``broker.welcome``."""
    place = {"session": {"mode": "open", "id": session}} if session else {}
    await raw.send({"type": "broker.hello", **place, **hello})
    while (await raw.frame())["type"] != "broker.welcome":
        pass
