"""Where the broker's cgroups are, by what the kernel says of mounts; and real ones, where they can be made."""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.processes.cgroup import Cgroup, Cgroups, parent_folder
from tests.kit.cgroups import can_have_cgroups, cgroups_of
from tests.processes import read_process
from tests.waiting import eventually

BOUND = "1 2 0:38 /docker/ab /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
UNIFIED = "41 31 0:38 / {} rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
ESCAPE = "setsid env -i /bin/sleep 300 & setsid env -i setsid /bin/sleep 300 & exec sleep 300"
"""Neither the group nor the environment tells whose these are."""


@pytest.mark.parametrize(
    ("mountinfo", "own", "expected"),
    [
        pytest.param(UNIFIED.format("/sys/fs/cgroup"), "0::/", "/sys/fs/cgroup", id="root"),
        pytest.param(
            UNIFIED.format("/sys/fs/cgroup"), "0::/system.slice/x", "/sys/fs/cgroup/system.slice/x", id="unit"
        ),
        pytest.param(
            V1 + UNIFIED.format("/sys/fs/cgroup/unified"), "8:pids:/x\n1:name=systemd:/y\n0::/a\n",
            "/sys/fs/cgroup/unified/a", id="hybrid",
        ),
        pytest.param(V1, "1:name=systemd:/\n", None, id="version 1 alone"),
        pytest.param(V1, "0::/a\n", None, id="not mounted"),
        pytest.param("", "", None, id="nothing"),
        pytest.param(
            BOUND, "0::/docker/ab/c", "/sys/fs/cgroup/c", id="bound"
        ),
        pytest.param(BOUND, "0::/other", None, id="not shown"),
        pytest.param(UNIFIED.format("/sys/fs/cgroup"), "0::/../../x", None, id="outside of the namespace"),
        pytest.param(UNIFIED.format(r"/my\040cg\134x"), "0::/a", "/my cg\\x/a", id="escaped"),
    ],
)  # fmt: skip
def test_the_brokers_own_cgroup_is_found(mountinfo: str, own: str, expected: str | None) -> None:
    """Its line without a controller, below the mount of version 2 that shows it; None where there is none."""
    assert parent_folder(mountinfo, own) == (None if expected is None else Path(expected))


@pytest.fixture
def cgroups(tmp_path: Path) -> Iterator[Cgroups]:
    """Those of a broker whose state directory is the test's own; nothing is left of them."""
    if obstacle := can_have_cgroups(tmp_path):
        pytest.skip(f"no cgroup can be made: {obstacle}")
    found = Cgroups.of(tmp_path)
    found.open()
    yield found
    found.sweep()
    assert found.folder is not None
    assert not found.folder.exists()


@asynccontextmanager
async def escaping(cgroup: Cgroup) -> AsyncIterator["subprocess.Popen[bytes]"]:
    """A process in ``cgroup`` with two descendants that left its group and its environment."""
    with subprocess.Popen(["sh", "-c", "read go; " + ESCAPE], stdin=subprocess.PIPE, start_new_session=True) as popen:
        try:
            await cgroup.take_in(popen.pid)
            assert popen.stdin is not None
            popen.stdin.write(b"\n")
            popen.stdin.close()
            yield popen
        finally:
            popen.kill()
            cgroup.kill()


def members(cgroups: Cgroups) -> list[int]:
    """Who is in any of them."""
    assert cgroups.folder is not None
    texts = [path.read_text() for path in cgroups.folder.rglob("cgroup.procs")]
    return [int(word) for text in texts for word in text.split()]


def are_settled(cgroups: Cgroups, count: int) -> bool:
    """So many are there, and none of them starts another one any more: ``setsid`` forks, in the leader of a group."""
    pids = members(cgroups)
    return len(pids) == count and all(_command(pid) == "sleep" for pid in pids)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


async def test_what_left_its_group_and_its_environment_is_killed(cgroups: Cgroups) -> None:
    """One write ends the whole tree, also behind a dead leader; the folder goes, no other is touched."""
    first, second = cgroups.plan("first"), cgroups.plan("second")
    async with escaping(first) as popen, escaping(second) as other:
        await eventually(lambda: are_settled(cgroups, 6))
        popen.kill()
        popen.wait()
        assert len(members(cgroups)) == 5
        first.kill()
        await first.remove()
        assert len(members(cgroups)) == 3
        assert other.poll() is None
        second.kill()
        await second.remove()
    assert members(cgroups) == []


async def test_a_folder_that_is_not_empty_is_removed_later(cgroups: Cgroups) -> None:
    """``leave`` waits for nothing; ``tidy`` kills what is left and removes the folder, and those made inside."""
    mine = cgroups.plan("mine")
    async with escaping(mine) as popen:
        assert cgroups.folder is not None
        inner = cgroups.folder / "mine" / "inner"
        inner.mkdir()
        mine.leave()
        assert popen.poll() is None
        assert inner.is_dir()

        def is_gone() -> bool:
            cgroups.tidy()
            return not inner.parent.exists()

        await eventually(is_gone)
        assert popen.wait() == -9


async def test_above_the_bound_a_folder_is_left_and_told(cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not tried again before the broker ends, and that is counted."""
    monkeypatch.setattr("broker.processes.cgroup.MAX_LEFT", 1)
    failed: list[str] = []
    cgroups.on_failed = failed.append
    first, second = cgroups.plan("first"), cgroups.plan("second")
    async with escaping(first), escaping(second):
        assert cgroups.folder is not None
        first.leave()
        assert failed == []
        second.leave()
        assert failed == ["cgroup_left"]
        assert (cgroups.folder / "second").is_dir()
    cgroups.sweep()
    assert not cgroups.folder.exists()


async def test_what_a_dead_broker_left_is_swept(cgroups: Cgroups, tmp_path: Path) -> None:
    """Whoever has the state directory next ends it; with another state directory nobody does."""
    (tmp_path / "other").mkdir()
    async with escaping(cgroups.plan("left")) as popen:
        await eventually(lambda: are_settled(cgroups, 3))
        pids = members(cgroups)
        Cgroups.of(tmp_path / "other").sweep()
        assert members(cgroups) == pids
        Cgroups.of(tmp_path).sweep()
        assert popen.wait() == -9
    assert cgroups_of(tmp_path) == []
    await eventually(lambda: all((row := read_process(pid)) is None or row.state == "Z" for pid in pids))


async def test_where_none_can_be_made_a_process_lives_without(cgroups: Cgroups) -> None:
    """It is counted once, nothing is left behind, and later calls do nothing."""
    failed: list[str] = []
    cgroups.on_failed = failed.append
    assert cgroups.folder is not None
    cgroups.folder.mkdir()
    (cgroups.folder / "cgroup.max.descendants").write_text("0")  # as where an operator allows no more
    mine = cgroups.plan("mine")
    await mine.take_in(os.getpid())
    mine.kill()
    await mine.remove()
    assert failed == ["cgroup_make"]
    assert not (cgroups.folder / "mine").exists()


async def test_an_obstacle_is_told(tmp_path: Path) -> None:
    """A parent that is no cgroup, or that may not be written to, is no place for any; nothing is left there."""
    for parent in (tmp_path / "no such file", Path("/proc/self")):
        found = Cgroups(parent / "broker-1-2" if parent.exists() else Path("/dev/null/broker-1-2"))
        found.open()
        assert found.obstacle
        await found.plan("x").take_in(os.getpid())
    plain = Cgroups(tmp_path / "broker-1-2")
    plain.open()
    assert plain.obstacle
    assert list(tmp_path.iterdir()) == []
    assert Cgroups().obstacle
