"""Whom the broker signals: its own children, and nobody who has got the number of one that is reaped."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak import LONG_S, size

CYCLES = """
import asyncio, sys
from pathlib import Path
from broker.processes import orphans
from broker.processes.process import Process
from tests.broker.launches import launch

async def one(number):
    how = ("exec true", "exec sleep 300", "sleep 300 & exec true", "trap '' TERM; sleep 300")[number % 4]
    process = await Process.start(launch(Path(sys.argv[2]), "sh", "-c", how))
    watch = asyncio.create_task(process.supervise())
    if number % 3:
        process.kill()
    else:
        await process.stop(0.001, 0.001)
    process.set_priority(0)
    process.kill()
    await process.exited.wait()
    process.kill()
    await watch
    orphans.reap_strays()

async def main():
    orphans.become_subreaper()
    for first in range(0, int(sys.argv[1]), 4):
        await asyncio.gather(*(one(number) for number in range(first, first + 4)))
    await orphans.kill_adopted()

asyncio.run(main())
"""
"""Many spawns and ends, four at a time; each process is signalled before, at and after its death."""
PID_MAX = 400


@pytest.mark.timeout(LONG_S)
def test_no_signal_goes_to_a_stranger(tmp_path: Path) -> None:
    """Where numbers come round after some hundred, strace sees a signal to none that is not a child, unreaped."""
    cycles, trace = size(100, 10_000), tmp_path / "trace"
    strace = ["strace", "-qq", "-e", "trace=vfork,clone,clone3,kill,tkill,tgkill,pidfd_open,pidfd_send_signal,wait4",
              "-e", "signal=none", "-o", str(trace)]  # fmt: skip
    inside = ["sh", "-c", f'echo {PID_MAX} > /proc/sys/kernel/pid_max || exit 42; exec "$@"', "sh",
              *strace, sys.executable, "-c", CYCLES, str(cycles), str(tmp_path)]  # fmt: skip
    ran = subprocess.run(
        ["unshare", *([] if os.geteuid() == 0 else ["-r"]), "--pid", "--fork", "--mount-proc", "--kill-child", *inside],
        check=False, capture_output=True, text=True, timeout=LONG_S, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    if ran.returncode and any(word in ran.stderr for word in ("pid_max", "unshare:", "strace:")):
        pytest.skip(f"no namespace with few process ids, or no strace: {ran.stderr[-200:]}")
    assert ran.returncode == 0, ran.stderr[-2000:]
    signals, strangers, spawned = judged(trace.read_text())
    print(f"{cycles} cycles, {spawned} spawns below pid {PID_MAX}, {signals} signals, {len(strangers)} to strangers")
    assert strangers == []
    assert spawned >= cycles
    assert signals >= cycles


def judged(trace: str) -> tuple[int, list[str], int]:
    """Of a process's system calls: its signals, those to a process or group that is not its own, its spawns.

    Own is a child, or the group that it leads, between its spawn and the ``wait4`` that reaps it; and an adopted child,
    which was nobody's spawn here, where the ``wait4`` that reaps it comes after the signal.  A pidfd is as own as the
    process was when it was opened.
    """
    own: set[int] = set()
    held: set[int] = set()
    doubtful: dict[int, list[str]] = {}
    signals, spawned, strangers = 0, 0, []
    for line in trace.splitlines():
        name, _, rest = line.partition("(")
        result = line.rpartition("= ")[2].split()[0] if "= " in line else "?"
        if name in ("vfork", "clone", "clone3") and result.isdigit() and "CLONE_THREAD" not in rest:
            own.add(int(result))
            strangers += doubtful.pop(int(result), [])
            spawned += 1
        elif name == "wait4" and result.isdigit() and int(result):
            own.discard(int(result))
            doubtful.pop(int(result), None)
        elif name == "pidfd_open" and result.isdigit():
            (held.add if _number(rest) in own else held.discard)(int(result))
        elif name in ("kill", "tkill", "tgkill", "pidfd_send_signal"):
            signals += 1
            target = _number(rest)
            is_own = target in held if name == "pidfd_send_signal" else abs(target) in own
            if name == "kill" and target > 0 and not is_own:
                doubtful.setdefault(target, []).append(line)
            elif not is_own:
                strangers.append(line)
    return signals, strangers + [line for lines in doubtful.values() for line in lines], spawned


def _number(arguments: str) -> int:
    """The first argument of a system call."""
    return int(re.split("[,)]", arguments, maxsplit=1)[0])


@pytest.mark.parametrize(
    ("trace", "strangers"),
    [
        pytest.param("kill(-7, SIGTERM) = 0\nkill(7, SIGTERM) = 0", 0, id="a child and its group"),
        pytest.param("wait4(7, [], 0, NULL) = 7\nkill(-7, SIGKILL) = -1 ESRCH", 1, id="a group that was reaped"),
        pytest.param("wait4(7, [], 0, NULL) = 7\nkill(7, SIGKILL) = 0", 1, id="a process that was reaped"),
        pytest.param("kill(8, SIGKILL) = 0\nwait4(8, [], 0, NULL) = 8", 0, id="an adopted child"),
        pytest.param("kill(8, SIGKILL) = 0\nwait4(8, 0x1, 0, NULL) = -1 ECHILD", 1, id="no child at all"),
        pytest.param("kill(8, SIGKILL) = 0\nvfork() = 8\nwait4(8, [], 0, NULL) = 8", 1, id="a child only later"),
        pytest.param("kill(-8, SIGKILL) = 0", 1, id="a foreign group"),
        pytest.param("tgkill(8, 9, SIGTERM) = 0", 1, id="a foreign thread"),
        pytest.param("pidfd_open(7, 0) = 3\nwait4(7, [], 0, NULL) = 7\npidfd_send_signal(3, SIGKILL) = -1 ESRCH", 0,
                     id="a pidfd of a child"),
        pytest.param("pidfd_open(8, 0) = 3\npidfd_send_signal(3, SIGKILL, NULL, 0) = 0", 1, id="a pidfd of a stranger"),
        pytest.param("pidfd_send_signal(3, SIGKILL, NULL, 0) = 0", 1, id="a pidfd from nowhere"),
    ],
)  # fmt: skip
def test_a_signal_to_a_stranger_would_be_seen(trace: str, strangers: int) -> None:
    """The judge is not blind, nor does it see what is not there; 7 is a child."""
    assert len(judged(f"vfork() = 7\n{trace}\n")[1]) == strangers
