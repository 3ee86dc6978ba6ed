"""What the processes of a measurement use in its window: the server, the receiver, the writers of the lines.

Owner and caller: ``bench.peers.runs``.
"""

import os
import time

from bench.clock import LoopLag, busy_ticks
from bench.peers.job import Measured
from bench.peers.process_clock import cpu_of, cpu_s, spent
from bench.samples import Samples
from broker.processes.orphans import children_of


class Meter:
    """Begins when it is made.  The writers are the children of the server, or of this process where there is none.

    ``lag``: of the receiver's own loop; what it has seen before the window is forgotten.
    """

    def __init__(self, server: int | None, lag: LoopLag) -> None:
        self._server = server
        self._lag = lag.samples = Samples()
        self._writers = cpu_of(children_of(os.getpid() if server is None else server))
        self._busy = busy_ticks()
        self._own_s = time.process_time()
        self._server_s = None if server is None else cpu_s(server)
        self._began = time.monotonic()

    def end(self, measured: Measured) -> None:
        """Write down what was used since.  Raises ``OSError`` when the server is gone."""
        measured.wall_s = time.monotonic() - self._began
        if self._server is not None and self._server_s is not None:
            measured.server_cpu_s = cpu_s(self._server) - self._server_s
        measured.receiver_cpu_s = time.process_time() - self._own_s
        writers = cpu_of(self._writers)
        measured.generator_cpu_s = spent(self._writers, writers)
        busiest = max((now - self._writers[pid] for pid, now in writers.items()), default=0.0)
        measured.busiest_generator = busiest / measured.wall_s
        if len(self._lag):
            measured.lag_p99_ms = self._lag.percentile(99) * 1e3
        busy, total = busy_ticks()
        measured.machine_busy = (busy - self._busy[0]) / max(1, total - self._busy[1])
