"""``idle``: what a process costs that waits, as a spare and between two turns.

Caller: ``bench.__main__``.  What is counted is the kernel's: voluntary context switches of all threads are wakes, user
and system time is its share of a core.
"""

import argparse
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from bench import clis, direct
from bench.api_process import api
from bench.arrivals import TEXT, options_of
from bench.clock import now
from bench.report import Report, Subject

NAME: Final = "idle"
SUMMARY: Final = "what a process costs that waits: wakes per second, share of a core, memory"
DESCRIPTION: Final = """\
Starts the CLI without a broker, leaves it alone for --settle seconds and watches it for --seconds, first as a spare and
then, with its credential, after one turn.
"""
SERIES: Final[frozenset[str]] = frozenset()
_SWITCHES: Final = re.compile(r"^voluntary_ctxt_switches:\s*(\d+)", re.MULTILINE)
_PRIVATE: Final = re.compile(r"^Private_(?:Clean|Dirty):\s*(\d+) kB", re.MULTILINE)
_MB: Final = 2**20


@dataclass(frozen=True)
class Snapshot:
    """One look at a process."""

    at: float
    wakes: int
    cpu_s: float
    threads: int
    resident_bytes: int
    private_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    clis.add_arguments(parser, default="real")
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S", help="watched (default %(default)s)")
    parser.add_argument("--settle", type=float, default=10.0, metavar="S", help="alone before (default %(default)s)")


def run(arguments: argparse.Namespace) -> Report:
    """Watch every chosen CLI.  Raises ``CliMissing``, ``ChildFailed``, ``DirectFailed``."""
    report = Report(NAME, vars(arguments), arguments.seed)
    for choice in clis.choices(arguments):
        report.subjects.append(anyio.run(_measure, choice, arguments.seconds, arguments.settle))
    return report


async def _measure(choice: clis.Choice, seconds: float, settle_s: float) -> Subject:
    async with api() as stand_in:
        return await anyio.to_thread.run_sync(_watch, choice, stand_in.url, seconds, settle_s)


def _watch(choice: clis.Choice, url: str, seconds: float, settle_s: float) -> Subject:
    subject = Subject(choice.name)
    options = options_of(1)()
    with direct.started(choice.found, str(options["model"]), {"ANTHROPIC_BASE_URL": url}) as process:
        process.wait_ready()
        subject.facts["as a spare"] = _waiting(process.pid, seconds, settle_s)
        process.bind(options)
        process.say(TEXT)
        process.wait(b'"type":"result"')
        subject.facts["after a turn"] = _waiting(process.pid, seconds, settle_s)
    return subject


def _waiting(pid: int, seconds: float, settle_s: float) -> dict[str, float]:
    time.sleep(settle_s)
    before = look(pid)
    time.sleep(seconds)
    return cost(before, look(pid))


def look(pid: int) -> Snapshot:
    """What the kernel counts of a process now; threads that end between two looks take their wakes with them."""
    tasks = [(path / "status").read_text() for path in Path(f"/proc/{pid}/task").iterdir()]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    private = _PRIVATE.findall(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return Snapshot(
        at=now(),
        wakes=sum(int(found[1]) for found in map(_SWITCHES.search, tasks) if found is not None),
        cpu_s=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        threads=len(tasks),
        resident_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        private_bytes=sum(map(int, private)) * 1024,
    )


def cost(before: Snapshot, after: Snapshot) -> dict[str, float]:
    """The difference of two looks, per second."""
    took = after.at - before.at
    return {
        "wakes/s": round((after.wakes - before.wakes) / took, 1),
        "% of a core": round(100 * (after.cpu_s - before.cpu_s) / took, 2),
        "threads": after.threads,
        "resident MB": round(after.resident_bytes / _MB),
        "private MB": round(after.private_bytes / _MB),
    }
