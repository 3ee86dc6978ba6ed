"""A cgroup per process, where the system lets the broker make them: its whole tree dies by one write.

``cgroup.kill`` (cgroups(7), version 2, Linux 5.14) reaches what left the process group and what scrubbed its
environment; no process leaves a cgroup without the right to write into another one.  Nothing is limited by it: no
controller is used, so the broker itself may stay in the parent cgroup.

The folders of a broker are below one that bears the numbers of its state directory, ``broker-DEVICE-INODE``.  Whoever
holds the lock of a state directory owns that folder, whoever else shares the parent: what lies there at a start was
left by a broker that is dead.

Owner: ``broker.processes.launcher``, one ``Cgroups``.  Callers: ``broker.processes.process``, which has one ``Cgroup``
each.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import anyio
import structlog

log = structlog.get_logger(__name__)

EMPTY_WITHIN_S = 2.0
"""How long killed processes may take to be gone, before their folder is left for later."""
POLL_S = 0.002
MAX_LEFT = 4096
"""Folders that would not go and are tried again; the sweep of the next start takes any."""
Failed = Callable[[str], None]
"""Told of a cgroup that could not be made (``cgroup_make``), killed or removed (``cgroup_end``)."""


def parent_folder(mountinfo: str, own: str) -> Path | None:
    """The folder of the cgroup that ``own`` (/proc/self/cgroup) names, by the mounts of ``mountinfo``.

    Pure.  None without a mount of version 2, or when the mount does not show that cgroup (a container's own view).
    Beside version 1 (hybrid) it is mounted somewhere else, often ``/sys/fs/cgroup/unified``.
    """
    path = next((line[3:] for line in own.splitlines() if line.startswith("0::")), None)
    if path is None:
        return None
    for line in mountinfo.splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.split(" ")[0] != "cgroup2":
            continue
        root, point = (_unescaped(field) for field in fields.split(" ")[3:5])
        inside = PurePosixPath(path)
        if ".." not in inside.parts and inside.is_relative_to(root):
            return Path(point) / inside.relative_to(root)
    return None


def _unescaped(field: str) -> str:
    """Of proc_pid_mountinfo(5): blanks, tabs, newlines and backslashes are written in octal."""
    for code in ("040", "011", "012", "134"):
        field = field.replace(f"\\{code}", chr(int(code, 8)))
    return field


class Cgroup:
    """Of one process.  Without a ``path`` (there are none here, or it could not be made) every method does nothing."""

    def __init__(self, path: Path | None = None, owner: "Cgroups | None" = None) -> None:
        self._path = path
        self._owner = owner

    async def take_in(self, pid: int) -> None:
        """Make the folder and put a process into it that has just been started, with children that it has already.

        The move is made in a thread of its own, which waits for nobody else's: the kernel takes a lock of all of its
        processes, 0.3 ms at the median on 2 shared cores, 20 ms where others make cgroups too.  A cancel waits for it.
        A failure is logged and counted: the process then lives without one.
        """
        path = self._path
        if path is None:
            return
        try:
            await anyio.to_thread.run_sync(_move, path, pid, limiter=anyio.CapacityLimiter(1))
        except ProcessLookupError:  # dead already
            return
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
            self._failed("cgroup_make", path, error)
            with contextlib.suppress(OSError):
                path.rmdir()
            self._path = None

    def kill(self) -> None:
        """SIGKILL to everything in it, at once and without waiting.  For a process that is dead, too: its heirs."""
        if self._path is None:
            return
        try:
            _write(self._path / "cgroup.kill", "1")
        except FileNotFoundError:  # removed, or a kernel that has not got it: `Cgroups.open` asks for that
            return
        except OSError as error:
            self._failed("cgroup_end", self._path, error)

    async def remove(self) -> None:
        """Wait until all that was killed is gone, at most ``EMPTY_WITHIN_S``, and remove the folder.

        What a cancel, or the bound, leaves there goes with a later ``Cgroups.tidy``.
        """
        path, self._path = self._path, None
        if path is None or self._owner is None:
            return
        self._owner.leave(path)
        with anyio.move_on_after(EMPTY_WITHIN_S):
            while not self._owner.tidy_one(path):  # noqa: ASYNC110 - a few milliseconds at a process's end
                await anyio.sleep(POLL_S)
            return
        self._failed("cgroup_end", path, TimeoutError("what was killed is still there"))

    def leave(self) -> None:
        """Remove the folder later, when it is empty; never waits."""
        if self._path is not None and self._owner is not None:
            self._owner.leave(self._path)
        self._path = None

    def _failed(self, fault: str, path: Path, error: Exception) -> None:
        log.warning("process.cgroup_failed", fault=fault, path=str(path), error=str(error))
        if self._owner is not None:
            self._owner.on_failed(fault)


class Cgroups:
    """Where this broker makes its cgroups; ``obstacle`` says why it makes none, empty when it does."""

    def __init__(self, folder: Path | None = None) -> None:
        """``folder``: this broker's own, below its cgroup; None where there is no cgroup of version 2."""
        self.folder = folder
        self.obstacle = "there is no cgroup of version 2 here" if folder is None else "pool.cgroup is off"
        self._left: set[Path] = set()
        self.on_failed: Failed = lambda fault: None

    @classmethod
    def of(cls, state: Path) -> "Cgroups":
        """Those of the broker that holds the lock of the state directory ``state``.  Raises ``OSError`` without it."""
        found = state.stat()
        try:
            parent = parent_folder(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
        except OSError:
            parent = None
        return cls(None if parent is None else parent / f"broker-{found.st_dev:x}-{found.st_ino:x}")

    def open(self) -> None:
        """Find out whether cgroups can be made and killed here, by trying it; leaves nothing.  Blocking, a millisecond.

        ``sweep`` comes before.
        """
        folder = self.folder
        if folder is None:
            return
        trial = folder / "trial"
        try:
            trial.mkdir(parents=True)
            # Moving a process takes the right to write where it comes from, too; the broker stays where it is.
            _write(folder.parent / "cgroup.procs", str(os.getpid()))
            has_kill = (trial / "cgroup.kill").exists()
            self.obstacle = "" if has_kill else "this kernel has no cgroup.kill (Linux 5.14)"
        except OSError as error:
            self.obstacle = f"{folder.parent} cannot be used: {error.strerror}"
        self.sweep()

    def plan(self, name: str) -> Cgroup:
        """The cgroup of a process that is about to be started; ``name`` is its own, of letters and digits."""
        return Cgroup() if self.obstacle or self.folder is None else Cgroup(self.folder / name, self)

    def leave(self, path: Path) -> None:
        """Remove a folder now, or when it is empty; never waits.  Above ``MAX_LEFT`` it stays until ``sweep``."""
        if self.tidy_one(path):
            return
        if len(self._left) < MAX_LEFT:
            self._left.add(path)
        else:
            log.warning("process.cgroup_failed", fault="cgroup_left", path=str(path), error="too many are not empty")
            self.on_failed("cgroup_left")

    def tidy(self) -> None:
        """Kill once more, and remove, what was not empty before.  Never waits."""
        for path in list(self._left):
            with contextlib.suppress(OSError):
                _write(path / "cgroup.kill", "1")
            self.tidy_one(path)

    def tidy_one(self, path: Path) -> bool:
        """Remove one folder, and those that its processes made in it; False while somebody is there."""
        is_gone = not _is_populated(path) and _removed(path)
        if is_gone:
            self._left.discard(path)
        return is_gone

    def sweep(self) -> None:
        """Kill whatever is below this broker's folder, and remove it: at a start, and when no process is left.

        Blocking, at most ``EMPTY_WITHIN_S``.
        """
        folder = self.folder
        self._left.clear()
        if folder is None or not folder.is_dir():
            return
        with contextlib.suppress(OSError):
            _write(folder / "cgroup.kill", "1")
        deadline = time.monotonic() + EMPTY_WITHIN_S
        while not self.tidy_one(folder):
            if time.monotonic() > deadline:
                log.warning("process.cgroup_failed", fault="cgroup_end", path=str(folder), error="it is not empty")
                self.on_failed("cgroup_end")
                return
            time.sleep(POLL_S)


def _move(path: Path, pid: int) -> None:
    path.mkdir(parents=True)
    _write(path / "cgroup.procs", str(pid))
    for child in _children(pid):  # forked before it was moved; one that is missed is found by its marker
        with contextlib.suppress(OSError):
            _write(path / "cgroup.procs", str(child))


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # never made: a kernel's file is there or not
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _is_populated(path: Path) -> bool:
    try:
        return "populated 1" in (path / "cgroup.events").read_text()
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _removed(path: Path) -> bool:
    """Whether the folder is gone, children first: the kernel's own files in it need no removing."""
    for folder, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return not path.exists()


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
