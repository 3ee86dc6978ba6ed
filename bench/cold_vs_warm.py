"""``cold-vs-warm``: how long a tenant waits for a bound process, and for the first token, with spares and without.

Caller: ``bench.__main__``.
"""

import argparse
from typing import Final

import anyio

from bench import clis, real_series, simulated_series
from bench.plan import Plan
from bench.report import Report, Subject

NAME: Final = "cold-vs-warm"
SUMMARY: Final = "warm and cold starts: hello -> welcome, hello -> first delta"
DESCRIPTION: Final = """\
Starts a broker with spares and one without, lets tenants arrive one by one and many at once, and prints p50, p95, p99
and the maximum of every step, with its target.  The real CLI runs in a network namespace that has only loopback,
against simulator.messages_api; without --cli real nothing but the simulator is started.
"""
SERIES: Final = frozenset(real_series.TITLES) | frozenset(simulated_series.TITLES)
REAL: Final = {"n": 30, "interval": 3.0, "tenants": 8, "rounds": 3}
SIMULATED: Final = {"n": 200, "interval": 0.02, "tenants": 50, "rounds": 5}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    clis.add_arguments(parser)
    both = {name: f"(default {REAL[name]:g} real, {SIMULATED[name]:g} simulated)" for name in REAL}
    parser.add_argument("--n", type=int, metavar="N", help=f"single warm arrivals {both['n']}")
    parser.add_argument("--interval", type=float, metavar="S", help=f"seconds between them {both['interval']}")
    parser.add_argument("--tenants", type=int, metavar="N", help=f"arrivals at once {both['tenants']}")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"how often at once {both['rounds']}")
    parser.add_argument("--cold", type=int, default=10, metavar="N", help="single cold arrivals (default %(default)s)")
    parser.add_argument("--quiet", type=float, default=20.0, metavar="S",
                        help="longest wait for a quiet machine before each (default %(default)s)")  # fmt: skip


def run(arguments: argparse.Namespace) -> Report:
    """Measure every chosen CLI.  Raises ``CliMissing`` and what the series raise."""
    report = Report(NAME, vars(arguments), arguments.seed)
    for choice in clis.choices(arguments):
        report.subjects.append(anyio.run(_measure, choice, _plan(arguments, choice)))
    return report


async def _measure(choice: clis.Choice, plan: Plan) -> Subject:
    measure = simulated_series.measure if choice.found.simulated else real_series.measure
    return await measure(choice, plan)


def _plan(arguments: argparse.Namespace, choice: clis.Choice) -> Plan:
    defaults = SIMULATED if choice.found.simulated else REAL
    given = {name: getattr(arguments, name) for name in defaults}
    chosen = {name: default if given[name] is None else given[name] for name, default in defaults.items()}
    return Plan(
        n=int(chosen["n"]),
        interval_s=float(chosen["interval"]),
        tenants=int(chosen["tenants"]),
        rounds=int(chosen["rounds"]),
        colds=arguments.cold,
        quiet_s=arguments.quiet,
        seed=arguments.seed,
    )
