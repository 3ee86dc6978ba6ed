"""How much room the conversations of a tenant take on disk, and whether another one may begin.

Owner task: ``run``, in the task group of ``broker.sessions.registry``: it alone looks, at one tenant at a time, in one
thread.  Callers: ``broker.sessions.opening`` and ``broker.sessions.registry`` ask before a conversation or a branch
begins.  Only tenants with ``limits.tenant_disk_mb`` are looked at; those are as many as the operator has named.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import anyio
import anyio.to_thread

from broker.config.limits import Limits
from broker.metrics import Metrics
from broker.pool.quotas import QuotaExceeded, check_cap
from broker.processes.folder_size import measure
from broker.processes.session_directory import SessionDirectory
from protocol.codes import CloseCode, Limit

MIB = 2**20
FRESH_S = 2.0
"""A figure of this age is as good as a new one."""
WAIT_S = 0.5
"""Whoever begins a conversation waits this long for a look; then the last figure counts, or none."""
LOOK_S = 5.0
"""One look ends then, and the next one goes on with what was not counted, or longest ago."""
LOOK_EVERY_S = 60.0
"""For a tenant that has begun a conversation within ``WATCHED_S``: a look at a hello then finds little to count."""
WATCHED_S = 3600.0
SETTLED_S = 60.0
"""What was counted so long after a conversation's last use is still so while it sleeps."""


class Place(NamedTuple):
    """Where a conversation lies.  ``last_active``: monotonic seconds; None while it has a process, which may write."""

    directory: SessionDirectory
    last_active: float | None


class Size(NamedTuple):
    """What was counted, when the look began; monotonic seconds."""

    bytes: int
    at: float


@dataclass(slots=True)
class Figure:
    """One tenant's: sizes by the name of the directory.  ``at``: when the last look began; ``asked_at``: when somebody
    wanted to know.  Monotonic seconds."""

    sizes: dict[str, Size] = field(default_factory=dict)
    at: float = float("-inf")
    asked_at: float = 0.0
    looked: anyio.Event = field(default_factory=anyio.Event)
    """Set after the look that comes next; another event then takes its place."""

    def is_settled(self, place: Place) -> bool:
        """Whether the size that is known still holds."""
        size = self.sizes.get(place.directory.root.name)
        return size is not None and place.last_active is not None and size.at >= place.last_active + SETTLED_S

    def used(self) -> int:
        """Bytes, as far as they were counted."""
        return sum(size.bytes for size in self.sizes.values())


class DiskQuota:
    """``places`` tells the conversations of a tenant."""

    def __init__(self, places: Callable[[str], list[Place]], metrics: Metrics) -> None:
        self._places = places
        self._metrics = metrics
        self._figures: dict[str, Figure] = {}
        self._wanted: dict[str, None] = {}
        self._wish = anyio.Event()
        self._is_stopped = False

    async def check(self, tenant: str, limits: Limits) -> None:
        """Raises ``QuotaExceeded`` when the tenant's conversations take as much as they may.

        Waits at most ``WAIT_S`` for a look, which goes on after a cancel, too.
        """
        cap = limits.tenant_disk_mb
        if cap is None:
            return
        now, figure = time.monotonic(), self._figures.setdefault(tenant, Figure())
        figure.asked_at = now
        if now - figure.at > FRESH_S:
            self._want([tenant])
            with anyio.move_on_after(WAIT_S):
                await figure.looked.wait()
        try:
            check_cap(Limit.TENANT_DISK_MB, cap, figure.used() // MIB, CloseCode.POOL_UNAVAILABLE, None)
        except QuotaExceeded as full:
            self._metrics.limit_refused(full.limit)
            raise

    def _want(self, tenants: Iterable[str]) -> None:
        self._wanted |= dict.fromkeys(tenants)
        self._wish.set()

    async def run(self) -> None:
        """Look for whoever asks, and once a minute, until cancelled; the thread ends right after."""
        try:
            while True:
                with anyio.move_on_after(LOOK_EVERY_S):
                    await self._wish.wait()
                if not self._wanted:
                    since = time.monotonic() - WATCHED_S
                    self._want(tenant for tenant, figure in self._figures.items() if figure.asked_at >= since)
                self._wish = anyio.Event()
                while self._wanted:
                    tenant = next(iter(self._wanted))
                    del self._wanted[tenant]
                    await self._look(tenant)
        finally:
            self._is_stopped = True

    async def _look(self, tenant: str) -> None:
        figure = self._figures.get(tenant)
        if figure is None:
            return
        places, began = self._places(tenant), time.monotonic()
        names = {place.directory.root.name for place in places}
        sizes = {name: size for name, size in figure.sizes.items() if name in names}
        due = [place for place in places if not figure.is_settled(place)]
        due.sort(key=lambda place: sizes[place.directory.root.name].at if place.directory.root.name in sizes else 0.0)
        figure.sizes = sizes
        found = await anyio.to_thread.run_sync(self._measure, due, began, abandon_on_cancel=True)
        figure.sizes = sizes | found
        figure.at, done, figure.looked = began, figure.looked, anyio.Event()
        done.set()

    def _measure(self, places: list[Place], began: float) -> dict[str, Size]:
        """In the thread."""
        found, deadline = {}, began + LOOK_S
        for place in places:
            if self._is_stopped or time.monotonic() >= deadline:
                break
            root = place.directory.root
            found[root.name] = Size(measure(root, deadline, lambda: self._is_stopped), began)
        return found
