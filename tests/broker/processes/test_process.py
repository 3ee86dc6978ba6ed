"""One child process, real: its stop ladder, and what its start leaves when it fails at each step."""

import asyncio
import contextlib
import errno
import resource
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

import anyio
import pytest
import uvloop

from broker.errors import ProcessError
from broker.processes import orphans
from broker.processes.cgroup import Cgroup, Cgroups
from broker.processes.process import Process
from tests.broker.launches import launch
from tests.kit.cgroups import can_have_cgroups, cgroups_of
from tests.oracle import open_fds
from tests.soak import LONG_S, size
from tests.waiting import eventually

GRACE_S = 0.3
AT_ONCE = 10
STUBBORN = """trap "echo term >> $0" TERM
echo ready > $0
while read -r line; do :; done
echo eof >> $0
{}
while :; do sleep 0.02; done
"""
uvloop.new_event_loop().close()  # what it opens once and for all is there before the first test
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@contextlib.contextmanager
def cgroups_at(folder: Path) -> Iterator[Cgroups]:
    """A broker's, where they can be made; else ones that do nothing."""
    found = Cgroups.of(folder)
    found.open()
    yield found
    assert cgroups_of(folder) == []
    found.sweep()


async def ended(process: Process, stop: Callable[[], object] | None = None) -> None:
    """Supervise it to its end."""
    async with anyio.create_task_group() as group:
        group.start_soon(process.supervise)
        if stop is not None:
            stop()
        await process.exited.wait()


# -- the stop ladder --


@pytest.mark.timeout(LONG_S)
@pytest.mark.parametrize(
    ("then", "expected", "returncode"),
    [("", ["ready", "eof", "term"], -9), ("exit 3", ["ready", "eof"], 3), ("trap - TERM", ["ready", "eof"], -15)],
    ids=["stubborn", "ends at the end of stdin", "ends at SIGTERM"],
)
async def test_the_ladder_goes_step_by_step(then: str, expected: list[str], returncode: int, tmp_path: Path) -> None:
    """End of stdin, SIGTERM, SIGKILL: in this order, each after its grace, and none after the death."""

    async def one(number: int) -> float:
        steps = tmp_path / f"steps-{number}"
        process = await Process.start(launch(tmp_path, "sh", "-c", STUBBORN.format(then), str(steps)))
        await eventually(steps.exists, 20)
        async with anyio.create_task_group() as group:
            group.start_soon(process.supervise)
            began = time.monotonic()
            await process.stop(GRACE_S, GRACE_S)
            took = time.monotonic() - began
            await process.exited.wait()
        assert steps.read_text().split() == expected
        assert process.returncode == returncode
        return took

    took: list[float] = []
    for first in range(0, (count := size(10, 100)), AT_ONCE):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(first, min(first + AT_ONCE, count))]
        took += [task.result() for task in tasks]
    print(f"{then or 'stubborn'}: {len(took)} ladders of 2 x {GRACE_S} s, {min(took):.3f} to {max(took):.3f} s")
    if returncode == -9:
        assert min(took) > 2 * GRACE_S * 0.99
    assert max(took) < 2 * GRACE_S + 5


# -- a start that fails --


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """So many file descriptors can be opened and no more."""
    taken = set(open_fds())
    free = [number for number in range(4096) if number not in taken]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_start_without_descriptors_leaves_nothing(loop: str, tmp_path: Path) -> None:
    """With room for 0, 1, 2, ... of them it fails at each place that needs one in turn: typed, and nothing stays."""
    outcomes: list[str] = []

    async def one(room: int, cgroups: Cgroups) -> None:
        wanted = launch(tmp_path, "sleep", "300", cgroup=cgroups.plan(f"room{room}"))
        process: Process | None = None
        with room_for(room):
            try:
                process = await Process.start(wanted)
            except ProcessError as error:
                outcomes.append(error.detail.partition(":")[0].partition(" sleep")[0])
        if process is not None:
            outcomes.append("started")
            await ended(process, process.kill)
        cgroups.tidy()

    async def all_of_them() -> None:
        with cgroups_at(tmp_path) as cgroups:
            await one(100, cgroups)  # what the loop opens once
            before = open_fds()
            for room in range(16):
                await one(room, cgroups)
                await asyncio.sleep(0)  # transports close in the next turn
                assert open_fds() == before, room
                assert orphans.awaited == set()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(all_of_them())
    print(loop, outcomes)
    assert set(outcomes) == {"cannot start", "started"}  # a spawn needs more at once than all that follows
    assert outcomes[0] == outcomes[-1] == "started"


