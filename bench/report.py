"""What a run hands back: a table for the person, a file for the machine.

Callers: every sub-command returns a ``Report``; ``bench.__main__`` prints it, writes it and checks the assertions.
"""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from bench.bounds import Bound
from bench.clock import load_average
from bench.ratios import RatioBound
from bench.samples import COLUMNS, Samples
from bench.table import milliseconds, table
from broker import __version__

SCHEMA: Final = 1
SHORT: Final = 4
"""A fact of more values than this is a table of its own."""
LIBRARIES: Final = ("websockets", "anyio", "msgspec", "structlog", "uvloop")


@dataclass
class Subject:
    """Everything measured of one program under test, for example one version of the CLI."""

    name: str
    series: dict[str, Samples] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    """What each series is, in words, for the table."""
    targets: list[Bound] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """Single values beside the series: health of the generator, failures, shares."""
    details: dict[str, Any] = field(default_factory=dict)
    """For the result file alone."""

    def open_series(self, name: str, title: str) -> Samples:
        """The samples of ``name``, made at its first mention; ``title`` is for the table."""
        self.titles.setdefault(name, title)
        return self.series.setdefault(name, Samples())

    def shown(self) -> dict[str, Any]:
        """The subject as the result file holds it."""
        targets = [{"bound": str(bound), "holds": bound.holds(self.series)} for bound in self.targets]
        return {
            "name": self.name,
            "series": {name: samples.shown() for name, samples in self.series.items()},
            "targets": targets,
            "facts": self.facts,
            "details": self.details,
        }


@dataclass
class Report:
    """One run of one sub-command."""

    bench: str
    flags: Mapping[str, Any]
    seed: int
    subjects: list[Subject] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    """What must not be, one line each; the run then exits 1."""
    tables: list[str] = field(default_factory=list)
    """Tables of the command's own, with their titles."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What they are made of, for the result file."""
    ratios: dict[str, float] = field(default_factory=dict)
    """By the names that assertions use."""
    targets: list[RatioBound] = field(default_factory=list)
    """What the ratios are held against."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know: what was left out, and why."""
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    load_before: list[float] = field(default_factory=load_average)

    def text(self) -> str:
        """The tables, the targets and the facts."""
        parts = [f"{self.bench}  {self.started}  {machine_line()}  load {self.load_before[0]} -> {load_average()[0]}"]
        for subject in self.subjects:
            parts.append(f"\n{subject.name} (milliseconds)")
            rows = [_row(name, subject) for name in subject.series]
            parts.append(table(("series", "what", "n", *COLUMNS), rows))
            parts += [f"  target {bound.verdict(subject.series)}" for bound in subject.targets]
            parts += [_fact(name, value) for name, value in subject.facts.items()]
        parts += self.tables
        parts += [f"  target {target.verdict(self.ratios)}" for target in self.targets]
        parts += [f"  note: {line}" for line in self.notes]
        parts += [f"  VIOLATION {line}" for line in self.violations]
        return "\n".join(parts)

    def write(self, path: Path) -> None:
        """The result file; whole or not at all.  Raises ``OSError``."""
        document = {
            "schema": SCHEMA,
            "bench": self.bench,
            "started": self.started,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": [Path(sys.executable).name, "-m", "bench", *sys.argv[1:]],
            "flags": {name: _plain(value) for name, value in self.flags.items()},
            "seed": self.seed,
            "host": {**host(), "load_before": self.load_before, "load_after": load_average()},
            "versions": versions(),
            "violations": self.violations,
            "subjects": [subject.shown() for subject in self.subjects],
            "figures": self.figures,
            "ratios": self.ratios,
            "targets": [{"bound": str(target), "holds": target.holds(self.ratios)} for target in self.targets],
            "notes": self.notes,
        }
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(document, indent=1) + "\n")
        part.replace(path)

    def failed(self, assertions: Sequence[Bound | RatioBound]) -> list[str]:
        """Which assertions do not hold, one line each; one on a series must hold for every subject."""
        found = [
            f"{subject.name}: {bound.verdict(subject.series)}"
            for subject in self.subjects
            for bound in assertions
            if isinstance(bound, Bound) and not bound.holds(subject.series)
        ]
        ratios = [bound for bound in assertions if isinstance(bound, RatioBound)]
        return found + [bound.verdict(self.ratios) for bound in ratios if not bound.holds(self.ratios)]


def _row(name: str, subject: Subject) -> tuple[str, ...]:
    samples = subject.series[name]
    cells = [milliseconds(samples.statistic(column)) if len(samples) else "-" for column in COLUMNS]
    return (name, subject.titles.get(name, ""), str(len(samples)), *cells)


def _fact(name: str, value: object) -> str:
    if not isinstance(value, dict):
        return f"  {name}: {value}"
    if len(value) <= SHORT:
        return f"  {name}: " + ", ".join(f"{k} {v}" for k, v in value.items())
    return "\n" + table((name, ""), [(str(k), str(v)) for k, v in value.items()])


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def host() -> dict[str, Any]:
    """What the figures were measured on; nothing that names the machine."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def machine_line() -> str:
    """``host`` in a few words."""
    found = host()
    return f"{found['cores']} cores {found['cpu']}, Linux {found['kernel']}, Python {found['python']}"


def versions() -> dict[str, str]:
    """The broker and the libraries that its speed depends on."""
    found = {"broker": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().split("\n"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
