"""A client that says as much as it can, in frames as small as there are, holds up nobody but itself."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest

from bench.server_bytes import PING
from tests.e2e.beside import no_bug
from tests.kit.broker import Broker, started_broker
from tests.kit.client import connected
from tests.kit.pulse import Pulse
from tests.kit.raw import client_frame
from tests.oracle import Oracle
from tests.soak import LONG_S, size

SOCKETS = size(1, 20)
"""Of each kind of flood, one kind after the other."""
BEATS = size(15, 500)
LONGEST_MS = 1500
"""Before frames were taken in portions one such socket held everybody up for seconds."""
HELLO = client_frame(b'{"type":"broker.hello"}')
FLOODS = {
    "pings-before-hello": (b"", client_frame(b"", PING)),
    "pings": (HELLO, client_frame(b"", PING)),
    "pongs": (HELLO, client_frame(b"", 0xA)),
    "keep-alives": (HELLO, client_frame(b'{"type":"keep_alive"}')),
    "questions": (HELLO, client_frame(b'{"type":"broker.ping","t":1}')),
    "messages": (
        client_frame(b'{"type":"broker.hello","session":{"mode":"open","id":"flood"}}'),
        client_frame(b'{"type":"user_message","id":"m-1","content":"hello"}'),
    ),
    "fragments": (HELLO + client_frame(b"", 0x1, final=False), client_frame(b"", 0x0, final=False)),
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with a spare for everybody, and no early end for those who say no hello."""
    pool = {"max_processes": 64, "spawn_concurrency": 4, "profiles": {"default": {"warm": SOCKETS + 1}}}
    config = {"pool": pool, "server": {"hello_timeout_s": 60}, "session": {"detach_timeout_s": 0}}
    with started_broker(tmp_path_factory.mktemp("share"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


class Flood:
    """Blocking sockets in threads: a loop of its own would be part of what is measured."""

    def __init__(self) -> None:
        self.is_over = False
        self.sent = 0

    def pour(self, port: int, head: bytes, frame: bytes) -> None:
        """Send for as long as the broker takes it; on its end come back with another socket."""
        chunk = frame * (65536 // len(frame))
        while not self.is_over:
            try:
                with socket.create_connection(("127.0.0.1", port), 20) as sock:
                    self._pour(sock, port, head, chunk)
            except OSError:
                continue

    def _pour(self, sock: socket.socket, port: int, head: bytes, chunk: bytes) -> None:
        fields = (f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade",
                  "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13")  # fmt: skip
        sock.sendall("\r\n".join(["GET /v1/chat/ws HTTP/1.1", *fields, "", ""]).encode() + head)
        reading = threading.Thread(target=partial(_drain, sock))
        reading.start()
        try:
            while not self.is_over:
                sock.sendall(chunk)
                self.sent += len(chunk)
        finally:
            with suppress(OSError):  # the broker has ended it; then the thread has heard so
                sock.shutdown(socket.SHUT_RDWR)
            reading.join()


def _drain(sock: socket.socket) -> None:
    try:
        while sock.recv(1 << 18):
            pass
    except OSError:
        pass


@contextmanager
def flooded(port: int, head: bytes, frame: bytes) -> Iterator[Flood]:
    """``SOCKETS`` of them, for as long as the block runs."""
    flood = Flood()
    threads = [threading.Thread(target=flood.pour, args=(port, head, frame)) for _ in range(SOCKETS)]
    for thread in threads:
        thread.start()
    try:
        yield flood
    finally:
        flood.is_over = True
        for thread in threads:
            thread.join()


@pytest.mark.timeout(LONG_S)
async def test_tiny_frames_hold_nobody_up(broker: Broker) -> None:
    """While sockets pour empty pings, pongs, keep-alives, questions or fragments, and read what comes back, a
    neighbour's round trips go on."""
    await broker.wait_spares(SOCKETS + 1)
    async with connected(broker.url, hello={}) as client:
        idle = Pulse(client)
        await idle.beat(BEATS)
        for name, (head, frame) in FLOODS.items():
            loud = Pulse(client)
            with flooded(broker.port, head, frame) as flood:
                async with asyncio.timeout(60):
                    while flood.sent < 2**20:
                        await loud.beat(1)
                    loud.times.clear()
                    await loud.beat(BEATS)
            print(f"{name} x {SOCKETS}, {flood.sent / 1e6:.0f} MB: {loud.told()}; idle {idle.told()}; "
                  f"p99 x {loud.at(0.99) / idle.at(0.99):.1f}")  # fmt: skip
            assert loud.at(1) < LONGEST_MS, name
    assert no_bug(broker)
