"""A socket's task, cancelled at every await between the handshake and the last frame: nothing of it stays attached."""

import asyncio
from collections import Counter
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from broker.auth import Authenticator
from broker.config.settings import Settings
from broker.sockets.door import Door
from broker.sockets.http import PublicSite
from broker.sockets.listing import Listing
from broker.sockets.server import Server
from tests.broker.visitors import is_over
from tests.kit.client import connected
from tests.kit.injector import Injector, every_step
from tests.kit.stage import SETTLES_WITHIN_S, Stage, stage
from tests.soak import LONG_S
from tests.waiting import eventually


class Ready:
    """Always ready.  Implements ``broker.sockets.http.Readiness``."""

    def __init__(self, found: Stage) -> None:
        self._stage = found

    def ready(self) -> tuple[bool, str]:
        return True, ""

    def pool(self) -> dict[str, dict[str, int]]:
        return self._stage.pool.statistics()

    def is_draining(self) -> bool:
        return False


class Struck(Server):
    """A server whose next socket is served under an injector."""

    injector: Injector | None = None
    is_over = True

    async def _on_socket(self, socket: ServerConnection) -> None:
        injector, self.injector = self.injector, None
        assert injector is not None
        self.is_over = False
        try:
            await injector.drive(super()._on_socket(socket))
        finally:
            self.is_over = True

    def left_over(self) -> list[object]:
        """What is counted of sockets."""
        return [*self._connections, *self._counted, *self._silent, *self._stalled]


def server(found: Stage) -> Struck:
    """A listener for the parts of the stage."""
    settings = Settings(found.config)
    auth = Authenticator(settings)
    site = PublicSite(settings, Ready(found), listing=Listing(auth, found.registry, found.metrics))
    door = Door("public", found.metrics, lambda: None)
    return Struck(settings, found.registry, found.pool, auth, found.metrics, site, door)


async def visit(port: int) -> None:
    """Come, speak, look back, and leave; as far as the broker goes along."""
    with suppress(ConnectionClosed):
        async with connected(f"ws://127.0.0.1:{port}/v1/chat/ws") as client, asyncio.timeout(SETTLES_WITHIN_S):
            await client.hello(session={"id": "known", "mode": "open"})
            await client.turn("hello")
            await client.send({"type": "broker.history", "before": None, "limit": 5})
            await client.until_type("broker.history")
            await client.sync()


@pytest.mark.timeout(LONG_S)
async def test_a_socket_whose_task_is_cancelled(tmp_path: Path) -> None:
    """In hello, in the wait for a process, in a page of history, in its last words: the session is let go, nothing is
    counted any more, and the next visitor is served."""
    counts: Counter[str] = Counter()
    steps = 0
    short, anywhere = {"detach_timeout_s": 0}, {"listen": "127.0.0.1:0"}
    async with stage(tmp_path, is_small=False, session=short, server=anywhere) as found:
        door = server(found)
        port = await door.open(None)
        found.has_opened(1)

        async def run(injector: Injector) -> None:
            door.injector, injector.on_step = injector, found.is_within_limits
            with anyio.fail_after(2 * SETTLES_WITHIN_S):
                await visit(port)
                await eventually(lambda: door.is_over, SETTLES_WITHIN_S)

        async for injector in every_step(run):
            counts[injector.how] += injector.has_struck
            steps = max(steps, injector.steps)
            await eventually(lambda: not door.left_over(), SETTLES_WITHIN_S)
            entries = list(found.registry._entries.values())
            await eventually(lambda: all(map(is_over, found.registry._entries.values())), SETTLES_WITHIN_S)
            for entry in entries:
                assert not entry.session.readers
                assert not entry.tenure.lobby.arriving
                found.registry.delete(entry)
            await found.settled()
        door.stop_listening()
        await door.wait_empty()
        found.has_opened(-1)
        await found.settled()
    print(f"a socket: {steps} awaits, struck {dict(counts)}")
    assert min(counts.values()) >= 5
