"""The end of a program that cannot end: a thread that exits for it when its time is over.

A directory on a disk that hangs, a log that nobody reads, a bug: none may keep a broker from ending when it is told to.
Owner: ``broker.app``.  What such an end leaves behind (directories, and what tools have started) is swept by the next
start; the CLIs themselves die with their parent.
"""

import os
import select
import threading

LAST_WORDS = b'{"event":"broker.cut_short","level":"error","reason":"it did not end in time"}\n'
STDERR = 2


class LastResort:
    """Exits 0 at a time that may be moved.  A program that ends by itself does not notice it."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def arm(self, after_s: float) -> None:
        """Exit ``after_s`` from now, and not at the time given before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(max(0.0, after_s), _exit)
        self._timer.daemon = True
        self._timer.start()


def _exit() -> None:
    # Not through the log: its lock, or its reader, may be what the program hangs in.
    if select.select([], [STDERR], [], 0)[1]:
        os.write(STDERR, LAST_WORDS)
    os._exit(0)
