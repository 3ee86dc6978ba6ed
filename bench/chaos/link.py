"""One connection of a tenant: every frame as it came, and a socket that can be mistreated.

Callers: ``bench.chaos.traveller``, ``bench.churn``.
"""

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import suppress

import anyio
from websockets.exceptions import WebSocketException

from bench.tenant import CLOSE_DEADLINE_S, Tenant, TenantFailed

BUFFER_BYTES = 1 << 18
"""SO_RCVBUF: who stalls is felt soon; with less than a few of loopback's segments (64 KiB) the kernel itself stalls."""
OPEN_WITHIN_S = 10.0
Take = Callable[[str, float], None]


class Link(Tenant):
    """``take`` gets the text of each whole frame and the moment it came."""

    def __init__(self, url: str, take: Take) -> None:
        super().__init__(url)
        self._take = take
        self.frames = 0
        self._first = ""
        self.bytes = 0
        """What has come, of frames that are not whole yet too: a long line on a busy machine is no silence."""

    @property
    def failure(self) -> str | None:
        """Why it is over, once it is."""
        return self._failure

    def stall(self) -> None:
        """Read nothing any more; the kernel's buffer fills, then the broker's."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    async def wait_change(self, within_s: float) -> None:
        """Until something has come or the connection is over; at most ``within_s``."""
        self._changed.clear()
        with anyio.move_on_after(max(0.0, within_s)):
            await self._changed.wait()

    async def wait_welcomed(self, within_s: float) -> None:
        """Until the first frame has come.  Raises ``TenantFailed``, also when it is another one than the welcome."""
        await self._wait(lambda: self.frames > 0, within_s, "a frame")
        frame = json.loads(self._first)
        if frame["type"] != "broker.welcome":
            raise TenantFailed(f"in place of a welcome: {frame['type']} {frame.get('code', '')}".rstrip())

    async def wait_over(self, within_s: float) -> None:
        """Until the connection is over; raises ``TenantFailed`` that says why, or that it is not."""
        await self._wait(lambda: False, within_s, "the end of the connection")

    async def leave(self) -> None:
        """End the connection without a word; the conversation goes on."""
        if self._transport is not None:
            self._transport.abort()
            with anyio.CancelScope(shield=True):
                await self._lost.wait()

    async def close(self) -> None:
        """The closing handshake; what does not answer within 2 s is left without."""
        if self._failure is None:
            self._websocket.send_close(1000)
            self._flush()
            with anyio.move_on_after(CLOSE_DEADLINE_S):
                await self._lost.wait()
        await self.leave()

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self.bytes += len(data)
        super().data_received(data)
        self._changed.set()

    def _on_frame(self, data: bytes | bytearray | memoryview, at: float) -> None:
        text = bytes(data).decode()
        self._first = self._first or text
        self.frames += 1
        self._take(text, at)
        self._changed.set()


async def linked(url: str, port: int, take: Take, source: str = "127.0.0.1") -> Link:
    """An open connection to ``port`` that asks for ``url``, from an address of loopback.  Raises ``TenantFailed``."""
    loop = asyncio.get_running_loop()
    raw = socket.socket()
    try:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        raw.setblocking(False)
        raw.bind((source, 0))
        await loop.sock_connect(raw, ("127.0.0.1", port))
        _, link = await loop.create_connection(lambda: Link(url, take), sock=raw)
    except (OSError, WebSocketException) as error:
        raw.close()
        raise TenantFailed(str(error)) from error
    try:
        await link.wait_open(OPEN_WITHIN_S)
    except BaseException:
        with suppress(OSError):
            await link.leave()
        raise
    return link
