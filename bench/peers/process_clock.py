"""What a process has used, as the kernel counts it: processor time and resident memory of that process alone.

The clock is the one behind utime + stime of /proc/PID/stat, all threads and no children, in nanoseconds where that
file rounds to 10 ms.  Callers: ``bench.peers.receiver`` and its runs.
"""

import time
from collections.abc import Iterable

from bench.vitals import status_of

_SCHED = 2
"""CPUCLOCK_SCHED: what the scheduler has counted."""


def cpu_s(pid: int) -> float:
    """Seconds of processor time of ``pid``.  Raises ``OSError`` when it is gone."""
    return time.clock_gettime((~pid << 3) | _SCHED)  # the clock id that clock_getcpuclockid(3) makes


def cpu_of(pids: Iterable[int]) -> dict[int, float]:
    """The same for many; those that are gone are left out."""
    found = {}
    for pid in pids:
        try:
            found[pid] = cpu_s(pid)
        except OSError:
            continue
    return found


def spent(before: dict[int, float], after: dict[int, float]) -> float:
    """Seconds that the processes of both have used in between."""
    return sum(now - before[pid] for pid, now in after.items() if pid in before)


def resident_bytes(pid: int) -> int:
    """Resident memory.  Raises ``OSError`` when it is gone."""
    return int(status_of(pid)["VmRSS"].split()[0]) * 1024
