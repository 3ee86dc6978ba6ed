"""``peers``: the broker beside websocketd, a plain script and bare pipes, in one run.

Caller: ``bench.__main__``.  See ``bench.peers`` for the parts.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple, TypeVar

import anyio
import msgspec

from bench import clis
from bench.children import ChildFailed
from bench.peers import judgement
from bench.peers.figures import Figures, bound_by, figures, medians
from bench.peers.job import Measured
from bench.peers.order import Step, steps
from bench.peers.receiver import receive
from bench.peers.scenario import FULL, QUICK, Load, Scenario, Sizes, loads
from bench.peers.subject import Subject, missing, started
from bench.peers.tables import ratio_table, tables
from bench.report import Report
from bench.traffic import script
from bench.traffic.descriptors import make_room
from broker.processes.program import Cli

NAME: Final = "peers"
SUMMARY: Final = "the broker beside websocketd, a plain script and bare pipes, in one run"
DESCRIPTION: Final = """\
Puts the same simulated CLI with the same output behind each of these, and measures them in turns, round by round:

  direct      pipes, no server: the floor
  websocketd  the Go program (Debian package websocketd)
  plain       websockets.serve and asyncio.create_subprocess_exec, one send per line (bench/peers/plain_script.py)
  broker      this broker, with seq, replay, time to first token and metrics on
  limit       paced only: an epoll program in C that frames each read and writes it at once (bench/peers/limit.c)

  burst       one session, --lines lines of 250-350 bytes as fast as they go: CPU per frame, frames per second
  paced       --sessions sessions with --rate frames/s each: CPU per frame, latency and what is added to direct's
  latency     the same of one stream with 200 frames/s
  connect     --connects connections, one after another, a message sent at once: to the first frame (the broker's is its
              welcome: the process is bound), to the CLI's own first, to the first delta; warm against fork and exec
  memory      growth of the server per connection after a turn (--held), and of the broker per idle socket (--sockets)
  spread      2,000 frames/s in all over each of --spread sessions, broker only
  handshakes  accepted, authenticated and attached without a process per second, broker only

