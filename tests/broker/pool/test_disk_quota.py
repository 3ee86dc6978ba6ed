"""How much room a tenant's conversations may take: who is refused, and what a look costs."""

import math
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from broker.config.limits import Limits
from broker.metrics import Metrics
from broker.pool import disk_quota
from broker.pool.disk_quota import SETTLED_S, WAIT_S, DiskQuota, Place
from broker.pool.quotas import QuotaExceeded
from broker.processes.folder_size import ASK_EVERY, Count, measure
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

    def add(self, name: str, kib: int, quiet_since: float = math.inf) -> Path:
        """A conversation with a file of that size, and by default with a process."""
        directory = SessionDirectory(self.root / name)
        directory.create()
        (directory.work / "file").write_bytes(os.urandom(kib * 1024))
        self.places.append(Place(directory, quiet_since))
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


async def test_what_a_look_leaves_in_the_middle_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What sleeps comes first in the next look then; until it was counted whole, what is known of it counts."""
    real = measure
    cut: set[str] = set()

    def cutting(root: Path, deadline: float, is_stopped: Callable[[], bool]) -> Count:
        return Count(0, is_whole=False) if root.name in cut else real(root, deadline, is_stopped)

    monkeypatch.setattr(disk_quota, "measure", cutting)
    async with looking(tmp_path, monkeypatch) as disk:
        disk.add("first", 10)
        disk.add("second", 3000, -1000.0)
        cut.add("second")
        assert not await disk.is_refused()
        cut.clear()
        assert await disk.is_refused()
        disk.places[1] = disk.places[1]._replace(quiet_since=math.inf)
        disk.places.reverse()
        disk.places.append(disk.places.pop(0))
        cut.add("second")
        assert await disk.is_refused()


async def test_what_is_too_much_for_a_look_is_above_every_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else large files could hide behind many empty ones.  It is told once, and over once there was time to count."""
    real = measure
    is_slow = True

    def slow(root: Path, deadline: float, is_stopped: Callable[[], bool]) -> Count:
        return real(root, 0.0 if is_slow and root.name == "many" else deadline, is_stopped)

    monkeypatch.setattr(disk_quota, "measure", slow)
    async with looking(tmp_path, monkeypatch) as disk:
        work = disk.add("many", 1, -1000.0)
        for number in range(2 * ASK_EVERY):
            (work / f"{number}").touch()
        for _ in range(3):
            assert await disk.is_refused(Limits(tenant_disk_mb=2**30))
        disk.add("other", 10)
        assert await disk.is_refused(Limits(tenant_disk_mb=2**30))
        is_slow = False
        assert not await disk.is_refused()
    assert capsys.readouterr().out.count("disk.uncountable") == 1


async def test_what_was_written_between_the_last_look_and_the_rest_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that idles long after its last use may write until it ends: only then is the directory quiet."""
    async with looking(tmp_path, monkeypatch) as disk:
        work = disk.add("one", 10)
        assert not await disk.is_refused()
        (work / "more").write_bytes(os.urandom(3 * 2**20))
        disk.places[0] = disk.places[0]._replace(quiet_since=time.monotonic())
        assert await disk.is_refused()


async def test_a_check_during_a_look_is_no_look_at_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is due once a minute, however many ask in between, and then also while they do."""
    asked: list[str] = []

    def places(tenant: str) -> list[Place]:
        asked.append(tenant)
        if tenant == "first":
            group.start_soon(quota.check, "second", CAP)
        return []

    quota = DiskQuota(places, Metrics())
    monkeypatch.setattr(disk_quota, "FRESH_S", 0.0)
    async with anyio.create_task_group() as group:
        group.start_soon(quota.run)
        await quota.check("third", CAP)
        for _ in range(20):
            await quota.check("first", CAP)
        assert asked.count("third") == 1
        assert asked.count("second") > 1
        group.cancel_scope.cancel()
    monkeypatch.setattr(disk_quota, "LOOK_EVERY_S", 0.02)
    async with anyio.create_task_group() as group:
        group.start_soon(quota.run)
        with anyio.fail_after(20):
            while asked.count("third") < 3:
                await quota.check("first", CAP)
        group.cancel_scope.cancel()


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
