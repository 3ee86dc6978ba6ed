"""What a run hands back: a table for the person, a file for the machine.

Callers: every sub-command returns a ``Report``; ``bench.__main__`` prints it, writes it and checks the assertions.
"""

import json
import os
import platform
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Self

import anyio

from bench.bounds import Bound
from bench.clock import load_average
from bench.knee import Curve
from bench.ratios import RatioBound
from bench.report_subject import Subject
from bench.results.text import text_of
from bench.secrets import without_secrets, without_user
from broker import __version__

__all__ = ["SCHEMA", "Report", "Subject", "host", "versions"]

SCHEMA: Final = 1
LIBRARIES: Final = ("websockets", "anyio", "msgspec", "structlog", "uvloop")


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
    """``FIGURE_vs_PROGRAM``: the broker's figure by that program's, for the table of README.md; other names are
    figures as they are."""
    targets: list[RatioBound] = field(default_factory=list)
    """What the ratios are held against."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know: what was left out, and why."""
    label: str = ""
    interrupted: bool = False
    """Ctrl-C ended it; what was measured so far is here."""
    curve: Curve | None = None
    """Of a sweep: its points were judged by the assertions, which hold when there is a knee."""
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    load_before: list[float] = field(default_factory=load_average)

    def measured(self, measure: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> Self:
        """Run ``measure``, which fills this report, to its end, or to Ctrl-C, which is noted; returns the report."""
        try:
            anyio.run(measure, *arguments)
        except KeyboardInterrupt:
            self.interrupted = True
        return self

    def text(self) -> str:
        """The tables, the targets and the facts."""
        return text_of(self.document())

    def document(self) -> dict[str, Any]:
        """What the result file holds."""
        document = {
            "schema": SCHEMA,
            "bench": self.bench,
            "label": self.label,
            "started": self.started,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "interrupted": self.interrupted,
            "command": [Path(sys.executable).name, "-m", "bench", *without_secrets(sys.argv[1:])],
            "flags": {name: _plain(value) for name, value in self.flags.items() if name != "token"},
            "seed": self.seed,
            "host": {**host(), "load_before": self.load_before, "load_after": load_average()},
            "versions": versions(),
            "violations": self.violations,
            "subjects": [subject.shown() for subject in self.subjects],
            "tables": self.tables,
            "figures": self.figures,
            "ratios": self.ratios,
            "targets": [
                {"bound": str(target), "holds": target.holds(self.ratios), "verdict": target.verdict(self.ratios)}
                for target in self.targets
            ],
            "notes": self.notes,
        }
        return document if self.curve is None else {**document, "curve": self.curve.shown()}

    def write(self, path: Path) -> None:
        """The result file; whole or not at all.  Raises ``OSError``."""
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(self.document(), indent=1) + "\n")
        part.replace(path)

    def failed(self, assertions: Sequence[Bound | RatioBound]) -> list[str]:
        """Which assertions do not hold, one line each; one on a series must hold for every subject."""
        if self.curve is not None:
            return [] if self.curve.knee is not None else self.curve.told()
        found = [
            f"{subject.name}: {bound.verdict(subject.series)}"
            for subject in self.subjects
            for bound in assertions
            if isinstance(bound, Bound) and not bound.holds(subject.series)
        ]
        ratios = [bound for bound in assertions if isinstance(bound, RatioBound)]
        return found + [bound.verdict(self.ratios) for bound in ratios if not bound.holds(self.ratios)]


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, str):
        return without_user(value)
    return value if isinstance(value, int | float | bool | None) else str(value)


def host() -> dict[str, Any]:
    """What the figures were measured on; nothing that names the machine."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


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
