"""Two results beside each other: how much each figure has moved, how sure that is, and what fails on it.  Pure.

Caller: ``bench.results.compare_files``.  What a limit may name: a statistic of a series, a rate, a ratio of ``peers``.
"""

import math
import random
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.peers.judgement import NAMES as RATIOS
from bench.ratios import RatioBound, number
from bench.samples import Samples, rank
from bench.table import table

STATISTICS: Final = ("mean", "p50", "p95", "p99")
"""Of every series, in the table."""
ROUNDS: Final = 1000
LOW, HIGH = 2.5, 97.5
RATES: Final = {"turns_per_second": "turns per second", "attached_per_second": "attached per second"}
"""Facts that are compared, too, by the name that ``--fail-on`` gives them."""
RATIO_SUBJECT: Final = "ratios"
TIMES: Final = "milliseconds, or per second"
SHARES: Final = "broker by peer, or the broker's own figure"
LOAD_FLAGS: Final = frozenset({"output", "label", "url", "assertions", "progress", "grace"})
"""Flags that do not make another load."""
_FORM: Final = re.compile(
    r"\s*(?P<figure>[a-z][a-z0-9_]*(?:_p[0-9.]+)?)\s*:\s*(?P<sign>[+-])(?P<percent>[0-9]+(?:\.[0-9]+)?)\s*%\s*"
)


class Unfit(Exception):
    """The two files cannot be compared, or not in what was asked for."""


@dataclass(frozen=True)
class Limit:
    """``figure`` may rise (``share`` above 0) or fall (below 0) by so much; 0.1 is ten percent."""

    figure: str
    share: float
    falls: bool

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """Read ``ttft_p95:+10%``, ``turns_per_second:-5%``, ``burst_vs_plain:+15%``.  Raises ``ValueError``."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not of the form ttft_p95:+10% or turns_per_second:-5%")
        if found["figure"] not in RATES.keys() | RATIOS:
            _, _, statistic = found["figure"].rpartition("_")
            Samples([0.0]).statistic(statistic)
        share = float(found["percent"]) / 100
        return cls(found["figure"], -share if found["sign"] == "-" else share, found["sign"] == "-")

    def is_broken(self, change: float) -> bool:
        """Whether a change is beyond it."""
        return change < self.share if self.falls else change > self.share

    def __str__(self) -> str:
        return f"{self.figure}:{'-' if self.falls else '+'}{abs(self.share) * 100:g}%"


@dataclass(frozen=True)
class Row:
    """One figure in both files; ``change`` 0.1 is ten percent more in the second."""

    subject: str
    figure: str
    first: float
    second: float
    low: float | None = None
    high: float | None = None
    """Between these lies the change in 95 of 100 resamplings; None where that says nothing."""
    unit: str = TIMES

    @property
    def change(self) -> float:
        """Relative to the first."""
        return _change(self.first, self.second)


def _change(first: float, second: float) -> float:
    if first == second:
        return 0.0
    return (second - first) / first if first else math.copysign(math.inf, second)


def rows(first: Mapping[str, Any], second: Mapping[str, Any], seed: int, limits: Sequence[Limit] = ()) -> list[Row]:
    """All figures that both have.  Raises ``Unfit``."""
    if first["bench"] != second["bench"]:
        raise Unfit(f"one is of `{first['bench']}`, the other of `{second['bench']}`")
    chance = random.Random(seed)
    found = [row for one, other in _pairs(first, second) for row in _subject_rows(one, other, limits, chance)]
    found += _ratio_rows(first["ratios"], second["ratios"])
    if not found:
        raise Unfit("no series and no ratio was measured in both")
    missing = {limit.figure for limit in limits} - {row.figure for row in found}
    if missing:
        raise Unfit(f"not measured in both: {', '.join(sorted(missing))}")
    return found


def _pairs(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Subjects of the same name; where each file has one, that one, whatever it is called."""
    ones, others = first["subjects"], second["subjects"]
    if not ones and not others:
        return []
    if len(ones) == len(others) == 1:
        return [(ones[0], others[0])]
    by_name = {subject["name"]: subject for subject in others}
    found = [(subject, by_name[subject["name"]]) for subject in ones if subject["name"] in by_name]
    if not found:
        raise Unfit("they have no subject in common")
    return found


def _subject_rows(
    one: Mapping[str, Any], other: Mapping[str, Any], limits: Sequence[Limit], chance: random.Random
) -> Iterator[Row]:
    for name, series in one["series"].items():
        beside = other["series"].get(name)
        if beside is None or not series["samples"] or not beside["samples"]:
            continue
        asked = [limit.figure.removeprefix(f"{name}_") for limit in limits if limit.figure.startswith(f"{name}_")]
        extra = [statistic for statistic in asked if _is_statistic(statistic)]
        both = Samples(series["samples"]), Samples(beside["samples"])
        for statistic in dict.fromkeys([*STATISTICS, *extra]):
            first, second = (
                recorded if (recorded := figures.get(statistic)) is not None else kept.statistic(statistic)
                for figures, kept in zip((series, beside), both, strict=True)
            )
            low, high = interval(*both, statistic, chance)
            yield Row(one["name"], f"{name}_{statistic}", first, second, low, high)
    for figure, fact in RATES.items():
        before, after = one["facts"].get(fact), other["facts"].get(fact)
        if isinstance(before, int | float) and isinstance(after, int | float):
            yield Row(one["name"], figure, float(before), float(after))


