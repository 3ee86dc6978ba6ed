"""HTTP/1.1 over one blocking socket, as little of it as a Messages API needs: requests in, answers and streams out.

``http.server`` is not used because it parses headers with the mail parser and writes a response in several segments:
the real CLI is timed against this program, so every answer and every stream event here is one ``send``.

Callers: ``simulator.messages_api``, one ``Connection`` per thread.  No state outlives a connection.
"""

import contextlib
import json
import select
import socket
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

MAX_HEAD: Final = 64 * 1024
MAX_BODY: Final = 64 * 1024 * 1024
_READ: Final = 256 * 1024
_REASONS: Final = {
    200: "OK", 204: "No Content", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 411: "Length Required", 413: "Content Too Large", 429: "Too Many Requests",
    500: "Internal Server Error", 503: "Service Unavailable", 529: "Overloaded",
}  # fmt: skip


class Request(NamedTuple):
    """One request; header names are lower case, ``query`` is what stood behind the ``?``."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def keeps_alive(self) -> bool:
        return self.headers.get("connection", "").lower() != "close"


class BadRequest(Exception):
    """The peer does not speak HTTP as we read it; ``status`` is what to answer before closing."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Gone(Exception):
    """The peer closed or reset the connection; whatever was being sent is lost."""


class Connection:
    """One accepted socket.  Every method blocks; ``Gone`` ends the conversation."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._buffer = bytearray()

    def read(self) -> Request | None:
        """The next request, or None when the peer is done.  Raises ``BadRequest`` and ``Gone``."""
        head = self._read_head()
        if head is None:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise BadRequest(400, "not an HTTP/1 request line")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        path, _, query = words[1].partition("?")
        return Request(words[0], path, query, headers, self._read_body(headers))

    def answer(
        self, status: int, body: Any, headers: Mapping[str, str] | None = None, *, bodiless: bool = False
    ) -> None:
        """One whole JSON answer in one write; ``bodiless`` is for HEAD, where only the length is told."""
        payload = _encoded(body)
        fields = {"content-type": "application/json", "content-length": str(len(payload)), **(headers or {})}
        self._send(_head(status, fields) + (b"" if bodiless else payload))

    def begin_stream(self, headers: Mapping[str, str]) -> None:
        """The head of a server-sent event stream of unknown length."""
        fields = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        self._send(_head(200, {**fields, "transfer-encoding": "chunked", **headers}))

    def send_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """One event as one chunk in one write."""
        text = b"event: %b\ndata: %b\n\n" % (kind.encode(), _encoded(data))
        self._send(b"%x\r\n%b\r\n" % (len(text), text))

    def end_stream(self) -> None:
        self._send(b"0\r\n\r\n")

    def send_raw(self, data: bytes) -> None:
        """Bytes as they are: for an answer that is meant to break off."""
        self._send(data)

    def pause(self, seconds: float) -> None:
        """Wait, but not for a peer that is gone: raises ``Gone`` as soon as it closes."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                if not select.select([self._socket], [], [], left)[0]:
                    return
                peeked = self._socket.recv(1, socket.MSG_PEEK)
            except (OSError, ValueError) as error:
                raise Gone from error
            if not peeked:
                raise Gone
            # The next request is here already: it stays readable, so only the clock can end this wait.
            time.sleep(min(left, 0.001))

    def close(self) -> None:
        """End the connection in order (FIN), so that what was written before still arrives."""
        with contextlib.suppress(OSError):  # already down: closing is all that is left to do
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read_head(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD:
                raise BadRequest(400, f"request head above {MAX_HEAD} bytes")
            if not self._fill():
                if self._buffer:
                    raise Gone
                return None
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return head

    def _read_body(self, headers: Mapping[str, str]) -> bytes:
        if "transfer-encoding" in headers:
            raise BadRequest(411, "a Content-Length is needed")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise BadRequest(400, "Content-Length is no number")
        size = int(length[:20])
        if size > MAX_BODY:
            raise BadRequest(413, f"body above {MAX_BODY} bytes")
        while len(self._buffer) < size:
            if not self._fill():
                raise Gone
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        return body

    def _fill(self) -> bool:
        try:
            chunk = self._socket.recv(_READ)
        except OSError as error:
            raise Gone from error
        self._buffer += chunk
        return bool(chunk)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Gone from error


def _encoded(value: Any) -> bytes:
    # As the real API does, text is UTF-8 and not escaped; a lone surrogate, which UTF-8 cannot carry, becomes "?".
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\n{fields}\r\n".encode("latin-1")
