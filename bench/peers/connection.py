"""One connection of the receiver, over a socket or straight to a CLI on pipes, and what was seen of it.

Cheap on purpose: headers are read, payloads are searched for a mark, nothing is decoded.  Owner and caller:
``bench.peers.receiver``.
"""

import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from typing import Final, cast

from bench.peers.frame_counter import CLOSE, PING, Control, FrameCounter, LineCounter, Payloads
from bench.peers.job import Target

STAMP: Final = b'"text":"@'
"""What a poured line has before its moment (``simulator.pour``)."""
DIGITS: Final = 19
RESULT: Final = b'"type":"result"'
OWN: Final = b'{"type":"broker.'
WELCOME: Final = b'{"type":"broker.welcome"'
WARM: Final = b'"start":"warm"'
DELTA: Final = b'"content_block_delta"'
KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPTED: Final = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""The key and the answer of RFC 6455 section 1.3: the handshake is checked without hashing."""
STOP_S: Final = 5.0
_MASK: Final = bytes(4)
"""A mask of zeros is a mask (section 5.3), and leaves the payload as it is."""


class ConnectionFailed(Exception):
    """A peer refused, broke off, or did not do in time what it should."""


def client_frame(payload: bytes, opcode: int = 0x1) -> bytes:
    """One whole frame of a client."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 65536:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + _MASK + payload


class Connection(asyncio.Protocol):
    """What both kinds share: counts and moments, in nanoseconds of ``time.monotonic``."""

    def __init__(self, delays: list[int] | None) -> None:
        """``delays`` takes the nanoseconds from write to receipt of each stamped line; None: nobody looks for them."""
        self.frames = 0
        self.stamped = 0
        self.welcome_at: int | None = None
        self.is_warm = False
        """The welcome says so."""
        self.first_at: int | None = None
        """The first frame of all."""
        self.cli_at: int | None = None
        """The first that the CLI itself wrote."""
        self.delta_at: int | None = None
        self.ended_at: int | None = None
        """The turn's ``result``."""
        self.failure: str | None = None
        self.lost = asyncio.Event()
        self._delays = delays
        self._changed = asyncio.Event()
        self._last = b""

    def send(self, message: str) -> None:
        """Write one message."""
        raise NotImplementedError

    def abort(self) -> None:
        """End it without a word."""
        raise NotImplementedError

    def reap(self) -> None:
        """Wait for what it has started; blocks, at most for some seconds."""

    async def wait(self, check: Callable[[], bool], what: str) -> None:
        """Until ``check`` holds.  Raises ``ConnectionFailed`` when the peer ends first; the caller has the deadline."""
        while not check():
            if self.failure is not None:
                raise ConnectionFailed(f"before {what}: {self.failure}; last {self._last!r}")
            self._changed.clear()
            await self._changed.wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.lost.set()
        self._fail(f"lost: {exc}" if exc is not None else "lost")

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why
        self._changed.set()

    def _take(self, found: Payloads, at: int) -> None:
        buffer, spans, messages = found
        self.frames += messages
        if self.delta_at is None:
            self._look(buffer, spans, at)
        if self._delays is not None:
            find = buffer.find
            for start, end in zip(spans[::2], spans[1::2], strict=True):
                if (mark := find(STAMP, start, end)) >= 0:
                    self._delays.append(at - int(buffer[mark + len(STAMP) : mark + len(STAMP) + DIGITS]))
                    self.stamped += 1
        if RESULT in buffer:
            self.ended_at = at
            self._changed.set()

    def _look(self, buffer: bytes, spans: list[int], at: int) -> None:
        """The first frames, until a delta has come."""
        for start, end in zip(spans[::2], spans[1::2], strict=True):
            payload = buffer[start:end]
            self._last = payload[:200]
            self.first_at = self.first_at or at
            if payload.startswith(WELCOME):
                self.welcome_at, self.is_warm = at, WARM in payload
            elif not payload.startswith(OWN):
                self.cli_at = self.cli_at or at
            if DELTA in payload:
                self.delta_at = at
                break
        self._changed.set()


