"""Where a client's frames end in the bytes that it sends, told from their headers alone (RFC 6455 section 5.2).

Caller: ``broker.sockets.tenant_socket`` gives the WebSocket library so many frames at a time: a read of empty pings
holds forty thousand of them, and the library takes whatever it is given in one go.
"""

HEAD_END = b"\r\n\r\n"
_WIDE = {126: 2, 127: 8}
_MASKED = 0x80
_MASK_BYTES = 4


class Boundaries:
    """One connection's bytes: the head of its request, which is a portion of its own, then frames.  Judges nothing."""

    def __init__(self) -> None:
        self._head: bytes | None = b""
        """The last bytes of an unfinished head; None behind it."""
        self._header = bytearray()
        self._left = 0
        """Bytes of the payload that has begun."""

    def portion(self, data: bytes, start: int, most: int) -> int:
        """The offset in ``data`` behind the ``most``-th frame that ends in it, counted from ``start``; its length when
        fewer end.  Each byte is to be shown once: the next call goes on where this one stopped.  ``most`` >= 1.
        """
        at, size = start, len(data)
        if self._head is not None:
            return self._end_of_head(self._head, data, at)
        while at < size and most > 0:
            if not self._left:
                at = self._end_of_header(data, at)
                if self._header:
                    return size
            step = min(self._left, size - at)
            at += step
            self._left -= step
            most -= not self._left
        return at

    def _end_of_head(self, before: bytes, data: bytes, at: int) -> int:
        joined = before + data[at:] if before else data
        found = joined.find(HEAD_END, 0 if before else at)
        if found < 0:
            self._head = joined[at if not before else 0 :][-len(HEAD_END) + 1 :]
            return len(data)
        self._head = None
        return found + len(HEAD_END) + (at - len(before) if before else 0)

    def _end_of_header(self, data: bytes, at: int) -> int:
        """Behind the header that begins (or goes on) at ``at``; an unfinished one is kept."""
        header = self._header
        if not header and at + 2 <= len(data) and data[at + 1] & ~_MASKED < 126:  # nearly every one
            second = data[at + 1]
            end = at + (2 + _MASK_BYTES if second & _MASKED else 2)
            if end <= len(data):
                self._left = second & ~_MASKED
                return end
        while at < len(data):
            header.append(data[at])
            at += 1
            if len(header) >= 2 and len(header) == _header_bytes(header[1]):
                short = header[1] & ~_MASKED
                wide = _WIDE.get(short, 0)
                self._left = int.from_bytes(header[2 : 2 + wide], "big") if wide else short
                header.clear()
                break
        return at


def _header_bytes(second: int) -> int:
    return 2 + _WIDE.get(second & ~_MASKED, 0) + (_MASK_BYTES if second & _MASKED else 0)
