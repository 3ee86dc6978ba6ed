"""A server-side WebSocket connection whose outbound side is bounded.

Callers: ``broker.server`` hands the class to ``websockets`` as ``create_connection``; ``broker.connection`` writes.
The library alone never drops a peer that stops reading (its pings and its ``close()`` wait for the same full buffer)
and answers pings without limit.  So: the low-water mark is zero, whoever writes waits until all is gone, and a buffer
that grows past its bound while data *arrives* cuts the connection.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import cast

from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

NOTSENT_LOWAT_BYTES = 65536
"""Unsent bytes that the kernel takes before it says stop: backpressure is then felt early and is true."""

RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends RST and drops what is unsent."""


class TenantSocket(ServerConnection):
    """One connection.  ``buffer_limit``: unsent bytes above the batch in flight at which a sender is cut."""

    buffer_limit = 262144
    on_writable: Callable[[], None] | None = None
    on_lost: Callable[[], None] | None = None
    is_lost = False
    identity: object = None
    """What the handshake's token stands for, noted before the upgrade."""
    in_flight = 0
    cut_reason: str | None = None
    first_refused: int | None = None
    is_refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop (asyncio.Protocol).  Refused, it is nobody's: the library is not even told of it."""
        raw = transport.get_extra_info("socket")
        if raw is not None and self.first_refused is not None and raw.fileno() >= self.first_refused:
            self.is_refused = True
            cast("asyncio.Transport", transport).abort()  # uvloop's are none by name
            self.refused()
            return
        super().connection_made(transport)
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_NOTSENT_LOWAT", 25), NOTSENT_LOWAT_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop when nobody is there any more."""
        if self.is_refused:
            return
        super().connection_lost(exc)
        self.is_lost = True
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        """Called by the loop; a peer that floods pings and reads no pongs is cut here."""
        super().data_received(data)
        if self.transport.get_write_buffer_size() > self.buffer_limit + self.in_flight:
            self.cut("ping_flood", reset=True)

    def pause_writing(self) -> None:
        """Called by the loop when bytes stay unsent."""
        super().pause_writing()
        self.stalled()

    def resume_writing(self) -> None:
        """Called by the loop when all bytes are gone."""
        super().resume_writing()
        self.in_flight = 0
        if self.on_writable is not None:
            self.on_writable()

    def stalled(self) -> None:
        """The peer, or the kernel, takes no more for now."""

    def refused(self) -> None:
        """There are too few file descriptors for one more."""

    @property
    def can_write(self) -> bool:
        """Open, and everything written before has gone to the kernel."""
        return not self.paused and self.protocol.state is State.OPEN and not self.transport.is_closing()

    def write_frames(self, frames: bytes) -> None:
        """Write whole, final, unmasked frames in one go (RFC 6455 section 5.4: nobody else fragments here)."""
        self.in_flight = len(frames)
        self.transport.write(frames)

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self.transport.get_write_buffer_size()

    def cut(self, reason: str, *, reset: bool = False) -> None:
        """Abort the transport at once; harmless when it is closing already.

        ``reset``: the kernel forgets its share too.  It would offer it for minutes to a peer that takes nothing, and
        that peer would not learn that it was cut.
        """
        if not self.transport.is_closing():
            self.cut_reason = reason
            raw = self.transport.get_extra_info("socket")
            if reset and raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            self.transport.abort()

    def set_max_message_bytes(self, limit: int) -> None:
        """Another bound for inbound messages, from the next frame on."""
        self.protocol.max_message_size = limit


def tenant_socket(
    limit: int, on_stalled: Callable[[TenantSocket], None], highest: int | None, on_refused: Callable[[], None]
) -> type[TenantSocket]:
    """The class for ``websockets.serve(create_connection=...)`` with its bound and the watch that is told of stalls.

    ``highest``: the file descriptor from which on a socket is refused at once.
    """

    class Bounded(TenantSocket):
        buffer_limit = limit
        first_refused = highest

        def stalled(self) -> None:
            on_stalled(self)

        def refused(self) -> None:
            on_refused()

    return Bounded
