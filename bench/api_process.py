"""The stand-in for the Messages API in a process of its own, and its share in a first token.

Callers: the series on the real CLI.  The stand-in notes when a request had arrived; a request of our own, of the size
that the CLI sends, tells how long it takes from there to the first byte and to the first delta of its answer.
"""

import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from bench.children import child
from bench.clock import now, wall
from bench.samples import Samples

TIMEOUT_S: Final = 10.0
BODY_BYTES: Final = 100_000
"""About what the real CLI sends in its first request: the prompt, and the schemas of its tools."""


class Api:
    """A running stand-in.  Made by ``api``.  Its methods block; they are for the pauses between arrivals."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._seen = 0

    @property
    def url(self) -> str:
        """What ``ANTHROPIC_BASE_URL`` is set to."""
        return f"http://127.0.0.1:{self._port}"

    def arrival(self, credential: str) -> float | None:
        """When the first message request with ``credential`` since the last call had arrived; wall clock, seconds."""
        requests = self._requests()
        own = [one["time"] for one in requests if one["credential"] == credential and one["path"] == "/v1/messages"]
        return float(min(own)) if own else None

    def _requests(self) -> list[dict[str, Any]]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", f"/_requests?since={self._seen}")
            found: list[dict[str, Any]] = json.load(connection.getresponse())
        finally:
            connection.close()
        self._seen = max([self._seen, *(int(one["n"]) for one in found)])
        return found

    def probe(self, times: int) -> tuple[Samples, Samples]:
        """Seconds from the arrival of a request to the first byte, and to the first delta, of its answer."""
        first_byte, first_delta = Samples(), Samples()
        for number in range(times):
            token = f"bench-probe-{number}"
            byte_at, delta_at = self._exchange(token)
            arrived_at = self.arrival(token)
            assert arrived_at is not None
            first_byte.add(wall(byte_at) - arrived_at)
            first_delta.add(wall(delta_at) - arrived_at)
        return first_byte, first_delta

    def _exchange(self, token: str) -> tuple[float, float]:
        body = json.dumps(
            {
                "model": "claude-sonnet-5-5", "stream": True, "max_tokens": 1024, "system": "x" * BODY_BYTES,
                "messages": [{"role": "user", "content": "Hello"}],
            }
        ).encode()  # fmt: skip
        head = (
            f"POST /v1/messages?beta=true HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n"
            f"content-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT_S) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(head.encode() + body)
            return _first_byte_and_delta(sock)


def _first_byte_and_delta(sock: socket.socket) -> tuple[float, float]:
    """The moments at which the answer began and at which its first delta was there.  Raises ``OSError``."""
    seen, began_at = b"", 0.0
    while True:
        data = sock.recv(65536)
        at = now()
        if not data:
            raise OSError("the stand-in closed before its first delta")
        seen += data
        began_at = began_at or at
        if b"content_block_delta" in seen:
            return began_at, at


ROOT: Final = Path(__file__).resolve().parent.parent


@asynccontextmanager
async def api() -> AsyncIterator[Api]:
    """Start the stand-in on a free port; it ends with the block.  Raises ``ChildFailed``."""
    with TemporaryDirectory(prefix="bench-api-") as folder:
        port_file = Path(folder) / "port"
        argv = [sys.executable, "-m", "simulator.messages_api", "--port", "0", "--port-file", str(port_file)]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        async with child("the API stand-in", argv, Path(folder) / "api.log", environ) as process:
            started = Api(int(await process.wait_file(port_file)))
            yield started
