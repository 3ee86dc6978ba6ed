"""``sweep``: one load after another, each larger, to the knee: the largest at which the bounds hold.

Caller: ``bench.__main__``.
"""

import argparse
from typing import Any, Final

import anyio

from bench.bounds import Bound
from bench.knee import Curve, Point, judged
from bench.report import Report, Subject
from bench.traffic import script
from bench.traffic.meter import TITLES
from bench.traffic.plan import ARRIVALS, Plan
from bench.traffic.shape import Closed, Open, Shape, Timing, load, meter_of, with_warmup
from bench.traffic.target import Target, target
from bench.traffic.values import values_of

NAME: Final = "sweep"
SUMMARY: Final = "one load after another to the knee: the largest at which the bounds hold"
DESCRIPTION: Final = """\
Runs an open load for each of --rates, or a closed one for each of --sessions, from the smallest on, and finds the
largest at which every --assert holds and at most --max-failed of the messages fail.  Exits 99 when there is none.  It
ends after --past values in a row at which they do not hold.  A list is 5,10,20 or 10..100:10.
"""
SERIES: Final = frozenset(TITLES)
DEFAULT_BOUND: Final = "ttft_p95<2s"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    group = parser.add_argument_group("the loads")
    how = group.add_mutually_exclusive_group(required=True)
    how.add_argument("--rates", type=_values, metavar="LIST", help="open: sessions that arrive per second")
    how.add_argument("--sessions", type=_whole_values, metavar="LIST", help="closed: at the same time")
    group.add_argument("--duration", type=script.positive, default=10.0, metavar="S",
                       help="of each (default %(default)s)")  # fmt: skip
    group.add_argument("--turns", type=script.count, default=1, metavar="N",
                       help="open: messages of each session (default %(default)s)")  # fmt: skip
    group.add_argument("--arrival", choices=ARRIVALS, default="constant",
                       help="open: even distances or by chance (default %(default)s)")  # fmt: skip
    group.add_argument("--max-sessions", type=script.sessions, default=64, metavar="N",
                       help="open: at the same time (default %(default)s)")  # fmt: skip
    group.add_argument("--pause", type=script.seconds, default=1.0, metavar="S",
                       help="between two loads (default %(default)s)")  # fmt: skip
    group.add_argument("--max-failed", type=script.seconds, default=1.0, metavar="PERCENT",
                       help="of the messages (default %(default)s)")  # fmt: skip
    group.add_argument("--past", type=script.count, default=2, metavar="N",
                       help="loads beyond the knee before it ends (default %(default)s)")  # fmt: skip
    script.add_arguments(parser)


def _values(text: str) -> list[float]:
    try:
        return values_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _whole_values(text: str) -> list[float]:
    values = _values(text)
    if any(value != int(value) or value > script.MOST_SESSIONS for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers, at most {script.MOST_SESSIONS}")
    return values


def run(arguments: argparse.Namespace) -> Report:
    """All loads.  Raises ``ChildFailed``; what fails for one session is counted, not raised."""
    bounds = arguments.assertions or [Bound.parse(DEFAULT_BOUND)]
    parameter = "sessions per second" if arguments.rates is not None else "sessions"
    curve = Curve(parameter, [str(bound) for bound in bounds])
    report = Report(NAME, vars(arguments), arguments.seed, label=arguments.label, curve=curve)
    return report.measured(_measure, arguments, report, curve, bounds)


async def _measure(arguments: Any, report: Report, curve: Curve, bounds: list[Bound]) -> None:
    values = arguments.rates or arguments.sessions
    most = arguments.max_sessions if arguments.rates is not None else int(values[-1])
    said = script.script_of(arguments)
    async with target(arguments, most) as found:
        for number, value in enumerate(values):
            if number:
                await _rest(found, arguments.pause)
            curve.points.append(await _point(arguments, report, found, said, value, bounds))
            if gone := found.gone():
                report.violations += gone
                return
            tail = curve.points[-arguments.past :]
            if len(tail) == arguments.past and not any(point.holds for point in tail):
                return


async def _rest(found: Target, pause_s: float) -> None:
    await anyio.sleep(pause_s)
    if found.broker is not None:
        await found.broker.wait_settled()


async def _point(
    arguments: Any, report: Report, found: Target, said: script.Script, value: float, bounds: list[Bound]
) -> Point:
    subject = Subject(f"{found.name}, {report.curve.parameter if report.curve else ''} {value:g}")
    shape: Shape
    if arguments.rates is not None:
        plan = Plan(value, value, arguments.duration, arguments.arrival)
        shape = Open(with_warmup(plan, arguments.warmup), arguments.turns, arguments.max_sessions)
    else:
        shape = Closed(int(value), min(1.0, arguments.duration / 10), None, arguments.duration)
    timing = Timing(arguments.warmup, arguments.grace, arguments.progress)
    meter = meter_of(subject, shape, timing)
    report.subjects.append(subject)
    await load(found.url, said, shape, timing, arguments.seed, meter, f"[{value:g}]")
    return judged(
        value, subject, meter.failed_share(), float(subject.facts["turns per second"]), bounds,
        arguments.max_failed / 100, meter.waited,
    )  # fmt: skip
