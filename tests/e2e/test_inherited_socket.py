"""A broker on sockets that it was handed over: it listens there, and a restart under load refuses nobody."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.kit.activation import activated, listening
from tests.kit.broker import running_broker
from tests.kit.client import connected, terminals
from tests.kit.serving import ended
from tests.waiting import eventually

LOOPS = 8
REQUEST = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n"


class Load:
    """Connect loops against one port; ``seen`` counts what became of each connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.seen: Counter[str] = Counter()
        self.is_over = False

    @property
    def total(self) -> int:
        """Connections that were tried."""
        return self.seen.total()

    async def run(self) -> None:
        """One connection after another, each with a request, until it is over."""
        while not self.is_over:
            self.seen[await self._once()] += 1

    async def _once(self) -> str:
        try:
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError as error:
            return f"not connected: {error}"
        try:
            async with asyncio.timeout(30):
                writer.write(REQUEST % self._port)
                head = await reader.readline()
                await reader.read()
            return head.decode().strip() or "cut"
        except (OSError, TimeoutError) as error:
            return f"no answer: {error!r}"
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def load(port: int) -> AsyncIterator[Load]:
    """Connect loops for as long as the block lasts."""
    made = Load(port)
    async with asyncio.TaskGroup() as group:
        for _ in range(LOOPS):
            group.create_task(made.run())
        try:
            yield made
        finally:
            made.is_over = True


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("restarts", "enough"), [(2, 300), pytest.param(20, 20_000, marks=pytest.mark.full)])
async def test_a_restart_under_load_refuses_nobody(restarts: int, enough: int, tmp_path: Path) -> None:
    """The socket stays open between two brokers: whoever connects waits a moment in its backlog, and is answered."""
    with listening() as listener:
        port: int = listener.getsockname()[1]
        async with load(port) as seen:
            for restart in range(restarts + 1):
                before = seen.total
                async with running_broker(tmp_path, **activated([listener])) as broker:
                    assert broker.port == port
                    async with connected(broker.url, hello={}) as client:
                        await client.say("[[sim tokens=30 itl_ms=10]] word", "m-1")
                        await client.until_type("stream_event")
                        await eventually(lambda: seen.total > before + enough // restarts, 60)  # noqa: B023 - awaited here
                        broker.popen.send_signal(signal.SIGTERM)
                        assert await client.closed() == 1012
                        assert terminals(client.frames)[0]["type"] == "broker.turn_completed", restart
                    assert await broker.ended() == 0
            async with running_broker(tmp_path, **activated([listener])):
                seen.is_over = True
        print(f"{seen.total} connections over {restarts + 1} restarts: {dict(seen.seen)}")
        assert seen.total >= enough
        assert set(seen.seen) == {"HTTP/1.1 200 OK"}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_both_ports_are_handed_over(loop: str, tmp_path: Path) -> None:
    """By name, in any order; without Nagle's delay; and no CLI inherits a socket or a variable of it."""
    with listening() as public, listening() as admin:
        activation = activated([admin, public], "admin:web")
        async with running_broker(tmp_path, {"server": {"loop": loop}}, **activation) as broker:
            assert (broker.port, broker.admin) == (public.getsockname()[1], admin.getsockname()[1])
            for sock in (public, admin):  # one open file description: what the broker sets is seen here
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            inodes = {f"socket:[{os.fstat(sock.fileno()).st_ino}]" for sock in (public, admin)}
            assert inodes & open_files(broker.pid) == inodes
            async with connected(broker.url, hello={}) as client:
                await client.turn("hello")
                for row in broker.descendants():
                    assert not open_files(row.pid) & inodes
                    assert b"LISTEN_" not in Path(f"/proc/{row.pid}/environ").read_bytes()
        for sock in (public, admin):
            with socket.create_connection(sock.getsockname()):
                pass


def open_files(pid: int) -> set[str]:
    """What the descriptors of a process are."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(os.readlink(entry))
    return found


async def test_a_file_descriptor_that_does_not_listen_is_78(tmp_path: Path) -> None:
    """One line on stderr names it, and no port is opened."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(AssertionError, match=r"78.*file descriptor 3.*does not listen"):
            async with running_broker(tmp_path, **activated([silent])):
                pass


async def test_an_open_socket_for_all_needs_tokens(tmp_path: Path) -> None:
    """What is really open counts, not what is configured: auth.mode none is refused on all interfaces."""
    with listening("0.0.0.0") as public:
        with pytest.raises(AssertionError, match=r"78.*auth\.mode"):
            async with running_broker(tmp_path, **activated([public])):
                pass


async def test_variables_of_another_process_mean_nothing(tmp_path: Path) -> None:
    """LISTEN_PID is not ours: the broker binds what is configured."""
    async with running_broker(tmp_path, environment={"LISTEN_PID": "1", "LISTEN_FDS": "1"}) as broker:
        assert json.loads((tmp_path / "ports.json").read_text())["listen"] == broker.port
    end = await ended(tmp_path, "--listen", "nowhere", LISTEN_PID="1", LISTEN_FDS="1")
    assert end.code == 78
