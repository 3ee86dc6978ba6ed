"""A pool and a registry in the test's own event loop, with real children; and what has to hold between two scenes.

Callers: the tests that need a hand on the parts of a broker, ``async with stage(folder, ...) as found``.
"""

import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from broker.auth import Identity
from broker.config.launch_profile import SpawnOptions
from broker.config.policy import Policy
from broker.config.settings import Settings
from broker.config.tree import Config
from broker.metrics import Metrics
from broker.pool.pacing import Pacing
from broker.pool.pool import Pool
from broker.pool.slot import SlotState
from broker.processes import orphans
from broker.processes.child import Again, Lease
from broker.processes.launcher import Launcher
from broker.processes.program import Cli, find_cli
from broker.processes.session_directory import SessionDirectory
from broker.sessions.opening import Opening
from broker.sessions.registry import Registry
from tests.kit.serving import program
from tests.processes import read_process
from tests.waiting import eventually

ANN = Identity("ann", "ann", "controller", Policy())
SMALL = """read -r _
echo '{"type":"control_response","response":{"subtype":"success","request_id":"ready","response":{}}}'
while read -r _; do :; done"""
"""A child that says that it is ready, and no more; milliseconds to start."""
FDS_PER_CHILD = 4
"""Three pipes and a pidfd."""
SETTLES_WITHIN_S = 20.0


class _Unhurried(Pacing):
    """Spares are started whoever waits for a first token: here nobody measures one."""

    def is_held(self, now: float) -> bool:
        return False


class Stage:
    """The parts, what was bound, and what the process had before."""

    def __init__(
        self, folder: Path, cli: Cli, config: Config, pool: type[Pool] = Pool, registry: type[Registry] = Registry
    ) -> None:  # fmt: skip
        self.config, settings, metrics = config, Settings(config), Metrics(config.pool.profiles)
        self.metrics = metrics
        self.launcher = Launcher(cli, folder / "state", {"SIMULATOR_LEDGER": str(folder / "ledger")})
        self.pool = pool(settings, self.launcher, metrics)
        self.pool._pacing = _Unhurried()
        self.registry = registry(settings, self.pool, metrics)
        self.opening = Opening(config, self.registry, self.pool)
        self.sessions = folder / "state" / "sessions"
        self.sessions.mkdir(parents=True)
        self.kept: set[str] = set()
        """Folders of conversations that nobody runs."""
        self.leased = 0
        """Processes that somebody has beside the scene."""
        self.bound: set[tuple[int, int]] = set()
        self._fds = len(os.listdir("/proc/self/fd"))
        self._strangers = set(orphans.children_of(os.getpid()))
        """Children of this process that have nothing to do with it."""

    def has_opened(self, count: int) -> None:
        """The test has file descriptors of its own."""
        self._fds += count

    def conversation(self) -> Again:
        """One of an earlier run."""
        directory = SessionDirectory(self.sessions / f"kept-{len(self.kept)}", is_kept=True)
        directory.create()
        self.kept.add(directory.root.name)
        return Again(directory, "5e5510")

    def has_bound(self, lease: Lease) -> None:
        """Somebody has the process: for the first time, and it lives."""
        row = read_process(lease.process.pid)
        assert row is not None
        assert row.state != "Z"
        assert (row.pid, row.started) not in self.bound, "bound twice"
        self.bound.add((row.pid, row.started))

    def is_within_limits(self) -> None:
        """At any moment."""
        assert len(list(self.pool._slots)) <= self.pool.limit

    async def serve(self, *, times: int = 1) -> None:
        """The next tenants get processes, each one of its own."""
        choice = self.pool.choose(None, SpawnOptions())
        for _ in range(times):
            with anyio.fail_after(SETTLES_WITHIN_S):
                async with self.pool.lease(
                    choice, "next", self.config.limits, again=None, on_position=lambda _: None
                ) as lease:
                    self.has_bound(lease)
                    lease.process.write(b"{}\n")

    async def settled(self) -> None:
        """Until nobody has a process, nobody waits, the spares are there, and nothing is left of what was."""
        try:
            await eventually(lambda: not self.trouble(), SETTLES_WITHIN_S)
        except AssertionError:
            raise AssertionError(f"left behind: {self.trouble()}") from None

    def sweep(self) -> None:
        """Remove the folders that are nobody's."""
        folders = {child.launch.directory.root.name for child in self.pool._children.values() if child.launch}
        for name in set(os.listdir(self.sessions)) - folders - self.kept:
            SessionDirectory(self.sessions / name).wipe()

    def trouble(self) -> list[str]:
        """What is not as it should be between two scenes."""
        slots, children = list(self.pool._slots), self.pool._children
        pids = {child.process.pid for child in children.values() if child.process is not None}
        living = set(orphans.children_of(os.getpid())) - self._strangers
        folders = {child.launch.directory.root.name for child in children.values() if child.launch is not None}
        expected = Counter(warm=len(slots) - self.leased, leased=self.leased)
        # One that was started for somebody who left may be there, above the target.
        warm = {name: self.pool._slots.count(name, SlotState.WARM) for name in self.pool.profiles}
        wanted = {name: profile.warm for name, profile in self.pool.profiles.items()}
        checks: list[tuple[str, Any, Any]] = [
            ("slots", Counter(slot.state.value for slot in slots), expected),
            ("spares", {name: max(warm[name] - 1, min(warm[name], wanted[name])) for name in warm}, wanted),
            ("children of slots", set(children), {slot.id for slot in slots}),
            ("waiting", self.pool._slots.waiting, []),
            ("wishes", list(self.pool._room._wishes), []),
            ("processes", living, pids),
            ("awaited", orphans.awaited, pids),
            ("fds", len(os.listdir("/proc/self/fd")), self._fds + FDS_PER_CHILD * len(children)),
            ("folders", set(os.listdir(self.sessions)), folders | self.kept),
            ("binds", self.pool.bind_turns._free.value, 4),
        ]
        return [f"{name}: {found}, not {wanted}" for name, found, wanted in checks if found != wanted]


def small_cli(folder: Path) -> Cli:
    """The child of ``SMALL``."""
    return Cli((program(folder / "small", SMALL),), "0", simulated=False)


def configured(**sections: dict[str, Any]) -> Config:
    """Short graces; ``pool`` with one profile, whose ``warm`` stands among its keys."""
    pool = {"start_timeout_s": 20.0, **sections.pop("pool", {})}
    pool["profiles"] = {"default": {"warm": pool.pop("warm", 1)}}
    stop = {"eof_grace_s": 5.0, "term_grace_s": 1.0}
    return msgspec.convert({"pool": pool, "stop": stop, **sections}, Config)


@asynccontextmanager
async def stage(
    folder: Path, *, is_small: bool = True, pool_type: type[Pool] = Pool, registry_type: type[Registry] = Registry,
    **sections: dict[str, Any],
) -> AsyncIterator[Stage]:  # fmt: skip
    """Run a pool and a registry, the spares warm."""
    cli = small_cli(folder) if is_small else find_cli("simulated")
    found = Stage(folder, cli, configured(**sections), pool_type, registry_type)
    async with anyio.create_task_group() as pool_group:
        pool_group.start_soon(found.pool.run)
        async with anyio.create_task_group() as group:
            group.start_soon(found.registry.run)
            await eventually(lambda: found.registry._group)
            await found.settled()
            try:
                yield found
            finally:
                group.cancel_scope.cancel()
        pool_group.cancel_scope.cancel()
