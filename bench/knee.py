"""The knee of a sweep: the largest load under which the bounds hold.  Pure.

Callers: ``bench.sweep``, ``bench.report``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.bounds import Bound
from bench.report_subject import Subject


@dataclass(frozen=True)
class Point:
    """One load and what became of it.  Figures in milliseconds, ``failed`` from 0 to 1."""

    value: float
    turns_per_second: float
    failed: float
    figures: Mapping[str, float]
    broken: tuple[str, ...]
    """The bounds that do not hold, each with its figure."""
    generator_bound: bool = False
    waited: int = 0
    """Arrivals that found every place taken."""

    @property
    def holds(self) -> bool:
        """Whether everything that it was judged by holds."""
        return not self.broken


@dataclass
class Curve:
    """The points in the order in which they were measured; ``parameter`` is what moved, with its unit."""

    parameter: str
    bounds: Sequence[str]
    points: list[Point] = field(default_factory=list)

    @property
    def knee(self) -> Point | None:
        """The point with the largest value of those that hold; None when none does."""
        return max((point for point in self.points if point.holds), key=lambda point: point.value, default=None)

    def told(self) -> list[str]:
        """The knee in words, and what makes it doubtful."""
        knee = self.knee
        if knee is None:
            return [f"no knee: the bounds ({', '.join(self.bounds)}) hold at none of the {len(self.points)} values"]
        lines = [f"knee: {self.parameter} {knee.value:g} is the largest at which {', '.join(self.bounds)} hold"]
        below = [point.value for point in self.points if point.value < knee.value and not point.holds]
        if below:
            lines.append(
                f"they did not hold below it at {', '.join(f'{value:g}' for value in below)}: repeat the sweep"
            )
        above = [point for point in self.points if point.value > knee.value]
        if not above:
            lines.append("it is the largest value of the sweep: the knee itself may be higher")
            return lines
        following = min(above, key=lambda point: point.value)
        if following.generator_bound:
            lines.append("above it the generator was the limit: the broker's own knee may be higher")
        if following.waited:
            lines.append(f"above it {following.waited} sessions waited for a place: --max-sessions may be the limit")
        return lines

    def shown(self) -> dict[str, Any]:
        """For the result file."""
        points = [{**asdict(point), "broken": list(point.broken), "holds": point.holds} for point in self.points]
        knee = self.knee
        return {
            "parameter": self.parameter,
            "bounds": list(self.bounds),
            "points": points,
            "knee": None if knee is None else knee.value,
            "told": self.told(),
        }


def judged(value: float, subject: Subject, failed: float, turns_per_second: float, bounds: Sequence[Bound],
           most_failed: float, waited: int = 0) -> Point:  # fmt: skip
    """The point for a load of ``value``: every bound must hold, and at most a share of ``most_failed`` may fail."""
    broken = [bound.verdict(subject.series).removeprefix("FAILED  ") for bound in bounds
              if not bound.holds(subject.series)]  # fmt: skip
    if failed > most_failed:
        broken.append(f"{failed:.2%} failed, at most {most_failed:.2%}")
    figures = {
        f"{name}_{statistic}": round(samples.statistic(statistic) * 1e3, 4)
        for name, samples in subject.series.items() if len(samples)
        for statistic in ("p50", "p95", "p99")
    }  # fmt: skip
    return Point(value, turns_per_second, failed, figures, tuple(broken), bool(subject.generator_bound), waited)
