"""A client whose socket takes little, and that reads only when told to.

Callers: the end-to-end tests of stalled and slow readers, ``async with sipper(broker, "conv-1") as client``.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from bench.server_bytes import ServerBytes
from tests.kit.broker import Broker
from tests.kit.raw import client_frame

ESTABLISHED = 1
"""TCP_ESTABLISHED of Linux."""


class Sipper:
    """A client whose socket takes little, and that reads only when told to."""

    def __init__(self, raw: socket.socket) -> None:
        self._socket = raw
        self._bytes = ServerBytes()
        self.texts: list[bytes] = []
        self.close_code: int | None = None

    async def send(self, data: bytes) -> None:
        """Send bytes as they are.  Raises ``OSError`` when nobody is there any more."""
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def say(self, frame: dict[str, Any]) -> None:
        """Send one frame."""
        await self.send(client_frame(json.dumps(frame).encode()))

    async def sip(self, size: int = 65536) -> bool:
        """Read once; False at the end of the connection."""
        try:
            async with asyncio.timeout(20):
                data = await asyncio.get_running_loop().sock_recv(self._socket, size)
        except OSError:
            return False
        for opcode, payload in self._bytes.feed(data):
            if opcode == 1:
                self.texts.append(payload)
            elif opcode == 8:
                self.close_code = int.from_bytes(payload[:2], "big")
        return bool(data)

    @property
    def port(self) -> int:
        """The client's own."""
        found: int = self._socket.getsockname()[1]
        return found

    @property
    def frames(self) -> list[dict[str, Any]]:
        """What has been read so far."""
        return [json.loads(text) for text in self.texts]

    def is_cut(self) -> bool:
        """Whether the broker has ended the connection; nothing is read for that."""
        return self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED


@asynccontextmanager
async def sipper(
    broker: Broker, session: str, buffer_bytes: int = 4096, hello: Mapping[str, Any] | None = None
) -> AsyncIterator[Sipper]:
    """Connect with a small receive buffer, say hello (with these fields) and read ``broker.welcome``."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", broker.port))
        client = Sipper(raw)
        fields = (f"Host: 127.0.0.1:{broker.port}", "Upgrade: websocket", "Connection: Upgrade",
                  "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13")  # fmt: skip
        await client.send("\r\n".join(["GET /v1/chat/ws HTTP/1.1", *fields, "", ""]).encode())
        await client.say({"type": "broker.hello", "session": {"mode": "open", "id": session}, **(hello or {})})
        while not any(text.startswith(b'{"type":"broker.welcome"') for text in client.texts):
            assert await client.sip()
        yield client
