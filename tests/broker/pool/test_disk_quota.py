"""How much room a tenant's conversations may take: who is refused, and what a look costs."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from broker.config.limits import Limits
from broker.metrics import Metrics
from broker.pool import disk_quota
from broker.pool.disk_quota import SETTLED_S, WAIT_S, DiskQuota, Place
from broker.pool.quotas import QuotaExceeded
from broker.processes.session_directory import SessionDirectory
from protocol.codes import CloseCode, Limit
from tests.soak import size

CAP = Limits(tenant_disk_mb=2)
FOLDERS = size(200, 1000)


class Disk:
    """Directories of one tenant, and a quota that looks at them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.places: list[Place] = []
        self.metrics = Metrics()
        self.quota = DiskQuota(lambda tenant: self.places, self.metrics)

    def add(self, name: str, kib: int, last_active: float | None = None) -> Path:
        """A conversation with a file of that size."""
        directory = SessionDirectory(self.root / name)
        directory.create()
        (directory.work / "file").write_bytes(os.urandom(kib * 1024))
        self.places.append(Place(directory, last_active))
        return directory.work

    async def is_refused(self, limits: Limits = CAP) -> bool:
        try:
            await self.quota.check("ann", limits)
        except QuotaExceeded as full:
            told = (full.limit, full.close, full.message)
        else:
            return False
        message = f"the tenant has reached limits.tenant_disk_mb = {limits.tenant_disk_mb}"
        assert told == (Limit.TENANT_DISK_MB, CloseCode.POOL_UNAVAILABLE, message)
        return True


@asynccontextmanager
async def looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_s: float = 0.0) -> AsyncIterator[Disk]:
    """A quota whose task runs, and which waits as long as a look takes."""
    monkeypatch.setattr(disk_quota, "FRESH_S", fresh_s)
    monkeypatch.setattr(disk_quota, "WAIT_S", 20.0)
    disk = Disk(tmp_path)
    async with anyio.create_task_group() as group:
        group.start_soon(disk.quota.run)
        yield disk
        group.cancel_scope.cancel()


async def test_above_the_cap_none_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once there is room again one does; each refusal is counted; without a cap nobody looks."""
    async with looking(tmp_path, monkeypatch) as disk:
        assert not await disk.is_refused()
        disk.add("one", 1500)
        assert not await disk.is_refused()
        work = disk.add("two", 1500)
        assert await disk.is_refused()
        assert await disk.is_refused()
        assert not await disk.is_refused(Limits(tenant_disk_mb=3))
        assert not await disk.is_refused(Limits())
        (work / "file").unlink()
        assert not await disk.is_refused()
        counted = disk.metrics.registry.get_sample_value("broker_limits_refused_total", {"limit": "tenant_disk_mb"})
        assert counted == 2


async def test_what_sleeps_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody writes there; what was used since, or has a process, is counted again."""
    async with looking(tmp_path, monkeypatch) as disk:
        now = time.monotonic()
        slept, awake = disk.add("slept", 10, now - SETTLED_S - 1), disk.add("awake", 10)
        recent = disk.add("recent", 10, now)
        assert not await disk.is_refused()
        (slept / "more").write_bytes(os.urandom(3 * 2**20))
        assert not await disk.is_refused()
        (awake / "more").write_bytes(os.urandom(3 * 2**20))
        assert await disk.is_refused()
        (awake / "more").unlink()
        assert not await disk.is_refused()
        (recent / "more").write_bytes(os.urandom(3 * 2**20))
        assert await disk.is_refused()


async def test_a_figure_is_good_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst of hellos is one look."""
    async with looking(tmp_path, monkeypatch, fresh_s=60.0) as disk:
        assert not await disk.is_refused()
        disk.add("one", 3000)
        assert not await disk.is_refused()


async def test_nobody_waits_for_a_look_that_takes_long(tmp_path: Path) -> None:
    """After a while the last figure counts, and none is no refusal: nobody looks here at all."""
    disk = Disk(tmp_path)
    disk.add("one", 3000)
    with anyio.fail_after(WAIT_S + 10):
        assert not await disk.is_refused()


async def test_a_look_stops_when_its_time_is_over_and_goes_on_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was never counted comes first."""
    monkeypatch.setattr(disk_quota, "LOOK_S", -1.0)
    async with looking(tmp_path, monkeypatch) as disk:
        disk.add("one", 3000)
        assert not await disk.is_refused()
        monkeypatch.setattr(disk_quota, "LOOK_S", 60.0)
        assert await disk.is_refused()


async def test_many_directories_hold_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on while a thread counts them; asked again, those that sleep cost no look."""
    async with looking(tmp_path, monkeypatch) as disk:
        for number in range(FOLDERS):
            work = disk.add(f"{number}", 1, -1000.0)
            for part in range(20):
                (work / f"{part}").write_bytes(b"x")
        gaps: list[float] = []

        async def tick() -> None:
            while True:
                before = time.monotonic()
                await anyio.lowlevel.checkpoint()
                gaps.append(time.monotonic() - before)

        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            began = time.monotonic()
            await disk.is_refused()
            first = time.monotonic() - began
            group.cancel_scope.cancel()
        began = time.monotonic()
        await disk.is_refused()
        second = time.monotonic() - began
        print(f"{FOLDERS} directories, {FOLDERS * 27} entries: first look {first * 1e3:.0f} ms, "
              f"the next {second * 1e3:.1f} ms; longest gap of the loop {max(gaps) * 1e3:.1f} ms")  # fmt: skip
        assert max(gaps) < 1.0