class Narrow(asyncio.SelectorEventLoop):
    """A loop that fails in its ``fails_at``-th attempt to attach a pipe, as where the system allows no more watches."""

    fails_at = 0
    attached = 0

    async def connect_read_pipe(self, protocol_factory, pipe):  # type: ignore[no-untyped-def]
        """As the base, or ENOSPC."""
        self._count(pipe)
        return await super().connect_read_pipe(protocol_factory, pipe)

    async def connect_write_pipe(self, protocol_factory, pipe):  # type: ignore[no-untyped-def]
        """As the base, or ENOSPC."""
        self._count(pipe)
        return await super().connect_write_pipe(protocol_factory, pipe)

    def add_reader(self, fd, callback, *args):  # type: ignore[no-untyped-def,override]
        """As the base, or ENOSPC."""
        self._count()
        return super().add_reader(fd, callback, *args)

    def _count(self, pipe: IO[bytes] | None = None) -> None:
        self.attached += 1
        if self.attached == self.fails_at:
            if pipe is not None:
                pipe.close()  # as a transport that fails does
            raise OSError(errno.ENOSPC, "no room")


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_a_start_that_the_loop_refuses_leaves_nothing(fails_at: int, tmp_path: Path) -> None:
    """stdin, stdout, stderr and the pidfd: whichever cannot be attached, the child is gone and all is closed."""

    async def one() -> None:
        with cgroups_at(tmp_path) as cgroups:
            before = open_fds()
            with pytest.raises(ProcessError, match="cannot watch the process"):
                await Process.start(launch(tmp_path, "sleep", "300", cgroup=cgroups.plan("narrow")))
            await asyncio.sleep(0)
            assert open_fds() == before
            assert orphans.awaited == set()

    loop = Narrow()
    loop.fails_at = fails_at
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(one())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_cancelled_start_has_an_owner(loop: str, tmp_path: Path) -> None:
    """The process is handed out all the same, and whoever called ends it: nothing is closed twice or left."""

    async def one() -> None:
        before: dict[int, str] = {}
        for _ in range(2):  # the first one is for what the loop opens once
            before = open_fds()
            with anyio.CancelScope() as scope:
                scope.cancel()
                process = await Process.start(launch(tmp_path, "sleep", "300"))
            await ended(process, process.kill)
            await asyncio.sleep(0)
        assert open_fds() == before

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(one())


async def test_an_end_without_descriptors_is_an_end(tmp_path: Path) -> None:
    """Where nothing can be opened, not even /proc can be read: the death is noticed, and heirs go as soon as it can."""
    if obstacle := can_have_cgroups(tmp_path):
        pytest.skip(f"no cgroup can be made: {obstacle}")
    cgroups = Cgroups.of(tmp_path)
    cgroups.open()
    wanted = launch(tmp_path, "sh", "-c", "setsid env -i sleep 300 & exec sleep 300", cgroup=cgroups.plan("end"))
    process = await Process.start(wanted)
    assert cgroups.folder is not None
    members = cgroups.folder / "end" / "cgroup.procs"
    await eventually(lambda: len(members.read_text().split()) == 2)
    with room_for(0):
        await ended(process, process.kill)
    assert process.returncode == -9

    def is_gone() -> bool:
        cgroups.tidy()
        return not members.exists()

    await eventually(is_gone)
    cgroups.sweep()


async def test_a_launch_waits_for_nobody_elses_thread(tmp_path: Path) -> None:
    """All threads of the crowd are taken: the move into a cgroup has one of its own."""
    go_on, limiter = threading.Event(), anyio.to_thread.current_default_thread_limiter()
    async with anyio.create_task_group() as group:
        try:
            for _ in range(int(limiter.total_tokens)):
                group.start_soon(partial(anyio.to_thread.run_sync, go_on.wait))
            await eventually(lambda: not limiter.available_tokens)
            with anyio.fail_after(20):
                process = await Process.start(launch(tmp_path, "cat", cgroup=Cgroup(tmp_path / "cgroup")))
        finally:
            go_on.set()
    async with anyio.create_task_group() as group:
        group.start_soon(process.supervise)
        process.kill()
        await process.exited.wait()
