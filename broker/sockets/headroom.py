"""File descriptors that tenants' sockets may not take: whoever is there needs them for processes, files and the index.

Without a bound a flood of sockets takes the last one.  asyncio then logs a thousand lines a second, no process can be
started, and at a process's end not even /proc can be read.  Pure.  Callers: ``broker.app``, ``broker.sockets.door``.
"""

import resource

ACCEPT_BATCH = 16
"""Sockets that are accepted before the first of them is judged (asyncio; uvloop takes all that are there)."""
BACKLOG = 1024
"""Connections that the kernel holds, which is not the same."""
OWN = 64
PER_PROCESS = 4
"""Three pipes and a pidfd."""


def first_refused(limit: int, processes: int) -> int | None:
    """The number from which on a socket's descriptor is refused; None without a limit (RLIMIT_NOFILE).

    The system gives the lowest number that is free: a high one says that all below are taken.
    """
    if limit == resource.RLIM_INFINITY:
        return None
    return limit - min(limit // 4, OWN + PER_PROCESS * processes)


def descriptor_limit() -> int:
    """What holds for this process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
