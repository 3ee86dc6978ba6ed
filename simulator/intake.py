"""stdin and signals: the one place where the program waits.

One thread, ``select``: whoever has to pass time (a pause between tokens, a running tool, an open permission prompt)
calls ``Intake.wait`` and gets the lines that came meanwhile.  A reader thread would do the same for 0.3 MB more per
process.

Owner: ``simulator.cli``.  Caller: ``simulator.session``.
"""

import os
import select
import signal
from collections import deque
from collections.abc import Sequence
from types import FrameType
from typing import Final

from simulator.ledger import Ledger

STDIN: Final = 0
READ_BYTES: Final = 1 << 18
MAX_LINE_BYTES: Final = 64 * 1024 * 1024


class LineTooLong(Exception):
    """A line of stdin beyond 64 MiB; lines of 12 MB are ordinary (images)."""


class Intake:
    """Lines of stdin as they come.  ``eof`` and ``interrupted`` (SIGINT) are facts to look at after each wait."""

    def __init__(self, ledger: Ledger | None, fd: int = STDIN) -> None:
        self.eof = False
        self.interrupted = False
        self._fd = fd
        self._ledger = ledger
        self._lines: deque[bytes] = deque()
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._wakeup, self._alarm = os.pipe()
        os.set_blocking(self._alarm, False)

    def listen_to_signals(self) -> None:
        """Let SIGINT end a wait; to be called from the main thread."""
        signal.set_wakeup_fd(self._alarm, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.interrupted = True

    def wait(self, seconds: float | None, also: Sequence[int] = ()) -> list[int]:
        """Wait until stdin has something, a descriptor of ``also`` is readable, a signal came, or ``seconds`` are over.

        Returns the readable ones of ``also``; lines are fetched with ``take``.  Without a limit at end of input it
        waits for a signal.  Raises ``LineTooLong``.
        """
        watched = [self._wakeup, *also] if self.eof else [self._fd, self._wakeup, *also]
        ready, _, _ = select.select(watched, (), (), seconds)
        if not ready:
            return []
        if self._wakeup in ready:
            os.read(self._wakeup, 64)
            ready.remove(self._wakeup)
        if self._fd in ready:
            ready.remove(self._fd)
            self._read()
        return ready

    def take(self) -> bytes | None:
        """The next complete line without its ``\\n``, None if there is none."""
        return self._lines.popleft() if self._lines else None

    def _read(self) -> None:
        chunk = os.read(self._fd, READ_BYTES)
        if not chunk:
            self.eof = True
            # A last line without a line end counts: the real program's reader takes it too.
            chunk = b"\n" if self._tail_bytes else b""
        head, newline, rest = chunk.partition(b"\n")
        self._tail.append(head)
        self._tail_bytes += len(head)
        if self._tail_bytes > MAX_LINE_BYTES:
            raise LineTooLong
        if not newline:
            return
        self._add(b"".join(self._tail))
        *complete, tail = rest.split(b"\n")
        for line in complete:
            self._add(line)
        self._tail = [tail]
        self._tail_bytes = len(tail)

    def _add(self, line: bytes) -> None:
        if self._ledger is not None:
            self._ledger.line("in", line)
        self._lines.append(line)
