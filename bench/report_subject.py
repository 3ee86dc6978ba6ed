"""Everything measured of one program under test.

Callers: every sub-command, ``bench.report``.
"""

from dataclasses import dataclass, field
from typing import Any

from bench.bounds import Bound
from bench.samples import Samples


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
    intervals: list[dict[str, Any]] = field(default_factory=list)
    """The timeline: ``t`` in seconds and what was counted since the line before."""
    shows_intervals: bool = False
    """Whether the table has the timeline below it; the result file has it in any case."""
    generator_bound: list[str] = field(default_factory=list)
    """Why the figures are the load generator's own; empty when it was not the limit."""

    def open_series(self, name: str, title: str) -> Samples:
        """The samples of ``name``, made at its first mention; ``title`` is for the table."""
        self.titles.setdefault(name, title)
        return self.series.setdefault(name, Samples())

    def shown(self) -> dict[str, Any]:
        """The subject as the result file holds it."""
        targets = [
            {"bound": str(bound), "holds": bound.holds(self.series), "verdict": bound.verdict(self.series)}
            for bound in self.targets
        ]
        return {
            "name": self.name,
            "series": {
                name: {"title": self.titles.get(name, ""), **samples.shown()} for name, samples in self.series.items()
            },
            "targets": targets,
            "facts": self.facts,
            "details": self.details,
            "intervals": self.intervals,
            "shows_intervals": self.shows_intervals,
            "generator_bound": self.generator_bound,
        }
