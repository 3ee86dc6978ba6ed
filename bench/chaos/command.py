"""``chaos``: tenants who talk while connections, CLIs and the broker itself fail, and nothing may be lost or repeated.

Caller: ``bench.__main__``.  See ``bench.chaos`` for the parts.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import anyio

from bench import clis, vitals
from bench.chaos import plan
from bench.chaos.checker import Checker
from bench.chaos.plan import Deed
from bench.chaos.violations import Kind, Violations
from bench.chaos.world import IDLE_THREADS, Scale, World
from bench.load import GENERATOR_LAG, Load
from bench.report import Report, Subject
from bench.samples import Samples

NAME: Final = "chaos"
SUMMARY: Final = "tenants who talk while everything fails: nothing lost, nothing twice, everything told"
DESCRIPTION: Final = """\
For --seconds, --tenants talk over connections that are cut, slowed, silenced and stalled, to a broker whose CLIs are
killed, that is itself killed and started again, and told to read its configuration again.  Every frame that they get is
held against what the CLIs wrote down.  Prints what happened and exits 1 when anything is amiss.  The same seed is the
same plan; how far it gets depends on the machine.
"""
TITLES: Final = {
    "welcome": "connect -> welcome, of first and of resumed connections",
    "ttft": "message -> first delta, of undisturbed messages",
    "turn": "message -> its end, of undisturbed messages",
    GENERATOR_LAG: "lag of this program's own loop",
}
SERIES: Final = frozenset(TITLES)
RSS_GROWTH: Final = 4.0
"""MiB, from the least memory in the first third to that in the last one, above what remembered ids account for."""
ID_BYTES: Final = 270
"""What a session keeps of a message that has ended, for its last 1,024 (measured); counted from third to third."""
LATENCY_GROWTH: Final = 1.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="(default %(default)s)")
    parser.add_argument("--tenants", type=int, default=10, metavar="N", help="(default %(default)s)")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="pool.max_processes (default: two for three tenants)"
    )
    parser.add_argument("--kill-every", type=float, default=10.0, metavar="S",
                        help="SIGKILL to one CLI, 0 for none (default %(default)s)")  # fmt: skip
    parser.add_argument("--restart-every", type=float, default=60.0, metavar="S",
                        help="SIGKILL to the broker, 0 for none (default %(default)s)")  # fmt: skip
    parser.add_argument("--reload-every", type=float, default=7.0, metavar="S",
                        help="SIGHUP with a changed configuration, 0 for none (default %(default)s)")  # fmt: skip
    parser.add_argument("--starve", type=int, default=0, metavar="N",
                        help="busy loops beside it, as many as cores to starve it (default %(default)s)")  # fmt: skip
    parser.add_argument("--keep", type=_empty_folder, metavar="DIR",
                        help="the broker's log, state and ledger stay there; a new or empty directory")  # fmt: skip
    parser.add_argument("--flat", action="store_true",
                        help="growth of memory, descriptors, tasks or latency is a violation, too")  # fmt: skip


def _empty_folder(text: str) -> Path:
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise argparse.ArgumentTypeError(f"{text} is not empty")
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return folder.resolve()


def run(arguments: argparse.Namespace) -> Report:
    """Load the broker.  Raises ``ChildFailed`` when a broker does not start; what is amiss is in the report."""
    report = Report(NAME, vars(arguments), arguments.seed)
    subject, violations = anyio.run(_measure, arguments)
    report.subjects.append(subject)
    report.violations += [f"{kind.value}: {count}" for kind, count in sorted(violations.counts.items())]
    report.violations += map(str, violations.kept)
    return report


async def _measure(arguments: Any) -> tuple[Subject, Violations]:
    choice = clis.choice("simulated")
    subject = Subject(choice.name)
    load = Load(subject, TITLES)
    every = {
        Deed.KILL_CLI: arguments.kill_every,
        Deed.RESTART: arguments.restart_every,
        Deed.RELOAD: arguments.reload_every,
    }
    tenants, seed, seconds = arguments.tenants, arguments.seed, arguments.seconds
    timeline = plan.events(seed, seconds, every)
    scale = Scale(tenants, arguments.processes or max(2, tenants * 2 // 3), seconds, seed, timeline, arguments.starve)
    checker = Checker({f"t{number}": plan.canary(seed, number) for number in range(tenants)})
    with TemporaryDirectory(prefix="bench-chaos-") if arguments.keep is None else nullcontext(arguments.keep) as folder:
        world = World(Path(folder), scale, choice.setting, checker, load)
        await world.run()
    violations = checker.finish()
    flatness = vitals.shown(world.vitals)
    growth = _growth(load.series["ttft"])
    subject.facts |= {
        "plan": plan.fingerprint(seed, tenants, timeline),
        "happened": dict(sorted(checker.counts.items())),
        "broker after its warm-up": flatness,
        "at rest, before and after": vitals.at_rest(world.at_rest),
        "ttft p99, last third by first third": round(growth, 2),
        "violations": sum(violations.counts.values()),
    }
    subject.details["vitals"] = vitals.raw(world.vitals)
    if arguments.flat:
        remembered = checker.counts["messages accepted"] * 2 / 3 * ID_BYTES / vitals.MEBIBYTE
        judge_flatness(violations, world.at_rest, vitals.floors(world.vitals), remembered, growth)
    return subject, violations


def _growth(samples: Samples) -> float:
    """p99 of the last third of the samples by that of the first third; 0.0 with fewer than 100 of each."""
    third = len(samples) // 3
    if third < 100:
        return 0.0
    return Samples(samples.values[-third:]).percentile(99) / Samples(samples.values[:third]).percentile(99)


def judge_flatness(
    violations: Violations, at_rest: list[vitals.Vital], floors: list[float], remembered: float, growth: float
) -> None:
    """What ``--flat`` asks: no growth of memory, of latency, of what a broker at rest holds.

    ``floors``: the least memory by thirds, MiB; ``remembered``: what the ids of messages may have added, MiB.
    """
    if floors and (grown := floors[-1] - floors[0] - remembered) > RSS_GROWTH:
        violations.add(Kind.DRIFT, "broker", f"memory grew by {grown:.1f} MiB that no remembered id accounts for")
    if growth > LATENCY_GROWTH:
        violations.add(Kind.DRIFT, "broker", f"p99 of the last third is {growth:.2f} of the first third's")
    first, last = at_rest[0], at_rest[-1]
    if first.generation == last.generation:
        # One task for each conversation that is remembered; an idle thread ends when the next one is asked for.
        allowed = {"fds": 0, "threads": IDLE_THREADS, "children": 0, "tasks": last.folders - first.folders}
        for name, more in allowed.items():
            if getattr(last, name) > getattr(first, name) + more:
                told = f"{name}: {getattr(first, name)} before the first tenant, {getattr(last, name)} after the last"
                violations.add(Kind.DRIFT, "broker", told)
