"""A WebSocket client that knows every byte: it sends what no library would, and knows where a connection broke off.

Callers: the end-to-end tests, ``async with raw_connection(port) as raw``.
"""

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from bench.server_bytes import CLOSE, PING, PONG, TEXT, Place, ServerBytes

DEADLINE_S = 20.0
READ_BYTES = 65536
_MASK = b"\x37\xfa\x21\x3d"


class Cut(Exception):
    """The connection is over.  ``code`` is that of the close frame, None when there was none."""

    def __init__(self, place: Place, code: int | None) -> None:
        super().__init__(f"cut at {place.value}, close code {code}")
        self.place = place
        self.code = code


def client_frame(payload: bytes, opcode: int = TEXT, *, final: bool = True, masked: bool = True) -> bytes:
    """One frame of a client; ``masked=False`` breaks the protocol."""
    size, mark = len(payload), 0x80 if masked else 0
    head = bytes([(0x80 if final else 0) | opcode])
    if size < 126:
        head += bytes([mark | size])
    elif size < 65536:
        head += struct.pack("!BH", mark | 126, size)
    else:
        head += struct.pack("!BQ", mark | 127, size)
    if not masked:
        return head + payload
    repeated = int.from_bytes((_MASK * (size // 4 + 1))[:size], "big")
    return head + _MASK + (int.from_bytes(payload, "big") ^ repeated).to_bytes(size, "big")


class RawClient:
    """One connection after its handshake.  ``texts`` holds every text message, in order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ready: list[str] = []
        self.bytes = ServerBytes()
        self.texts: list[str] = []
        self.pongs: list[bytes] = []
        self.close_code: int | None = None
        self.sent = 0
        """Bytes that were given to the socket."""

    async def send(self, frame: Mapping[str, Any] | bytes) -> None:
        """Send one text message; bytes go as they are."""
        payload = frame if isinstance(frame, bytes) else json.dumps(frame).encode()
        await self.send_raw(client_frame(payload))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes.  Raises ``Cut`` when nobody is there any more."""
        self.sent += len(data)
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            raise Cut(self.bytes.place, self.close_code) from None

    async def receive(self, within_s: float = DEADLINE_S) -> str:
        """The next text message.  Raises ``Cut``."""
        async with asyncio.timeout(within_s):
            while not self._ready:
                await self._read()
        return self._ready.pop(0)

    async def frame(self, within_s: float = DEADLINE_S) -> dict[str, Any]:
        """The next text message, decoded."""
        found: dict[str, Any] = json.loads(await self.receive(within_s))
        return found

    async def read_on(self, within_s: float = DEADLINE_S) -> None:
        """Read once, whatever comes.  Raises ``Cut``."""
        async with asyncio.timeout(within_s):
            await self._read()

    async def _read(self) -> None:
        try:
            data = await self._reader.read(READ_BYTES)
        except OSError:
            data = b""
        if not data:
            raise Cut(self.bytes.place, self.close_code)
        for opcode, payload in self.bytes.feed(data):
            if opcode == TEXT:
                self._ready.append(payload.decode())
                self.texts.append(self._ready[-1])
            elif opcode == PING:
                await self.send_raw(client_frame(payload, PONG))
            elif opcode == PONG:
                self.pongs.append(payload)
            elif opcode == CLOSE:
                self.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
                await self.send_raw(client_frame(payload[:2], CLOSE))

    def abort(self) -> None:
        """Leave without a word."""
        self._writer.transport.abort()

    async def aclose(self) -> None:
        """Close the socket, without a closing handshake."""
        self._writer.close()
        with contextlib.suppress(OSError):  # it was cut
            await self._writer.wait_closed()


@asynccontextmanager
async def raw_connection(
    port: int, path: str = "/v1/chat/ws", headers: Mapping[str, str] | None = None
) -> AsyncIterator[RawClient]:
    """Connect, send the upgrade and read the HTTP head.  Raises ``Cut`` when the connection breaks off before."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        raise Cut(Place.HEAD, None) from None
    raw = RawClient(reader, writer)
    try:
        fields = {
            "Host": f"127.0.0.1:{port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": "broker.v1",
            **(headers or {}),
        }
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        await raw.send_raw("\r\n".join(lines).encode())
        async with asyncio.timeout(DEADLINE_S):
            while not raw.bytes.head:
                await raw._read()
        assert raw.bytes.head.startswith(b"HTTP/1.1 101 "), raw.bytes.head
        yield raw
    finally:
        await raw.aclose()