def _ratio_rows(ones: Mapping[str, float], others: Mapping[str, float]) -> list[Row]:
    return [Row(RATIO_SUBJECT, name, ones[name], others[name], unit=SHARES) for name in ones if name in others]


def target_limits(first: Mapping[str, Any], second: Mapping[str, Any], share: float) -> tuple[list[Limit], list[str]]:
    """A limit for each ratio in both that has a target in the second: it may be worse by ``share``.

    A target below which a ratio has to stay says that more is worse, one above which it has to stay that less is.
    Also: the names of those with a target that one of the files does not have, for a round in which a peer seems to
    have added nothing has no ratio.  Raises ``Unfit`` when nothing is left to be judged.
    """
    limits, missing = [], []
    for target in second["targets"]:
        try:
            bound = RatioBound.parse(target["bound"])
        except ValueError as error:
            raise Unfit(str(error)) from error
        if bound.series not in first["ratios"] or bound.series not in second["ratios"]:
            missing.append(bound.series)
            continue
        falls = bound.operator.startswith(">")
        limits.append(Limit(bound.series, -share if falls else share, falls))
    if not limits:
        raise Unfit("no ratio with a target was measured in both")
    return limits, missing


def _is_statistic(text: str) -> bool:
    try:
        Samples([0.0]).statistic(text)
    except ValueError:
        return False
    return True


def interval(
    one: Samples, other: Samples, statistic: str, chance: random.Random
) -> tuple[float, float] | tuple[None, None]:
    """The bootstrap's 95 % interval of the relative change of a mean or a percentile; none for ``min`` and ``max``.

    A resample of n samples has at its rank r the sample at ``ceil(n * u)``, where u is the r-th of n uniform numbers
    and so of the distribution Beta(r, n - r + 1): one draw in place of n and a sort, and the same distribution.  A
    resampled mean is drawn from the normal distribution that it has for more than a few samples.
    """
    if statistic in ("min", "max", "p0", "p100") or min(len(one), len(other)) < 2:
        return None, None
    changes = Samples(
        _change(first, second)
        for first, second in zip(_redrawn(one, statistic, chance), _redrawn(other, statistic, chance), strict=True)
    )
    return changes.percentile(LOW), changes.percentile(HIGH)


def _redrawn(samples: Samples, statistic: str, chance: random.Random) -> Iterator[float]:
    count = len(samples)
    if statistic == "mean":
        deviation = statistics.stdev(samples.values) / math.sqrt(count)
        yield from (chance.gauss(samples.mean, deviation) for _ in range(ROUNDS))
        return
    at, ordered = rank(float(statistic[1:]), count), samples.ordered()
    for _ in range(ROUNDS):
        drawn = math.ceil(count * chance.betavariate(at, count - at + 1))
        yield ordered[min(max(drawn, 1), count) - 1]


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Flags and machines that are not the same, one line each: a reader has to know."""
    ones, others = first["flags"], second["flags"]
    names = sorted((ones.keys() | others.keys()) - LOAD_FLAGS)
    found = [f"{name}: {ones.get(name)} -> {others.get(name)}" for name in names if ones.get(name) != others.get(name)]
    hosts = first["host"], second["host"]
    found += [
        f"{name}: {hosts[0][name]} -> {hosts[1][name]}"
        for name in ("cpu", "cores", "python")
        if hosts[0][name] != hosts[1][name]
    ]
    for which, document in (("first", first), ("second", second)):
        bound = [subject["name"] for subject in document["subjects"] if subject["generator_bound"]]
        if bound:
            found.append(f"generator-bound in the {which} file: {', '.join(bound)}")
    return found


def broken(found: Sequence[Row], limits: Sequence[Limit]) -> list[str]:
    """What fails, one line each."""
    return [
        f"{row.subject}: {row.figure} {row.change:+.1%}, allowed {limit}"
        for limit in limits
        for row in found
        if row.figure == limit.figure and limit.is_broken(row.change)
    ]


def text(found: Sequence[Row]) -> str:
    """A table for each subject."""
    parts = []
    for subject in dict.fromkeys(row.subject for row in found):
        cells = [
            (row.figure, *_values(row), f"{row.change:+.1%}", _interval(row)) for row in found if row.subject == subject
        ]
        unit = next(row.unit for row in found if row.subject == subject)
        parts.append(f"{subject} ({unit})")
        parts.append(table(("figure", "first", "second", "change", "95 % of resamplings"), cells))
    return "\n".join(parts)


def _values(row: Row) -> tuple[str, str]:
    if row.unit == SHARES:
        return number(row.first), number(row.second)
    return f"{row.first:.3f}", f"{row.second:.3f}"


def _interval(row: Row) -> str:
    return "-" if row.low is None or row.high is None else f"{row.low:+.1%} .. {row.high:+.1%}"
