"""Descendants that outlive their process: found by a marker in their environment, killed and reaped.

The broker is a child subreaper, so whatever a dying CLI leaves behind becomes the broker's own child, also a daemon
that left the process group.  Callers: ``broker.processes.process`` after each death, ``broker.pool.pool`` now and then,
``broker.app`` at either end, ``broker.processes.launcher`` at the start, for what an earlier broker left.  The benches
ask for the children of a broker of theirs.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio

MARKER: Final = "BROKER_SLOT"
_PR_SET_CHILD_SUBREAPER: Final = 36
SWEEP_DEADLINE_S: Final = 2.0
RETRY_S: Final = 0.05


def become_subreaper() -> bool:
    """Adopt orphaned descendants from now on; False where the kernel refuses (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


awaited: Final[set[int]] = set()
"""Children whose exit status ``broker.processes.process`` waits for; nobody else may reap them."""


async def kill_marked(marker: str, group: int, user: int | None = None) -> int:
    """Kill and reap every adopted descendant of a process that has died; returns how many.

    They are known by ``BROKER_SLOT=marker`` in their environment, which a dead one does not show any more, by the
    process group ``group``, or by the system ``user`` that is this session's alone.  Killing one may hand its own
    children over, so it looks until a round finds none, at most ``SWEEP_DEADLINE_S``.
    """
    wanted = f"{MARKER}={marker}".encode()
    return await _kill(
        lambda pid: _group(pid) == group or wanted in _environment(pid) or (user is not None and _user(pid) == user)
    )


def reap_strays() -> int:
    """Reap adopted descendants that have died by themselves, whoever's they were; returns how many.  Never waits."""
    try:
        found = children_of(os.getpid())
    except OSError:  # no file descriptor is left: another time
        return 0
    return sum(_is_reaped(pid) for pid in found if pid not in awaited)


async def kill_adopted() -> int:
    """Kill whatever is left of any slot, at the broker's end, when no slot lives; returns how many."""
    prefix = f"{MARKER}=".encode()
    return await _kill(lambda pid: any(entry.startswith(prefix) for entry in _environment(pid)))


def kill_children() -> int:
    """Kill and reap every child, at the end of a start that was interrupted, when no slot lives; returns how many.

    A signal may come in the very moment in which a child is made, before anybody has noted it.  Blocking, at most
    ``SWEEP_DEADLINE_S``: killing one may hand its own children over.
    """
    killed = 0
    spared: set[int] = set()
    deadline = time.monotonic() + SWEEP_DEADLINE_S
    while (found := set(children_of(os.getpid())) - spared) and time.monotonic() < deadline:
        for pid in found:
            if not _is_signalled(pid):
                spared.add(pid)
                continue
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
                killed += 1
    return killed


def kill_left_behind(sessions: Path, user_ids: range = range(0)) -> int:
    """Kill what an earlier broker that was killed itself has left: by the marker, and a HOME below ``sessions``, or by
    one of ``user_ids`` that a directory there belongs to.

    Its CLIs died with it, but not what they had started.  These are children of another process, which reaps them.
    """
    prefixes = (f"{MARKER}=".encode(), f"HOME={sessions}/".encode())
    users = {entry.lstat().st_uid for entry in _entries(sessions)} & set(user_ids)

    def is_left(pid: int) -> bool:
        environment = _environment(pid)
        is_marked = all(any(entry.startswith(prefix) for entry in environment) for prefix in prefixes)
        return is_marked or (bool(users) and _user(pid) in users)

    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return sum(is_left(pid) and _is_killed(pid, is_left) for pid in pids)


def _is_killed(pid: int, is_meant: Callable[[int], bool]) -> bool:
    """Kill a process that is nobody's child here.  Its number may be another's: it is held, and looked at again."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not is_meant(pid):
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:  # gone, or not ours to kill
        return False
    finally:
        os.close(pidfd)
    return True


def _is_signalled(pid: int) -> bool:
    """SIGKILL to a child.  False where that is not allowed (it runs a setuid program, say), or it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


async def _kill(is_meant: Callable[[int], bool]) -> int:
    killed = 0
    spared: set[int] = set()
    deadline = time.monotonic() + SWEEP_DEADLINE_S
    while time.monotonic() < deadline:
        try:
            found = [pid for pid in children_of(os.getpid()) if pid not in awaited | spared and is_meant(pid)]
        except OSError:  # no file descriptor is left
            await anyio.sleep(RETRY_S)
            continue
        if not found:
            break
        signalled = [pid for pid in found if _is_signalled(pid)]
        spared |= {*found} - {*signalled}
        killed += len(signalled)
        await _reap(signalled)
    return killed


def children_of(pid: int) -> list[int]:
    """The processes that any thread of ``pid`` has started, or adopted, and not yet reaped.

    Raises ``OSError`` when ``pid`` is gone, and without a descriptor.
    """
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            children += map(int, (task / "children").read_text().split())
    return children


def _group(pid: int) -> int | None:
    """The process group, also of a zombie (proc_pid_stat(5), field 5)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[2])
    except OSError:
        return None


def _user(pid: int) -> int | None:
    """The real user id, also of a zombie (proc_pid_status(5))."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Uid:"))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


async def _reap(pids: list[int]) -> None:
    for pid in pids:
        with anyio.move_on_after(SWEEP_DEADLINE_S):
            while not _is_reaped(pid):  # noqa: ASYNC110 - nothing tells of a foreign child's death
                await anyio.sleep(0.002)


def _is_reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