CPU is that of the server process alone, without its children, by the kernel's own clock.  Every frame is counted by a
receiver in a process of its own; a line carries the moment of its write.  `bound by` names what else than the server
the figures may be of.  Ratios are made within a round; the median of the rounds is told.
"""
SERIES: Final = judgement.NAMES
DESCRIPTORS: Final = 5
"""Of the broker for one session; it inherits the limit."""
Key = tuple[str, Subject]
Choice = TypeVar("Choice", Scenario, Subject)


class Result(NamedTuple):
    """One step and what came of it."""

    step: Step
    measured: Measured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    parser.add_argument("--scenario", type=_some(Scenario), default=list(Scenario), metavar="A,B",
                        help=f"of {', '.join(Scenario)} (default: all)")  # fmt: skip
    parser.add_argument("--peer", type=_some(Subject), default=list(Subject), metavar="A,B",
                        help=f"of {', '.join(Subject)} (default: all that this machine has)")  # fmt: skip
    parser.add_argument("--rounds", type=script.count, metavar="N", help="(default 3, with --quick 1)")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, one round: within a minute, for a first look"
    )
    for name, text in (
        ("lines", "of the burst"), ("sessions", "of the paced load"), ("connects", "connections, one after another"),
        ("held", "connections held open"), ("sockets", "idle sockets"), ("handshakes", "in all"),
    ):  # fmt: skip
        default = f"(default {getattr(FULL, name)}, with --quick {getattr(QUICK, name)})"
        parser.add_argument(f"--{name}", type=script.count, metavar="N", help=f"{text} {default}")
    parser.add_argument("--rate", type=script.positive, metavar="N",
                        help=f"frames per second of each paced session (default {FULL.rate:g})")  # fmt: skip
    default = f"(default {FULL.seconds:g}, with --quick {QUICK.seconds:g})"
    parser.add_argument("--seconds", type=script.positive, metavar="S", help=f"window of paced loads {default}")
    full, quick = (",".join(map(str, sizes.spread)) for sizes in (FULL, QUICK))
    parser.add_argument("--spread", type=_counts, metavar="N,N",
                        help=f"sessions of the spread (default {full}, with --quick {quick})")  # fmt: skip


def run(arguments: argparse.Namespace) -> Report:
    """Measure.  What failed is in the report, beside what did not.  Raises ``OSError``, ``CliMissing``."""
    report = Report(NAME, vars(arguments), arguments.seed)
    sizes = sizes_of(arguments)
    reasons = {subject: missing(subject) for subject in arguments.peer}
    subjects = [subject for subject, reason in reasons.items() if reason is None]
    report.notes += [f"{subject.value} is left out: {reason}" for subject, reason in reasons.items() if reason]
    rows = loads(sizes, arguments.scenario)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    cli = clis.choice("simulated").found
    plan = list(steps(rows, subjects, rounds, arguments.seed))
    make_room(max(max(row.sessions, DESCRIPTORS * row.processes) for row in rows))
    results = anyio.run(_measure, plan, cli, sizes, report)
    _conclude(report, rows, results)
    report.targets = judgement.targets((row.name for row in rows), subjects)
    return report


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    """Full or quick, with what the flags say."""
    base = QUICK if arguments.quick else FULL
    names = [field.name for field in fields(Sizes)]
    given = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    return replace(base, **given)


async def _measure(plan: list[Step], cli: Cli, sizes: Sizes, report: Report) -> list[Result]:
    results: list[Result] = []
    with TemporaryDirectory(prefix="bench-peers-") as folder:
        for number, step in enumerate(plan, 1):
            print(f"{number}/{len(plan)}  {step.load.name}  {step.subject.value}", file=sys.stderr, flush=True)
            try:
                async with started(step.subject, cli, step.load.processes, Path(folder)) as target:
                    measured = await receive(step.load.job(step.subject, target, sizes), Path(folder))
                results.append(Result(step, measured))
            except ChildFailed as error:
                report.violations.append(f"{step.load.name} {step.subject.value}: {error}")
    return results


def _conclude(report: Report, rows: list[Load], results: list[Result]) -> None:
    """Figures, ratios, tables; and what a machine shall read of it."""
    floors = {(one.step.round, one.step.load.name): one.measured
              for one in results if one.step.subject is Subject.DIRECT}  # fmt: skip
    rounds: defaultdict[Key, list[Figures]] = defaultdict(list)
    raw: defaultdict[Key, list[Measured]] = defaultdict(list)
    bounds: defaultdict[Key, dict[str, None]] = defaultdict(dict)
    for (number, load, subject), measured in results:
        key = load.name, subject
        raw[key].append(measured)
        rounds[key].append(figures(load.kind, measured, floors.get((number, load.name))))
        bounds[key] |= dict.fromkeys(bound_by(load.kind, measured))
    middle = {key: medians(found) for key, found in rounds.items()}
    report.tables += tables(rows, middle, {key: list(found) for key, found in bounds.items()})
    report.ratios |= judgement.ratios(rounds)
    if (compared := ratio_table(report.ratios)) is not None:
        report.tables.append(compared)
    report.figures |= _for_file(middle, rounds, raw, bounds)


def _for_file(
    middle: Mapping[Key, Figures],
    rounds: Mapping[Key, list[Figures]],
    raw: Mapping[Key, list[Measured]],
    bounds: Mapping[Key, Mapping[str, None]],
) -> dict[str, Any]:
    found: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for (load, subject), figure in middle.items():
        key = load, subject
        found[load][subject.value] = {
            "median": figure, "rounds": rounds[key], "measured": msgspec.to_builtins(raw[key]),
            "bound_by": list(bounds[key]),
        }  # fmt: skip
    return dict(found)


def _some(kind: type[Choice]) -> Callable[[str], list[Choice]]:
    def convert(text: str) -> list[Choice]:
        try:
            return [kind(word) for word in text.split(",")]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}; there are {', '.join(kind)}") from error

    return convert


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(script.count(word)) for word in text.split(",")}))
