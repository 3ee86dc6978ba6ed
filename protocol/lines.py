"""Cut a byte stream into lines at ``\\n`` and at nothing else.

Callers: ``broker.processes.process`` feeds it whatever one read of the CLI's stdout returned and gets the batch of
complete lines.  Only ``\\n`` ends a line: U+2028, NEL and a lone CR are content (``bytes.splitlines`` would break at
CR).
"""

from dataclasses import dataclass
from typing import TypeAlias

MAX_LINE_BYTES = 16 * 1024 * 1024
"""The longest line that is kept; PROTOCOL: a CLI line of more is dropped and told."""


@dataclass(frozen=True, slots=True)
class Oversized:
    """Stands where a line longer than the limit was; ``bytes`` counts what was thrown away, without the ``\\n``."""

    bytes: int


Line: TypeAlias = bytes | Oversized


class LineFramer:
    """Incremental splitter with bounded memory: at most ``limit`` bytes of an unfinished line are held."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._tail = bytearray()  # a list of pieces would cost 20 times its bytes when these come two by two
        self._tail_bytes = 0
        self._skipping = False

    @property
    def pending_bytes(self) -> int:
        """Bytes of the unfinished line seen so far.  At EOF they are never data: a torn line is not a line."""
        return self._tail_bytes

    def feed(self, chunk: bytes) -> list[Line]:
        """Return the lines that ``chunk`` completes, without their ``\\n``, in order.  Never raises."""
        first, newline, rest = chunk.partition(b"\n")
        if not newline:
            self._hold(first)
            return []
        lines: list[Line] = [self._finish(first) if self._tail_bytes else self._bounded(first)]
        if rest:
            more = rest.split(b"\n")
            tail = more.pop()
            lines += more if len(rest) <= self._limit else [self._bounded(line) for line in more]
            if tail:
                self._hold(tail)
        return lines

    def _hold(self, piece: bytes) -> None:
        if not piece:
            return
        self._tail_bytes += len(piece)
        if self._skipping:
            return
        if self._tail_bytes > self._limit:
            self._skipping = True
            self._tail.clear()
        else:
            self._tail += piece

    def _finish(self, piece: bytes) -> Line:
        self._hold(piece)
        line: Line = Oversized(self._tail_bytes) if self._skipping else bytes(self._tail)
        self._tail.clear()
        self._tail_bytes = 0
        self._skipping = False
        return line

    def _bounded(self, line: bytes) -> Line:
        return line if len(line) <= self._limit else Oversized(len(line))
