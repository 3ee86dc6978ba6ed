"""The CLI's debug log of one process: kept small on disk, and handed on line by line to those who asked for it.

Claude Code opens the file anew for each write and appends, so that it may be renamed at any time: the next write makes
a new one.  Owner: the supervisor of the slot (``broker.processes.child``).  ``look`` and ``rotate`` block for the time
of a small read; ``follow`` calls them in a thread.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import anyio
import structlog

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 0.25
LOOK_BYTES = 64 * 1024
"""Read at one look; what lies before the last so many is left out, and said."""
LINE_BYTES = 24 * 1024
"""Of a longer line the rest is left out.  More than is told of one: a secret that begins in what is told is whole."""
KEEP_BYTES = 64 * 1024 * 1024
"""A larger file becomes ``debug.log.1``, in place of an earlier one: twice as much is on disk at most."""

Lines = Callable[[list[str]], None]


class DebugLog:
    """Follows one file, from what is in it now.  ``close`` it in the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._offset = path.lstat().st_size if path.is_file() else 0
        self._rest = b""
        self._is_cut = False
        self._is_lost = False

    async def follow(self, audience: Callable[[], Lines | None]) -> None:
        """Tell again and again until cancelled; ``audience`` says who gets the lines now, if anybody does.

        A cancel loses nothing: what was not read is told by the next ``tell``.
        """
        while not self._is_lost:
            await anyio.sleep(LOOK_EVERY_S)
            await self.tell(audience())

    async def tell(self, audience: Lines | None) -> None:
        """One look, if anybody listens, and the file is kept small.  Where it cannot be read, it is given up."""
        if self._is_lost:
            return
        try:
            if audience is not None:
                audience(await anyio.to_thread.run_sync(self.look))
            await anyio.to_thread.run_sync(self.rotate)
        except OSError as error:
            self._is_lost = True
            log.warning("debug_log.unreadable", error=error.strerror)

    def look(self) -> list[str]:
        """The lines since the last look.  Raises ``OSError``, also when something else stands where the file was."""
        if self._fd is None:
            self._fd = self._open()
        if self._fd is None:
            return []
        lines = self._read(self._fd)
        if self._was_replaced(self._fd):  # renamed: the old file was read to its end just now
            lines += self._split(b"\n")
            self.close()
        return lines

    def rotate(self) -> None:
        """Put a file that has become too large aside.  Raises ``OSError``."""
        try:
            size = self._path.lstat().st_size
        except FileNotFoundError:
            return
        if size > KEEP_BYTES:
            self._path.replace(self._path.with_name(self._path.name + ".1"))

    def close(self) -> None:
        """Forget the file; a later look begins with what stands there then."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd, self._offset, self._rest, self._is_cut = None, 0, b"", False

    def _open(self) -> int | None:
        # The agent's own tools can write where the CLI writes: no link is followed, no pipe is waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(self._path, flags)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(None, "is no regular file")
        return fd

    def _was_replaced(self, fd: int) -> bool:
        try:
            return self._path.lstat().st_ino != os.fstat(fd).st_ino
        except FileNotFoundError:
            return False

    def _read(self, fd: int) -> list[str]:
        size = os.fstat(fd).st_size
        if size < self._offset:  # begun again
            self._offset, self._rest, self._is_cut = 0, b"", False
        left_out = max(0, size - LOOK_BYTES - self._offset)
        data = os.pread(fd, LOOK_BYTES, self._offset + left_out)
        self._offset += left_out + len(data)
        if not left_out:
            return self._split(data)
        head, newline, data = data.partition(b"\n")  # it begins in the middle of a line
        left_out += len(self._rest) + len(head) + len(newline)
        self._rest, self._is_cut = b"", not newline
        return [f"[{left_out} bytes of the debug log are left out]", *self._split(data)]

    def _split(self, data: bytes) -> list[str]:
        *whole, rest = (self._rest + data).split(b"\n")
        if self._is_cut and whole:  # the end of a line whose beginning was told, or left out
            whole.pop(0)
            self._is_cut = False
        if self._is_cut:
            rest = b""
        elif len(rest) > LINE_BYTES:
            whole.append(rest)
            self._is_cut, rest = True, b""
        self._rest = rest
        return [line[:LINE_BYTES].decode(errors="replace") for line in whole if line]
