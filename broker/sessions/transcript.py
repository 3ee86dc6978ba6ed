"""Reading a conversation's transcript from its end, in a thread: one page of history costs what that page needs.

Callers: ``broker.sockets.connection``, ``broker.sessions.registry``.  What the lines mean is decided in
``broker.sessions.history``.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread

from broker.processes.session_directory import Transcript
from broker.sessions.history import Page, page
from protocol.lines import MAX_LINE_BYTES

CHUNK_BYTES = 262144
SCAN_BYTES = 64 * 2**20
"""How far back one request reads; what lies before that is not offered."""
SETTLE_S = 1.0
"""How long after a turn's end its answer may be missing, or the whole file: 2.1.197 writes 60-80 ms behind the
``result``, the first time up to 300 ms."""
LOOK_AGAIN_S = 0.03
SCAN_THREADS = 2
"""How many transcripts are read, or conversations copied, at a time, in all; wiping and everything else that takes a
thread never waits for them."""
Given = TypeVarTuple("Given")
Found = TypeVar("Found")
NOTHING = Page([], more=False, found=True, is_answered=False)


class Scans:
    """What reads one conversation's files: one at a time, in a thread that ``limiter`` grants.

    Owner: the conversation's ``broker.sessions.registry.Entry``; the limiter is the broker's, of ``SCAN_THREADS``.
    """

    def __init__(self, limiter: anyio.CapacityLimiter) -> None:
        self._limiter = limiter
        self._turn = anyio.Lock()

    async def run(self, look: Callable[[Unpack[Given]], Found], *given: *Given) -> Found:
        """What ``look`` returns.  A cancel gives up the place in the queue, or waits for the look that runs."""
        async with self._turn:
            return await anyio.to_thread.run_sync(look, *given, limiter=self._limiter)


async def read_page(
    scans: Scans,
    find: Callable[[], Transcript | None],
    before: str | None,
    limit: int,
    *,
    settles_until: float = 0.0,
) -> Page:
    """One page of the transcript that ``find`` finds (None: there is none); see ``broker.sessions.history.page``.

    ``settles_until``: until this moment (monotonic seconds) what lacks its last answer is looked at again.
    Bounded by ``SCAN_BYTES`` and that moment.  A cancel waits for the read that runs and loses its result.
    """
    while True:
        found = await scans.run(_read, find, before, limit)
        if found.is_answered or time.monotonic() >= settles_until:
            return found
        await anyio.sleep(LOOK_AGAIN_S)


def _read(find: Callable[[], Transcript | None], before: str | None, limit: int) -> Page:
    transcript = find()
    if transcript is None:
        return NOTHING
    try:
        with transcript.opened_folder() as folder:
            fd = open_plain(transcript.name, dir_fd=folder)
    except OSError:  # gone, or no plain file any more
        return NOTHING
    try:
        return page(lines_from_end(fd), before, limit)
    finally:
        os.close(fd)


def open_plain(path: str, *, dir_fd: int | None = None) -> int:
    """Open a regular file for reading, never what a link points to, never waiting for a pipe.  Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENOENT, "not a regular file", path)
    return fd


def lines_from_end(
    fd: int, scan_bytes: int = SCAN_BYTES, max_line: int = MAX_LINE_BYTES, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[bytes]:
    """The lines of a file, newest first, without their ends; what follows the last end counts as a line too.

    Reads at most ``scan_bytes`` from the end; a line that begins before them, or that is longer than ``max_line``, is
    left out.  The file may grow meanwhile: what is added is not seen.
    """
    end = os.fstat(fd).st_size
    floor = max(0, end - scan_bytes)
    pieces: list[bytes] = []  # of the line whose beginning is not reached yet, last piece first
    size = 0
    while end > floor:
        start = max(floor, end - chunk_bytes)
        chunk = os.pread(fd, end - start, start)
        if len(chunk) < end - start:
            return  # it was cut short meanwhile
        end = start
        head, *whole = chunk.split(b"\n")
        if whole:
            if size + len(whole[-1]) <= max_line:
                yield b"".join([whole[-1], *reversed(pieces)])
            yield from reversed(whole[:-1])
            pieces, size = [], 0
        size += len(head)
        if size <= max_line:
            pieces.append(head)
    if floor == 0 and size <= max_line:
        yield b"".join(reversed(pieces))
