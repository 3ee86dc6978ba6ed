"""The server's side of a WebSocket connection, byte by byte: which frames are whole, and where it breaks off.  Pure.

Callers: ``bench.faults`` (cuts inside a chosen frame) and the raw clients of the tests.
"""

from enum import StrEnum
from typing import Final, NamedTuple

TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA
_HEAD_END: Final = b"\r\n\r\n"


class Place(StrEnum):
    """Where in the server's bytes a connection stands."""

    HEAD = "head"
    BOUNDARY = "boundary"
    HEADER = "header"
    PAYLOAD = "payload"


class RawFrame(NamedTuple):
    """One frame of the server."""

    opcode: int
    payload: bytes


class ServerBytes:
    """The server's side of a connection: the HTTP head, then unmasked frames (RFC 6455 section 5.2)."""

    def __init__(self) -> None:
        self.head = b""
        self.starts: list[int] = []
        """Where the header of each frame begins, counted from the first byte of the connection."""
        self.total = 0
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[RawFrame]:
        """The frames that ``data`` completes."""
        self.total += len(data)
        self._buffer += data
        if not self.head:
            end = self._buffer.find(_HEAD_END)
            if end < 0:
                return []
            self.head = bytes(self._buffer[: end + len(_HEAD_END)])
            del self._buffer[: len(self.head)]
            self.starts.append(len(self.head))
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    @property
    def rest(self) -> bytes:
        """What has come of the frame that is not complete."""
        return bytes(self._buffer)

    @property
    def place(self) -> Place:
        """Where the bytes so far break off."""
        if not self.head:
            return Place.HEAD
        if not self._buffer:
            return Place.BOUNDARY
        return Place.HEADER if self._header() is None else Place.PAYLOAD

    def _header(self) -> tuple[int, int] | None:
        """Length of the header and of the payload of the frame in front."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        short = buffer[1] & 0x7F
        size = {126: 4, 127: 10}.get(short, 2)
        if len(buffer) < size:
            return None
        return size, int.from_bytes(buffer[2:size], "big") if size > 2 else short

    def _next(self) -> RawFrame | None:
        header = self._header()
        if header is None or len(self._buffer) < sum(header):
            return None
        size, length = header
        frame = RawFrame(self._buffer[0] & 0x0F, bytes(self._buffer[size : size + length]))
        del self._buffer[: size + length]
        self.starts.append(self.starts[-1] + size + length)
        return frame
