"""A ceiling for the memory of each process: one whose tree holds more than ``pool.process_memory_mb`` is killed.

Owner task: ``run``, beside the pool's in ``broker.app``.  The system's own limit would end whichever process it likes;
this one ends the tree that grew, and its turn fails typed.  It is looked at once a second: what grows faster than the
machine's free memory in that time is not held by it.
"""

from collections.abc import Callable, Sequence

import anyio
import anyio.to_thread
import structlog

from broker.config.settings import Settings
from broker.metrics import Metrics
from broker.processes.process import Process
from broker.processes.resident import above

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0
MB = 2**20


class MemoryWatch:
    """``processes`` gives those that live now: spares, leased ones, those that start or stop."""

    def __init__(self, settings: Settings, metrics: Metrics, processes: Callable[[], Sequence[Process]]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._processes = processes

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await anyio.sleep(LOOK_EVERY_S)
            limit_mb = self._settings.now.pool.process_memory_mb
            watched = {process.pid: process for process in self._processes() if process.returncode is None}
            if limit_mb is not None and watched:
                await self._look(watched, limit_mb)

    async def _look(self, watched: dict[int, Process], limit_mb: int) -> None:
        roots = {pid: process.marker for pid, process in watched.items()}
        # In a thread: with thousands of foreign processes a look takes tens of milliseconds.
        try:
            found = await anyio.to_thread.run_sync(above, roots, limit_mb * MB, abandon_on_cancel=True)
        except OSError as error:  # no file descriptor is left, say
            log.warning("process.memory_unknown", error=str(error))
            self._metrics.process_fault("memory_unknown")
            return
        for pid, held in found.items():
            process = watched[pid]
            if process.returncode is not None:
                continue
            words = f"its processes held {held // MB} MiB, pool.process_memory_mb = {limit_mb}"
            log.error("process.over_memory", pid=pid, held_mb=held // MB, limit_mb=limit_mb)
            self._metrics.process_fault("memory")
            process.kill(words)
