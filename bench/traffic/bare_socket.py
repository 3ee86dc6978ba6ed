"""The cheapest client there can be: prepared bytes out, frames cut and not decoded.

Caller: ``bench.connect``.  A WebSocket library at the client's end costs more than the broker's own handshake, so the
storm would measure itself.  Masking with a key of zeros (RFC 6455 section 5.3) leaves the bytes as they are.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import anyio
import msgspec
from websockets.uri import parse_uri

from bench.clock import now
from bench.server_bytes import CLOSE, PING, PONG, TEXT, RawFrame, ServerBytes
from bench.tenant import SUBPROTOCOL, TenantFailed

KEY: Final = "AAAAAAAAAAAAAAAAAAAAAA=="
FIN: Final = 0x80
MASKED: Final = 0x80
NO_MASK: Final = bytes(4)
WELCOME: Final = b'"broker.welcome"'
PEEK: Final = 64
"""Bytes of a frame in which its type stands."""


@dataclass(frozen=True)
class Greeting:
    """Where to connect, and the bytes to say there."""

    host: str
    port: int
    secure: bool
    request: bytes
    hello: bytes


def greeting(url: str, hello: Mapping[str, Any]) -> Greeting:
    """The bytes for ``url``.  Raises ``websockets.exceptions.InvalidURI``."""
    uri = parse_uri(url)
    lines = [
        f"GET {uri.resource_name} HTTP/1.1", f"Host: {uri.host}:{uri.port}", "Upgrade: websocket",
        "Connection: Upgrade", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Protocol: {SUBPROTOCOL}", "", "",
    ]  # fmt: skip
    frame = client_frame(TEXT, json.dumps(hello, separators=(",", ":")).encode())
    return Greeting(uri.host, uri.port, uri.secure, "\r\n".join(lines).encode(), frame)


def client_frame(opcode: int, payload: bytes) -> bytes:
    """A whole frame of a client."""
    size = len(payload)
    if size < 126:
        length = bytes([MASKED | size])
    elif size < 1 << 16:
        length = bytes([MASKED | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([MASKED | 127]) + size.to_bytes(8, "big")
    return bytes([FIN | opcode]) + length + NO_MASK + payload


class BareSocket(asyncio.Protocol):
    """One connection, until its welcome and after.  Made by ``greet``."""

    def __init__(self, said: Greeting) -> None:
        self._said = said
        self._bytes = ServerBytes()
        self._transport: asyncio.Transport | None = None
        self._changed = asyncio.Event()
        self._failure: TenantFailed | None = None
        self.opened_at: float | None = None
        self.welcome_at: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._said.request)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        at = now()
        frames = self._bytes.feed(data)
        if self.opened_at is None and self._bytes.head:
            status = self._bytes.head.split(b" ", 2)[1].decode(errors="replace")
            if status != "101":
                self._fail(f"http_{status}")
                return
            self.opened_at = at
            self._write(self._said.hello)
        for frame in frames:
            self._on_frame(frame, at)

    def _on_frame(self, frame: RawFrame, at: float) -> None:
        if frame.opcode == PING:
            self._write(client_frame(PONG, frame.payload))
        elif frame.opcode == CLOSE:
            self._fail(f"closed_{int.from_bytes(frame.payload[:2], 'big')}")
        elif frame.opcode == TEXT and self.welcome_at is None:
            if WELCOME in frame.payload[:PEEK]:
                self.welcome_at = at
                self._changed.set()
            else:
                self._fail(_code(frame.payload))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._fail("connection_lost")

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            self._failure = TenantFailed(reason, reason)
        self._changed.set()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    @property
    def failure(self) -> TenantFailed | None:
        """Why it is over, once it is."""
        return self._failure

    async def wait_welcome(self, within_s: float) -> None:
        """Raises ``TenantFailed``."""
        with anyio.move_on_after(within_s):
            while self.welcome_at is None and self._failure is None:
                self._changed.clear()
                await self._changed.wait()
        if self._failure is not None:
            raise self._failure
        if self.welcome_at is None:
            reason = "no_handshake" if self.opened_at is None else "no_welcome"
            raise TenantFailed(f"{reason} within {within_s:g} s", reason)

    def leave(self) -> None:
        """A close frame, and no wait for its answer."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(client_frame(CLOSE, (1000).to_bytes(2, "big")))
            self._transport.close()


def _code(payload: bytes) -> str:
    """Of a refusal."""
    try:
        found = msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "unreadable_frame"
    return str(found.get("code") or found.get("type")) if isinstance(found, dict) else "unreadable_frame"


async def greet(said: Greeting, within_s: float, source: str | None = None) -> BareSocket:
    """A socket on its way to its welcome, from the address ``source``.  Raises ``OSError``."""
    loop = asyncio.get_running_loop()
    local = (source, 0) if source is not None else None
    async with asyncio.timeout(within_s):
        _, made = await loop.create_connection(
            lambda: BareSocket(said), said.host, said.port, local_addr=local, ssl=True if said.secure else None
        )
    return made
