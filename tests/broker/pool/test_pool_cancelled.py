"""The pool, cancelled at every await: no process without an owner, none bound twice, the next tenant is served."""

from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from broker.config.launch_profile import SpawnOptions
from broker.pool.pool import Pool
from broker.pool.slot import Slot, SlotState
from broker.processes.child import Child
from tests.kit.injector import Injector, every_step
from tests.kit.stage import SETTLES_WITHIN_S, Stage, configured, small_cli, stage
from tests.soak import LONG_S
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(LONG_S)


def told(name: str, counts: Counter[str], steps: int) -> None:
    """For the log of a run."""
    print(f"{name}: {steps} awaits, struck {dict(counts)}")


class Leasing:
    """Somebody who wants a process, has it for two breaths, and lets it go."""

    def __init__(self, found: Stage, *, tools: tuple[str, ...] | None = None, is_again: bool = False) -> None:
        self.stage = found
        self.choice = found.pool.choose(None, SpawnOptions(tools=tools))
        self.again = found.conversation() if is_again else None
        self.on_position: Callable[[int], None] = lambda position: None

    async def have(self) -> None:
        limits = self.stage.config.limits
        async with self.stage.pool.lease(
            self.choice, "ann", limits, again=self.again, on_position=self.on_position
        ) as lease:
            self.stage.has_bound(lease)
            lease.process.write(b"{}\n")
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()

    async def run(self, injector: Injector) -> None:
        injector.on_step = self.stage.is_within_limits
        with anyio.fail_after(SETTLES_WITHIN_S):
            await injector.drive(self.have())

    async def run_in_the_queue(self, injector: Injector) -> None:
        """Another one has the only process, and lets it go when somebody waits."""
        async with AsyncExitStack() as held:
            holder = self.stage.pool.lease(
                self.choice, "bob", self.stage.config.limits, again=None, on_position=lambda _: None
            )
            self.stage.has_bound(await held.enter_async_context(holder))
            released = held.pop_all()
            leaves = anyio.Event()
            self.on_position = lambda position: leaves.set()

            async def leave() -> None:
                await leaves.wait()
                await released.aclose()

            async with anyio.create_task_group() as group:
                group.start_soon(leave)
                await self.run(injector)
                leaves.set()


SCENES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "warm": ({"warm": 1}, {}),
    "cold": ({"warm": 0}, {}),
    "queue": ({"warm": 0, "max_processes": 1}, {}),
    "restore": ({"warm": 1}, {"is_again": True}),
    "unknown profile": ({"warm": 1}, {"tools": ("Read",)}),
    "unknown profile, full": ({"warm": 1, "max_processes": 1}, {"tools": ("Read",)}),
}


@pytest.mark.parametrize("scene", SCENES)
async def test_a_lease_that_is_cancelled(scene: str, tmp_path: Path) -> None:
    """Warm, cold, in the queue, for a conversation that goes on or for options of one's own, at every await."""
    pool, wish = SCENES[scene]
    counts: Counter[str] = Counter()
    async with stage(tmp_path, pool=pool) as found:
        leasing = Leasing(found, **wish)
        run = leasing.run_in_the_queue if scene == "queue" else leasing.run
        steps = 0
        async for injector in every_step(run):
            assert injector.is_cancelled == injector.has_struck
            counts[injector.how] += injector.has_struck
            steps = max(steps, injector.steps)
            await found.settled()
            await found.serve()
            await found.settled()
    told(scene, counts, steps)
    assert min(counts.values()) >= 2


class Watched(Pool):
    """A pool whose next child is supervised under an injector."""

    injector: Injector | None = None
    ended: anyio.Event

    async def _supervise(self, slot: Slot, child: Child) -> None:
        injector, self.injector = self.injector, None
        if injector is None:
            await super()._supervise(slot, child)
            return

        def retire() -> None:  # as the pool does it
            if slot.state is not SlotState.GONE:
                self._slots.stop(slot)
            child.scope.cancel()

        injector.cancel_scope = retire
        try:
            await injector.drive(super()._supervise(slot, child))
        finally:
            self.ended.set()


async def test_a_supervisor_that_is_cancelled(tmp_path: Path) -> None:
    """While its process is started, proven, waited for, stopped: it ends its own process, and the pool goes on."""
    counts: Counter[str] = Counter()
    async with stage(tmp_path, pool={"warm": 1}, pool_type=Watched) as found:
        pool = found.pool
        assert isinstance(pool, Watched)

        async def run(injector: Injector) -> None:
            pool.injector, pool.ended = injector, anyio.Event()
            await found.serve()  # another spare is started in the place of this one
            with anyio.fail_after(SETTLES_WITHIN_S):
                await eventually(lambda: pool.injector is None)
                await eventually(lambda: pool.ended.is_set() or pool._slots.count("default", SlotState.WARM))
                if not pool.ended.is_set():
                    await found.serve()
                await pool.ended.wait()

        steps = 0
        async for injector in every_step(run):
            counts[injector.how] += injector.has_struck
            steps = max(steps, injector.steps)
            if injector.how != "scope" and injector.struck_at and "Child.wipe" in dict(injector.struck_at):
                found.sweep()  # no shield holds such a cancel back, and the files are left to the broker's end
            await found.settled()
    told("supervisor", counts, steps)
    assert min(counts.values()) >= 5


async def test_a_pool_that_is_cancelled(tmp_path: Path) -> None:
    """At its first breath, while spares start, while it stops them: nothing is left of it."""
    counts: Counter[str] = Counter()
    cli, number, steps = small_cli(tmp_path), 0, 0

    async def run(injector: Injector) -> None:
        nonlocal number, steps
        number += 1
        found = Stage(tmp_path / str(number), cli, configured(pool={"warm": 2}))
        async with anyio.create_task_group() as group:

            async def end() -> None:
                await eventually(lambda: found.pool._slots.count("default", SlotState.WARM) == 2, SETTLES_WITHIN_S)
                group.cancel_scope.cancel()

            group.start_soon(end)
            await injector.drive(found.pool.run())
            group.cancel_scope.cancel()
        counts[injector.how] += injector.has_struck
        steps = max(steps, injector.steps)
        found.pool._slots.bounds.targets.clear()
        await eventually(lambda: not [line for line in found.trouble() if not line.startswith("spares")])

    async for _ in every_step(run):
        pass
    told("pool", counts, steps)
    assert min(counts.values()) >= 2
