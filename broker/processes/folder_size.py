"""How much a session's directory takes on disk.

Blocking file system calls: called from a thread.  Caller: ``broker.pool.disk_quota``.  The agent writes there as it
likes: no link is followed; one that takes a folder's place in the very moment can lend the tenant a foreign number, no
more.
"""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

UNCOUNTABLE: Final = 2**60
"""Bytes of a directory in which something cannot be looked at (closed, or too deep for a path, or too much for the time
of a look): above every limit, or that would be the place to hide things in."""
BLOCK_BYTES: Final = 512
ASK_EVERY: Final = 256
"""Files between two looks at the clock."""


class Count(NamedTuple):
    """``is_whole``: nothing is left that was not counted."""

    bytes: int
    is_whole: bool


def measure(root: Path, deadline: float, is_stopped: Callable[[], bool]) -> Count:
    """What everything below ``root`` takes; 0 bytes where it is gone.

    At ``deadline`` (monotonic seconds), or once ``is_stopped``, what was counted until then, which is not whole.
    """
    total, seen, folders = 0, 0, [os.fspath(root)]
    while folders:
        try:
            with os.scandir(folders.pop()) as found:
                for entry in found:
                    seen += 1
                    if seen % ASK_EVERY == 0 and (is_stopped() or time.monotonic() >= deadline):
                        return Count(total, is_whole=False)
                    total += _bytes(entry)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.ENAMETOOLONG):
                return Count(UNCOUNTABLE, is_whole=True)
    return Count(total, is_whole=True)


def _bytes(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks * BLOCK_BYTES
    except FileNotFoundError:  # it went meanwhile
        return 0
