"""stdout: whole lines, one write each, in the order they were said.

Owner: ``simulator.cli``.  Callers: everything that speaks.  A write blocks while the pipe is full, so nothing is
buffered here; when the reader is gone, ``BrokenPipeError`` ends the program.
"""

import json
import os
from typing import Any, Final

from simulator.ledger import Ledger

STDOUT: Final = 1
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def encode(message: dict[str, Any]) -> bytes:
    """One message as JSON without a line end.  Lone surrogates, which UTF-8 cannot carry, become escapes."""
    text = _encode(message)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(message, separators=(",", ":")).encode()


class Output:
    """The line writer.  ``split`` > 0 writes in pieces of that many bytes, a fault that readers must bear."""

    def __init__(self, ledger: Ledger | None, fd: int = STDOUT) -> None:
        self._fd = fd
        self._ledger = ledger
        self.split = 0

    def send(self, message: dict[str, Any]) -> None:
        """Write one message as one line."""
        self.line(encode(message))

    def line(self, line: bytes) -> None:
        """Write ``line``, whatever it is, and a line end."""
        if self._ledger is not None:
            self._ledger.line("out", line)
        self._write(line + b"\n")

    def lines(self, lines: list[bytes]) -> None:
        """Write many lines at once."""
        if self._ledger is not None:
            for line in lines:
                self._ledger.line("out", line)
        lines.append(b"")
        self._write(b"\n".join(lines))

    def raw(self, data: bytes) -> None:
        """Write bytes that no ledger holds: parts of lines, and floods."""
        self._write_all(data)

    def _write(self, data: bytes) -> None:
        if self.split:
            for start in range(0, len(data), self.split):
                self._write_all(data[start : start + self.split])
        else:
            self._write_all(data)

    def _write_all(self, data: bytes) -> None:
        written = os.write(self._fd, data)
        # A pipe takes all or, when a signal comes in between, a part.
        while written < len(data):
            written += os.write(self._fd, memoryview(data)[written:])
