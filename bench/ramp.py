"""``ramp``: an open load whose rate moves in a line, and what the latency does meanwhile.

Caller: ``bench.__main__``.
"""

import argparse
from typing import Any, Final

from bench.report import Report, Subject
from bench.traffic import script
from bench.traffic.meter import TITLES
from bench.traffic.plan import ARRIVALS, Plan
from bench.traffic.shape import Open, Timing, load, meter_of
from bench.traffic.target import target

NAME: Final = "ramp"
SUMMARY: Final = "a rate that moves in a line, and the latency along it"
DESCRIPTION: Final = """\
Sessions arrive at a rate that moves from --from to --to per second over --over seconds; each says --turns messages and
leaves.  Prints the timeline beside the table: where the latency leaves the ground is how much the broker takes.
"""
SERIES: Final = frozenset(TITLES)
LINES: Final = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    group = parser.add_argument_group("the load")
    group.add_argument("--from", type=script.seconds, default=1.0, metavar="R",
                       help="sessions per second at the start (default %(default)s)")  # fmt: skip
    group.add_argument("--to", type=script.positive, default=20.0, metavar="R",
                       help="at the end (default %(default)s)")  # fmt: skip
    group.add_argument("--over", type=script.positive, default=30.0, metavar="S",
                       help="seconds (default %(default)s)")  # fmt: skip
    group.add_argument("--turns", type=script.count, default=1, metavar="N",
                       help="messages of each session (default %(default)s)")  # fmt: skip
    group.add_argument("--arrival", choices=ARRIVALS, default="constant",
                       help="even distances or by chance (default %(default)s)")  # fmt: skip
    group.add_argument("--max-sessions", type=script.sessions, default=64, metavar="N",
                       help="at the same time (default %(default)s)")  # fmt: skip
    script.add_arguments(parser)


def run(arguments: argparse.Namespace) -> Report:
    """Load the broker.  Raises ``ChildFailed``; what fails for one session is counted, not raised."""
    report = Report(NAME, vars(arguments), arguments.seed, label=arguments.label)
    return report.measured(_measure, arguments, report)


async def _measure(arguments: Any, report: Report) -> None:
    plan = Plan(vars(arguments)["from"], arguments.to, arguments.over, arguments.arrival)
    shape = Open(plan, arguments.turns, arguments.max_sessions)
    timing = Timing(arguments.warmup, arguments.grace, arguments.progress)
    async with target(arguments, shape.most) as found:
        subject = Subject(found.name, shows_intervals=True)
        report.subjects.append(subject)
        meter = meter_of(subject, shape, timing, LINES)
        await load(found.url, script.script_of(arguments), shape, timing, arguments.seed, meter)
        report.violations += found.gone()
