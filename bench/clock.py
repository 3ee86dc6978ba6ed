"""Time and the machine's load, as the bench measures them.

Callers: every sub-command.  All times are seconds of one monotonic clock, the same in every process of this machine.
"""

import os
import time
from pathlib import Path
from typing import Final

import anyio

from bench.samples import Samples

LAG_PERIOD_S: Final = 0.005
QUIET_WINDOW_S: Final = 0.2
QUIET_BUSY: Final = 0.25
"""Share of all cores in use above which an arrival would measure the neighbours."""

now = time.perf_counter


def wall(moment: float) -> float:
    """Seconds since 1970 of a moment of ``now``: to compare with what another program wrote down."""
    return moment + (time.time() - now())


class LoopLag:
    """How late this program's own event loop runs what is due.  Above a few milliseconds its figures are its own."""

    def __init__(self) -> None:
        self.samples = Samples()

    async def watch(self) -> None:
        """Sample until cancelled; the caller's task group owns it."""
        while True:
            due = now() + LAG_PERIOD_S
            await anyio.sleep(LAG_PERIOD_S)
            self.samples.add(now() - due)


def busy_ticks() -> tuple[int, int]:
    """Ticks since boot that all cores spent busy, and in all (the first line of /proc/stat)."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    total = sum(fields)
    return total - fields[3] - fields[4], total


async def wait_quiet(within_s: float) -> float:
    """Wait until the machine has little to do; returns the share of all cores in use in the last window looked at.

    After ``within_s`` seconds it returns all the same: the caller notes the share beside its sample.
    """
    deadline = now() + within_s
    while True:
        busy, total = busy_ticks()
        await anyio.sleep(QUIET_WINDOW_S)
        busy_then, total_then = busy_ticks()
        share = (busy_then - busy) / max(1, total_then - total)
        if share <= QUIET_BUSY or now() >= deadline:
            return share


def load_average() -> list[float]:
    """Runnable processes over the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]
