"""How much room the conversations of a tenant take on disk, and whether another one may begin.

Owner task: ``run``, in the task group of ``broker.sessions.registry``: it alone looks, at one tenant at a time, in one
thread.  Callers: ``broker.sessions.opening`` and ``broker.sessions.registry`` ask before a conversation or a branch
begins.  Only tenants with ``limits.tenant_disk_mb`` are looked at; those are as many as the operator has named.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import anyio
import anyio.to_thread
import structlog

from broker.config.limits import Limits
from broker.metrics import Metrics
from broker.pool.quotas import QuotaExceeded, check_cap
from broker.processes.folder_size import UNCOUNTABLE, measure
from broker.processes.session_directory import SessionDirectory
from protocol.codes import CloseCode, Limit

log = structlog.get_logger(__name__)

MIB = 2**20
FRESH_S = 2.0
"""A figure of this age is as good as a new one."""
WAIT_S = 0.5
"""Whoever begins a conversation waits this long for a look; then the last figure counts, or none."""
LOOK_S = 5.0
"""One look ends then, and the next one goes on with what it left in the middle, then with what was not counted, or
longest ago.  A directory that has had all of it and is not counted is above every limit."""
LOOK_EVERY_S = 60.0
"""For a tenant that has begun a conversation within ``WATCHED_S``: a look at a hello then finds little to count."""
WATCHED_S = 3600.0
SETTLED_S = 60.0
"""What was counted so long after a conversation's last use, and the end of its last process, is still so."""


class Place(NamedTuple):
    """Where a conversation lies.  ``quiet_since``: nobody has written there; monotonic seconds, infinite while it has a
    process."""

    directory: SessionDirectory
    quiet_since: float


class Size(NamedTuple):
    """What was counted, when the look began; monotonic seconds.  ``is_whole``: there was time for all of it."""

    bytes: int
    at: float
    is_whole: bool = True

    @property
    def is_too_much(self) -> bool:
        """Not to be counted in the time of a look."""
        return not self.is_whole and self.bytes == UNCOUNTABLE


@dataclass(slots=True)
class Figure:
    """One tenant's: sizes by the name of the directory.  ``at``: when the last look began; ``asked_at``: when somebody
    wanted to know.  Monotonic seconds."""

    sizes: dict[str, Size] = field(default_factory=dict)
    at: float = -math.inf
    asked_at: float = 0.0
    looked: anyio.Event = field(default_factory=anyio.Event)
    """Set after the look that comes next; another event then takes its place."""

    def is_settled(self, place: Place) -> bool:
        """Whether the size that is known still holds."""
        size = self.sizes.get(place.directory.root.name)
        return size is not None and size.is_whole and size.at >= place.quiet_since + SETTLED_S

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
        """Look for whoever asks, and for everybody once a minute, until cancelled; the thread ends right after."""
        due = time.monotonic() + LOOK_EVERY_S
        try:
            while True:
                if not self._wanted:
                    self._wish = anyio.Event()
                    with anyio.move_on_after(max(0.0, due - time.monotonic())):
                        await self._wish.wait()
                if (now := time.monotonic()) >= due:
                    due, since = now + LOOK_EVERY_S, now - WATCHED_S
                    self._want(tenant for tenant, figure in self._figures.items() if figure.asked_at >= since)
                if self._wanted:
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
        found = await anyio.to_thread.run_sync(self._measure, due, began, sizes, abandon_on_cancel=True)
        for name, size in found.items():
            if size.is_too_much and not (name in sizes and sizes[name].is_too_much):
                log.warning("disk.uncountable", tenant=tenant, directory=name, look_s=LOOK_S)
        figure.sizes = sizes | found
        figure.at, done, figure.looked = began, figure.looked, anyio.Event()
        done.set()

    def _measure(self, places: list[Place], began: float, known: Mapping[str, Size]) -> dict[str, Size]:
        """In the thread.  One that is left in the middle counts as what is known of it at least, and comes first in the
        next look; one that came first and is left was too much for a look."""
        found: dict[str, Size] = {}
        deadline = time.monotonic() + LOOK_S
        for place in places:
            if self._is_stopped or time.monotonic() >= deadline:
                break
            name = place.directory.root.name
            count = measure(place.directory.root, deadline, lambda: self._is_stopped)
            if count.is_whole:
                found[name] = Size(count.bytes, began)
            elif not found:
                found[name] = Size(UNCOUNTABLE, began, is_whole=False)
            else:
                at_least = max(count.bytes, known[name].bytes if name in known else 0)
                found[name] = Size(at_least, -math.inf, is_whole=False)
        return found
