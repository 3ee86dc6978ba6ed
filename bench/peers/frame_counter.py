"""Where the messages of a server lie in its bytes: headers are read, payloads are not touched.  Pure.

``FrameCounter`` for a WebSocket (RFC 6455 section 5.2) behind its handshake, ``LineCounter`` for a pipe.  Both cost
some 0.3 us a message, which is why ``bench.server_bytes``, which copies every payload, is not used here.
Caller: ``bench.peers.connection``.
"""

from typing import NamedTuple

CLOSE = 0x8
PING = 0x9
_CONTROL = 0x8
_FINAL = 0x80
_MASKED = 0x80


class Control(NamedTuple):
    """A control frame of the server."""

    opcode: int
    payload: bytes


class Payloads(NamedTuple):
    """``spans``: start and end of each whole payload in ``buffer``, one after the other in a flat list."""

    buffer: bytes
    spans: list[int]
    messages: int
    """How many messages ended with them; fewer than the payloads where messages came in fragments."""


class FrameCounter:
    """The frames of a server.  ``controls`` are for the caller to answer and to take out."""

    def __init__(self) -> None:
        self.controls: list[Control] = []
        self._rest = b""

    def feed(self, data: bytes) -> Payloads:
        """What ``data`` completes.  Raises ``ValueError`` for a masked frame, which no server may send."""
        if self._rest:
            data = self._rest + data
        spans: list[int] = []
        at, size, messages = 0, len(data), 0
        while at + 2 <= size:
            length, start = data[at + 1], at + 2
            if length >= 126:
                if length & _MASKED:
                    raise ValueError("a masked frame of a server")
                start = at + 4 if length == 126 else at + 10
                if start > size:
                    break
                length = int.from_bytes(data[at + 2 : start], "big")
            end = start + length
            if end > size:
                break
            first = data[at]
            if first & _CONTROL:
                self.controls.append(Control(first & 0x0F, data[start:end]))
            else:
                spans += (start, end)
                if first & _FINAL:
                    messages += 1
            at = end
        self._rest = data[at:]
        return Payloads(data, spans, messages)


class LineCounter:
    """The lines of a pipe; the ends of lines belong to none."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Payloads:
        """What ``data`` completes."""
        if self._rest:
            data = self._rest + data
        spans: list[int] = []
        start = 0
        find = data.find
        while (end := find(b"\n", start)) >= 0:
            spans += (start, end)
            start = end + 1
        self._rest = data[start:]
        return Payloads(data, spans, len(spans) // 2)
