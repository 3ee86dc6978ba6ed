"""``soak``: a load that lasts, a line for each interval, and whether the broker is as large afterwards as before.

Caller: ``bench.__main__``.
"""

import argparse
from typing import Any, Final

import anyio

from bench import vitals
from bench.children import ChildFailed
from bench.report import Report, Subject
from bench.traffic import script
from bench.traffic.meter import TITLES
from bench.traffic.shape import Closed, Timing, load, meter_of
from bench.traffic.target import Target, target
from bench.vitals import Vital

NAME: Final = "soak"
SUMMARY: Final = "a load that lasts, and what the broker holds before and after"
DESCRIPTION: Final = """\
--sessions stay for --duration seconds and speak again --think-time seconds after each answer.  Every --every seconds a
line tells of that interval.  Of a broker of its own it compares memory, descriptors, threads and tasks, at rest before
and after, and their slope under load.
"""
SERIES: Final = frozenset(TITLES)
LOOKS: Final = 10_000
"""That are kept."""
MEBIBYTE: Final = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    group = parser.add_argument_group("the load")
    group.add_argument("--sessions", type=script.sessions, default=10, metavar="N",
                       help="at the same time (default %(default)s)")  # fmt: skip
    group.add_argument("--duration", type=script.positive, default=3600.0, metavar="S", help="(default %(default)s)")
    group.add_argument("--every", type=script.positive, default=60.0, metavar="S",
                       help="between two lines (default %(default)s)")  # fmt: skip
    group.add_argument("--ramp", type=script.seconds, default=1.0, metavar="S",
                       help="all have arrived after (default %(default)s)")  # fmt: skip
    script.add_arguments(parser)
    parser.set_defaults(think_time=1.0)


def run(arguments: argparse.Namespace) -> Report:
    """Load the broker.  Raises ``ChildFailed`` when it does not start; what fails for one session is counted."""
    report = Report(NAME, vars(arguments), arguments.seed, label=arguments.label)
    return report.measured(_measure, arguments, report)


async def _measure(arguments: Any, report: Report) -> None:
    shape = Closed(arguments.sessions, arguments.ramp, None, arguments.duration)
    timing = Timing(arguments.warmup, arguments.grace, arguments.every)
    async with target(arguments, shape.sessions) as found:
        subject = Subject(found.name, shows_intervals=True)
        report.subjects.append(subject)
        meter = meter_of(subject, shape, timing)
        meter.interval_s = arguments.every
        size = _Size(found, arguments.every)
        try:
            await size.rest()
            await load(found.url, script.script_of(arguments), shape, timing, arguments.seed, meter, beside=size.watch)
            await size.rest()
        except ChildFailed as error:
            report.violations.append(str(error))
        finally:
            size.tell(subject)


class _Size:
    """What a broker of the bench's own holds; nothing of somebody else's."""

    def __init__(self, found: Target, every_s: float) -> None:
        self._target = found
        self._every_s = every_s
        self._rests: list[Vital] = []
        self._looks: list[Vital] = []
        self._missed = 0

    async def rest(self) -> None:
        """A look once the pool has settled.  Raises ``ChildFailed``, also when the broker has ended."""
        if self._target.broker is not None:
            await self._target.broker.wait_settled()
            await self._look(self._rests)

    async def watch(self) -> None:
        """A look in each interval, until cancelled."""
        while self._target.broker is not None and len(self._looks) < LOOKS:
            await anyio.sleep(self._every_s)
            await self._look(self._looks)

    async def _look(self, into: list[Vital]) -> None:
        broker, sessions = self._target.broker, self._target.sessions
        assert broker is not None
        assert sessions is not None
        try:
            into.append(await vitals.look(broker, 1, sessions))
        except OSError:
            # It may be too busy to answer within the deadline; whether it is there is judged at the end.
            self._missed += 1

    def tell(self, subject: Subject) -> None:
        """Into the facts."""
        if self._target.broker is None:
            return
        if len(self._rests) > 1:
            first, last = self._rests[0].rss / MEBIBYTE, self._rests[-1].rss / MEBIBYTE
            subject.facts["broker's memory at rest, before and after (MiB)"] = f"{first:.1f} -> {last:.1f}"
            subject.facts["broker at rest, before and after"] = vitals.at_rest(self._rests)
        if self._looks:
            subject.facts["broker under load, after a warm-up"] = vitals.shown(self._looks)
        if self._missed:
            subject.facts["looks that it did not answer"] = self._missed
        subject.details["vitals"] = vitals.raw([*self._rests, *self._looks])
