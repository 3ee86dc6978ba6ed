"""``spawn-stall``: for how long the event loop stands still while processes start, in a large broker on one core.

Caller: ``bench.__main__``.  The pool runs in this very program, which holds as much memory as it is told and stays on
one core; the processes that it starts run on the others.  A spawn that forks would copy the page table of all that
memory, and the loop would stand still meanwhile.
"""

import argparse
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import anyio

from bench import clis
from bench.bounds import Bound
from bench.broker_process import PROFILE, Setup
from bench.children import ChildFailed
from bench.clock import now
from bench.report import Report, Subject
from bench.samples import Samples
from broker.config.settings import Settings
from broker.config.tree import Config, load
from broker.metrics import Metrics
from broker.pool.pool import Pool
from broker.processes.isolation import Isolation
from broker.processes.launcher import Launcher

NAME: Final = "spawn-stall"
SUMMARY: Final = "how long the event loop stands still while processes start"
DESCRIPTION: Final = """\
Rounds in turn: the loop alone for --seconds, then the loop while the pool starts --processes processes of the
simulated CLI.  In each the worst delay of what is due every millisecond counts.  Needs two cores and taskset.
"""
TITLES: Final = {
    "alone": "worst delay of a round without spawns",
    "spawning": "worst delay of a round with them",
    "excess": "the difference, where there is one",
}
SERIES: Final = frozenset(TITLES)
TARGETS: Final = ("excess_p50<=5ms",)
PERIOD_S: Final = 0.001
DEADLINE_S: Final = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    parser.add_argument("--processes", type=int, default=50, metavar="N", help="in a round (default %(default)s)")
    parser.add_argument("--at-once", type=int, default=50, metavar="N",
                        help="pool.spawn_concurrency (default %(default)s)")  # fmt: skip
    parser.add_argument("--resident", type=int, default=1024, metavar="MIB",
                        help="memory that this program holds (default %(default)s)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(default %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S",
                        help="of a round without spawns (default %(default)s)")  # fmt: skip


def run(arguments: argparse.Namespace) -> Report:
    """Measure.  Raises ``ChildFailed`` when there is no second core, or the processes do not come up."""
    report = Report(NAME, vars(arguments), arguments.seed)
    cores = sorted(os.sched_getaffinity(0))
    taskset = shutil.which("taskset")
    if len(cores) < 2 or taskset is None:
        raise ChildFailed("spawn-stall needs two cores, and taskset (util-linux)")
    ballast = bytearray(os.urandom(4096) * (arguments.resident * 256))
    os.sched_setaffinity(0, cores[:1])
    try:
        elsewhere = (taskset, "-c", ",".join(map(str, cores[1:])))
        options = {"use_uvloop": find_spec("uvloop") is not None}
        subject = anyio.run(_measure, arguments, elsewhere, backend_options=options)
    finally:
        os.sched_setaffinity(0, cores)
    subject.facts["resident MiB of ballast"] = len(ballast) // 2**20
    report.subjects.append(subject)
    return report


async def _measure(arguments: Any, elsewhere: tuple[str, ...]) -> Subject:
    choice = clis.choice("simulated")
    subject = Subject(choice.name, targets=[Bound.parse(text) for text in TARGETS])
    for name, title in TITLES.items():
        subject.open_series(name, title)
    for _ in range(arguments.rounds):
        alone = await _worst(lambda: anyio.sleep(arguments.seconds))
        async with _pool(choice, elsewhere, arguments.processes, arguments.at_once) as wait_warm:
            spawning = await _worst(wait_warm)
        subject.series["alone"].add(alone)
        subject.series["spawning"].add(spawning)
        subject.series["excess"].add(max(0.0, spawning - alone))
    return subject


@dataclass(frozen=True, slots=True)
class _Elsewhere(Isolation):
    """Processes that leave this program's core before they do anything."""

    command: tuple[str, ...] = ()

    def prefix(self, root: Path, user: int | None) -> tuple[str, ...]:
        return (*self.command, *Isolation.prefix(self, root, user))


@asynccontextmanager
async def _pool(
    choice: clis.Choice, elsewhere: tuple[str, ...], count: int, at_once: int
) -> AsyncIterator[Callable[[], Any]]:
    """A pool that is to hold ``count`` spares; what is yielded runs it until they are warm.  They end with the block.

    Raises ``ChildFailed`` when they are not warm within ``DEADLINE_S``.
    """
    with TemporaryDirectory(prefix="bench-spawn-") as folder:
        config = _config(choice, Path(folder), count, at_once)
        launcher = Launcher(choice.found, Path(config.state.dir), config.cli.env)
        launcher.claim_directory()
        launcher.sweep_directories(None)
        launcher.prepare(config)
        launcher.isolation = _Elsewhere("none", launcher.isolation.state, command=elsewhere)
        pool = Pool(Settings(config), launcher, Metrics())
        async with anyio.create_task_group() as group:

            async def wait_warm() -> None:
                group.start_soon(pool.run)
                deadline = now() + DEADLINE_S
                while pool.statistics().get(PROFILE, {}).get("warm", 0) < count:
                    if now() > deadline:
                        raise ChildFailed(f"not warm within {DEADLINE_S:g} s: {pool.statistics()}")
                    await anyio.sleep(0.05)

            yield wait_warm
            group.cancel_scope.cancel()


def _config(choice: clis.Choice, folder: Path, count: int, at_once: int) -> Config:
    file = folder / "broker.toml"
    setup = Setup(choice.setting, warm=count, processes=count, pool=f"spawn_concurrency = {at_once}")
    file.write_text(setup.toml(folder / "state"))
    return load(file, {}, {})


async def _worst(during: Callable[[], Any]) -> float:
    """The worst delay, in seconds, of what is due every ``PERIOD_S`` while ``during`` runs."""
    delays = Samples([0.0])

    async def watch() -> None:
        while True:
            due = now() + PERIOD_S
            await anyio.sleep(PERIOD_S)
            delays.add(now() - due)

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await during()
        group.cancel_scope.cancel()
    return delays.statistic("max")
