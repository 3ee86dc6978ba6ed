"""``run``: one load, closed or open, against a running broker or one of its own.

Caller: ``bench.__main__``.  Closed (``--sessions``): a session sends its next message when the answer to the last one
is complete, so a slow broker is asked less.  Open (``--rate``): sessions arrive by a plan, and what is late counts from
the moment at which it was due: no stall hides behind the sessions that it kept from coming.
"""

import argparse

from bench.report import Report, Subject
from bench.traffic import script
from bench.traffic.meter import TITLES
from bench.traffic.plan import ARRIVALS, Plan
from bench.traffic.shape import Closed, Open, Shape, Timing, load, meter_of, with_warmup
from bench.traffic.target import target

NAME = "run"
SUMMARY = "one load, closed or open: connect, queue, welcome, first token, gaps, turns"
DESCRIPTION = """\
Closed: --sessions sockets, spread over --ramp seconds; each says hello and then --turns messages one after another, or
as many as --duration seconds allow.  Open: --rate sessions arrive in each of --duration seconds, whether or not the
broker keeps up; each says --turns messages and leaves; ttft counts from when it was due, ttft_service from when the
message was sent.  With --url against a broker that runs already, else against one of its own with the simulated CLI.
"""
SERIES = frozenset(TITLES)
TURNS = {"closed": 5, "open": 1}
DURATION_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    load_group = parser.add_argument_group("the load")
    how = load_group.add_mutually_exclusive_group()
    how.add_argument("--sessions", type=script.sessions, metavar="N", help="closed: at the same time (default 10)")
    how.add_argument("--rate", type=script.positive, metavar="R", help="open: sessions that arrive per second")
    load_group.add_argument("--turns", type=script.count, metavar="N",
                            help="messages of each session (default: 5 closed, 1 open)")  # fmt: skip
    load_group.add_argument("--duration", type=script.positive, metavar="S",
                            help=f"of the arrivals (default {DURATION_S:g}); closed: in place of --turns")  # fmt: skip
    load_group.add_argument("--arrival", choices=ARRIVALS, default="constant",
                            help="open: even distances or by chance (default %(default)s)")  # fmt: skip
    load_group.add_argument("--max-sessions", type=script.sessions, default=64, metavar="N",
                            help="open: at the same time; who finds no place waits (default %(default)s)")  # fmt: skip
    load_group.add_argument("--ramp", type=script.seconds, default=1.0, metavar="S",
                            help="closed: all have arrived after (default %(default)s)")  # fmt: skip
    script.add_arguments(parser)


def shape_of(arguments: argparse.Namespace) -> Shape:
    """From the flags."""
    if arguments.rate is not None:
        plan = Plan(arguments.rate, arguments.rate, arguments.duration or DURATION_S, arguments.arrival)
        return Open(with_warmup(plan, arguments.warmup), arguments.turns or TURNS["open"], arguments.max_sessions)
    turns = arguments.turns
    if turns is None and arguments.duration is None:
        turns = TURNS["closed"]
    return Closed(arguments.sessions or 10, arguments.ramp, turns, arguments.duration)


def run(arguments: argparse.Namespace) -> Report:
    """Load the broker.  Raises ``ChildFailed``; what fails for one session is counted, not raised."""
    report = Report(NAME, vars(arguments), arguments.seed, label=arguments.label)
    return report.measured(_measure, arguments, report)


async def _measure(arguments: argparse.Namespace, report: Report) -> None:
    shape = shape_of(arguments)
    timing = Timing(arguments.warmup, arguments.grace, arguments.progress)
    most = shape.most if isinstance(shape, Open) else shape.sessions
    async with target(arguments, most) as found:
        subject = Subject(found.name)
        report.subjects.append(subject)
        meter = meter_of(subject, shape, timing)
        await load(found.url, script.script_of(arguments), shape, timing, arguments.seed, meter)
        report.violations += found.gone()
        if isinstance(shape, Closed) and shape.turns is not None:
            subject.facts["turns completed"] = f"{meter.turns} of {shape.sessions * shape.turns}"
