"""A disk of a few megabytes in a mount namespace of its own, for a broker to run full.

Caller: ``tests.e2e.test_full_disk``: ``async with small_disk(folder, 8) as disk``, a broker with ``prefix=disk.prefix``
and its ``state.dir`` below ``folder``.  It outlives that broker.  Needs root.
"""

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.broker import ROOT

MOUNT = 'mount -n -t tmpfs -o "size=$2m,nr_inodes=$3,mode=0755" none "$1" && echo ready && exec cat'
ENTER = 'cd "$1" && shift && exec "$@"'
READY_WITHIN_S = 10.0
PAGE = 4096
INODES = 1000


@dataclass(frozen=True)
class SmallDisk:
    """``folder`` as those in the namespace see it."""

    pid: int
    folder: Path

    @property
    def prefix(self) -> tuple[str, ...]:
        """Stands before the command line of who is to see it."""
        return ("nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "--", "sh", "-c", ENTER, "sh", str(ROOT))

    @property
    def seen(self) -> Path:
        """The folder, from outside."""
        return Path(f"/proc/{self.pid}/root{self.folder}")

    @property
    def free_bytes(self) -> int:
        """What is left."""
        found = os.statvfs(self.seen)
        return found.f_bavail * found.f_frsize

    def fill(self) -> None:
        """Take all room, and every file that could still be made."""
        (self.seen / "files").mkdir()
        with contextlib.suppress(OSError):
            for number in range(INODES):
                (self.seen / "files" / f"{number}").touch()
        (self.seen / "files" / "0").unlink()
        with (self.seen / "ballast").open("ab", buffering=0) as ballast:
            while (room := self.free_bytes) >= PAGE:
                try:
                    ballast.write(b"x" * min(room, 2**20))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    return

    def empty(self) -> None:
        """Give it back."""
        (self.seen / "ballast").unlink()
        shutil.rmtree(self.seen / "files")


@asynccontextmanager
async def small_disk(folder: Path, megabytes: int) -> AsyncIterator[SmallDisk]:
    """Mount it over ``folder``, which has to be there."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a disk")
    unshare = ("unshare", "--mount", "--propagation", "private", "--", "sh", "-c", MOUNT, "sh")
    holder = await asyncio.create_subprocess_exec(
        *unshare,
        str(folder),
        str(megabytes),
        str(INODES),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            line = await holder.stdout.readline()
        if line != b"ready\n":
            pytest.skip("no file system can be mounted here")
        yield SmallDisk(holder.pid, folder)
    finally:
        holder.stdin.close()
        await holder.wait()
