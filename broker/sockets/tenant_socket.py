"""A server-side WebSocket connection whose outbound side is bounded.

Callers: ``broker.sockets.server`` hands the class to ``websockets`` as ``create_connection``;
``broker.sockets.connection`` writes.  The library alone never drops a peer that stops reading (its pings and its
``close()`` wait for the same full buffer) and answers pings without limit.  So: the low-water mark is zero, whoever
writes waits until all is gone, and a buffer that grows past its bound while data *arrives* cuts the connection.  It
also takes whatever one read returned in one go, forty thousand pings or more; so it gets ``FRAMES_PER_TURN`` frames,
and the others of the loop their turn (docs/adr/0015).
"""

import asyncio
import socket
import struct
from collections.abc import Callable

from websockets.frames import DATA_OPCODES, Frame
from websockets.protocol import Event, State

from broker.sockets.door import Door, GuardedSocket
from broker.sockets.inbound import Inbound
from protocol.boundaries import Boundaries
from protocol.codes import CloseCode

NOTSENT_LOWAT_BYTES = 65536
"""Unsent bytes that the kernel takes before it says stop: backpressure is then felt early and is true."""

FRAMES_PER_TURN = 16
"""Frames of one connection that are taken in one turn of the event loop; what one read brought beyond them waits."""

RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends RST and drops what is unsent."""


class TenantSocket(GuardedSocket):
    """One connection.  ``buffer_limit``: unsent bytes above the batch in flight at which a sender is cut."""

    buffer_limit = 262144
    inbound: Inbound | None = None
    """Told of what is held; one for all sockets."""
    on_writable: Callable[[], None] | None = None
    on_lost: Callable[[], None] | None = None
    on_refused: Callable[[CloseCode, str], None] | None = None
    """Told when it is ended for what it holds."""
    is_lost = False
    identity: object = None
    """What the handshake's token stands for, noted before the upgrade."""
    payer = ("address", "")
    """Who answers for what it holds: the address, then the tenant."""
    in_flight = 0
    cut_reason: str | None = None
    _waiting = b""
    """The read that is being taken a portion at a time, from ``_at`` on."""
    _at = 0
    _is_due = False
    """The next portion has its turn already."""
    _is_full = False
    """Nobody has taken the messages that are there."""
    _data_frames = 0
    _is_ending = False
    """The broker has begun to close: what the client says now is heard by nobody."""

    def entered(self, transport: asyncio.BaseTransport) -> None:
        """Let in."""
        raw = transport.get_extra_info("socket")
        super().entered(transport)
        self._boundaries = Boundaries()
        self.recv_messages.pause, self.recv_messages.resume = self._hold_messages, self._take_messages
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, "TCP_NOTSENT_LOWAT", 25), NOTSENT_LOWAT_BYTES)

    def left(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        super().left(exc)
        self.is_lost = True
        if self.inbound is not None:
            self.inbound.forget(self)
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        """Called by the loop; a peer that floods pings and reads no pongs is cut here."""
        if self._waiting:  # the loop had read on already
            self._waiting = self._waiting[self._at :] + data
            self._at = 0
            self._note()
            return
        end = 0 if self._is_unanswered else self._boundaries.portion(data, 0, FRAMES_PER_TURN)
        if end < len(data):
            self._waiting, self._at = data, end
            self.transport.pause_reading()
            self._read_on()
        if end:
            self._take(data[:end])

    @property
    def _is_unanswered(self) -> bool:
        """What comes behind a request before its answer is not looked at: it may be no WebSocket's."""
        return self.request is not None and self.response is None

    def _take(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.get_write_buffer_size() > self.buffer_limit + self.in_flight:
            self.cut("ping_flood", reset=True)
        self._note()

    def _note(self) -> None:
        if self.inbound is not None and not self._is_ending:
            self.inbound.note(self)

    @property
    def held_bytes(self) -> int:
        """Bytes of messages that nobody has taken: of a read, a frame, a message in fragments, of whole messages."""
        seen = whole = 0
        for frame in self.recv_messages.frames.queue:
            seen += len(frame.data)
            if frame.fin:
                whole = seen
        # Fragments behind it are of the message whose size so far is known.
        unfinished = len(self.protocol.reader.buffer) + (self.protocol.current_size or 0)
        return unfinished + whole + len(self._waiting) - self._at

    @property
    def progress(self) -> tuple[int, int] | None:
        """How far the message has come whose end is missing; None when none is, or when the peer is not read."""
        begun = len(self.protocol.reader.buffer)
        if self._is_full or not (begun or self.protocol.current_size):
            return None
        return self._data_frames, begun

    def forget_handshake(self) -> None:
        """Give back what the request and its answer hold, 3 KiB: the library keeps both for as long as the socket."""
        for message in (self.request, self.response):
            if message is not None:
                message.headers.clear()

    def refuse_more(self, reason: str) -> None:
        """Close with 4003: the same may be taken later.  What it was sending is dropped; what came whole is left to
        ``hear_no_more``, since somebody may be about to take it."""
        self._is_ending = True
        self.protocol.fail(CloseCode.RATE_LIMITED, reason)
        self.send_data()
        if self.on_refused is not None:
            self.on_refused(CloseCode.RATE_LIMITED, reason)
        else:
            self.cut(CloseCode.RATE_LIMITED.label)

    def hear_no_more(self) -> None:
        """Drop what nobody has taken and will; the peer's own close frame is looked for behind it.  Not beside
        ``recv``."""
        self._is_ending = True
        self.recv_messages.frames.queue.clear()
        if self.inbound is not None:
            self.inbound.forget(self)
        self._take_messages()

    def _go_on(self) -> None:
        """Take the next portion of what was read, then read on."""
        self._is_due = False
        if self.transport.is_closing():
            self._waiting, self._at = b"", 0
        elif self._is_unanswered:  # in a turn or two it is: no answer waits for anything
            self._read_on()
        elif self._waiting and not self._is_full:
            data, start = self._waiting, self._at
            end = self._at = self._boundaries.portion(data, start, FRAMES_PER_TURN)
            if end == len(data):
                self._waiting, self._at = b"", 0
            self._take(data[start:end])
            self._read_on()

    def _read_on(self) -> None:
        if self._waiting:
            if not self._is_due:
                self._is_due = True
                self.loop.call_soon(self._go_on)
        elif not self._is_full and not self.transport.is_closing():
            self.transport.resume_reading()

    def _hold_messages(self) -> None:
        """Called by the library when more messages are there than anybody takes."""
        self._is_full = not self._is_ending
        if self._is_full:
            self.transport.pause_reading()

    def _take_messages(self) -> None:
        """Called by the library when most of them have been taken."""
        if self._is_full:
            self._is_full = False
            self._read_on()

    def process_event(self, event: Event) -> None:
        """Called by the library with each frame; what is said to one that closes is not kept."""
        is_data = isinstance(event, Frame) and event.opcode in DATA_OPCODES
        self._data_frames += is_data
        if not (is_data and self._is_ending):
            super().process_event(event)

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
    limit: int,
    on_stalled: Callable[[TenantSocket], None],
    held: Inbound,
    by: Door,
) -> type[TenantSocket]:
    """The class for ``websockets.serve(create_connection=...)`` with its bounds and the watch over stalled ones.

    ``held``: the bound of all sockets together.  ``by``: who lets them in.
    """

    class Bounded(TenantSocket):
        buffer_limit = limit
        inbound = held
        door = by

        def stalled(self) -> None:
            on_stalled(self)

    return Bounded