class SocketConnection(Connection):
    """Over a WebSocket.  Made by ``open_connection``."""

    def __init__(self, target: Target, delays: list[int] | None) -> None:
        super().__init__(delays)
        self._target = target
        self._counter = FrameCounter()
        self._head: bytes | None = b""
        self._transport: asyncio.Transport | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        port, subprotocol = self._target.port, self._target.subprotocol
        lines = [f"GET /v1/chat/ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade",
                 f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13"]  # fmt: skip
        lines += [f"Sec-WebSocket-Protocol: {subprotocol}"] if subprotocol else []
        self._write("\r\n".join([*lines, "", ""]).encode())

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        at = time.monotonic_ns()
        if self._head is not None:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._head = None
            if b" 101 " not in head.partition(b"\r\n")[0] or ACCEPTED not in head:
                self._fail(f"refused: {head[:200]!r}")
                return
            self.is_open = True
            self._changed.set()
        try:
            self._take(self._counter.feed(data), at)
        except ValueError as error:
            self._fail(str(error))
        if self._counter.controls:
            for control in self._counter.controls:
                self._answer(control)
            self._counter.controls.clear()

    def send(self, message: str) -> None:
        """Write one message."""
        self._write(client_frame(message.encode()))

    def abort(self) -> None:
        """End it without a word."""
        if self._transport is not None:
            self._transport.abort()

    def _answer(self, control: Control) -> None:
        if control.opcode == PING:
            self._write(client_frame(control.payload, 0xA))
        elif control.opcode == CLOSE:
            self._write(client_frame(control.payload[:2], CLOSE))
            self._fail(f"closed {int.from_bytes(control.payload[:2], 'big')} {control.payload[2:]!r}")

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


class PipeConnection(Connection):
    """Straight to a CLI.  Made by ``open_connection``."""

    def __init__(self, delays: list[int] | None) -> None:
        super().__init__(delays)
        self._counter = LineCounter()
        self._stdin = -1
        self._transport: asyncio.BaseTransport | None = None
        self.popen: subprocess.Popen[bytes] | None = None

    async def start(self, target: Target) -> None:
        """Start the CLI.  It ends by itself when its pipes do, whatever becomes of this process."""
        self.popen = popen = subprocess.Popen(  # noqa: ASYNC220 - vfork; it is a part of what is measured
            target.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=target.environ, bufsize=0,
        )  # fmt: skip
        assert popen.stdin is not None
        assert popen.stdout is not None
        self._stdin = popen.stdin.fileno()
        os.set_blocking(popen.stdout.fileno(), False)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: self, popen.stdout)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self._take(self._counter.feed(data), time.monotonic_ns())

    def send(self, message: str) -> None:
        """Write one line; it is small beside the pipe."""
        os.write(self._stdin, message.encode() + b"\n")

    def abort(self) -> None:
        """Close the pipes: the CLI ends with them."""
        if self.popen is not None:
            assert self.popen.stdin is not None
            self.popen.stdin.close()
        if self._transport is not None:
            self._transport.close()

    def reap(self) -> None:
        """Wait until the CLI has ended; it is killed after 5 s."""
        if self.popen is None:
            return
        try:
            self.popen.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


async def open_connection(target: Target, delays: list[int] | None = None) -> Connection:
    """An open connection; hello has been sent where there is one.  Raises ``ConnectionFailed``, ``OSError``."""
    if not target.port:
        pipe = PipeConnection(delays)
        await pipe.start(target)
        return pipe
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: SocketConnection(target, delays), "127.0.0.1", target.port)
    try:
        await connection.wait(lambda: connection.is_open, "the handshake")
    except BaseException:
        connection.abort()
        raise
    if target.hello:
        connection.send(target.hello)
    return connection
