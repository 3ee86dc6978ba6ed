"""Raw samples and their exact percentiles.  Pure.

Callers: every sub-command and the report.  A percentile is the nearest rank of all samples: a value that was really
measured, never an interpolation and never a mean of percentiles.  With fewer than a hundred samples p99 is the maximum,
and the table says how many there were.  Beyond ``LIMIT`` a series keeps an even choice of its samples.
"""

import math
import random
import re
import statistics
from array import array
from collections.abc import Iterable
from typing import Final

COLUMNS: Final = ("mean", "p50", "p90", "p95", "p99", "p99.9", "max")
LIMIT: Final = 1_000_000
"""Samples that one series keeps: 8 MB."""
FILE_LIMIT: Final = 50_000
"""Samples of one series in a result file; its statistics are of all that were kept."""
_STATISTIC: Final = re.compile(r"p(100|[0-9]{1,2}(?:\.[0-9]{1,3})?)")


class Samples:
    """Measured durations in seconds, in the order in which they were measured.

    From ``LIMIT`` samples on, each further one takes the place of a random other or is left out, so that every sample
    had the same chance to stay (Vitter's algorithm R); the largest and the smallest are known in any case.
    """

    def __init__(self, values: Iterable[float] = (), limit: int = LIMIT) -> None:
        self.values = array("d")
        self.seen = 0
        """How many were measured."""
        self._limit = limit
        self._chance = random.Random(limit)
        self._least, self._most = math.inf, -math.inf
        self._ordered: array[float] | None = None
        self.extend(values)

    def __len__(self) -> int:
        return len(self.values)

    def add(self, value: float) -> None:
        """One more."""
        self._ordered = None
        self.seen += 1
        self._least, self._most = min(self._least, value), max(self._most, value)
        if len(self.values) < self._limit:
            self.values.append(value)
        elif (place := self._chance.randrange(self.seen)) < self._limit:
            self.values[place] = value

    def extend(self, values: Iterable[float]) -> None:
        """Some more."""
        for value in values:
            self.add(value)

    def ordered(self) -> "array[float]":
        """The samples from the smallest to the largest; kept until the next one is added."""
        if self._ordered is None:
            self._ordered = array("d", sorted(self.values))
        return self._ordered

    def percentile(self, q: float) -> float:
        """The smallest sample that at least ``q`` percent of all samples do not exceed.

        ``q`` from 0 (the minimum) to 100 (the maximum).  Raises ``ValueError`` without samples or outside that range.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"no such percentile: {q}")
        if not self.values:
            raise ValueError("no samples")
        if q in (0, 100):
            return self._most if q else self._least
        return self.ordered()[rank(q, len(self.values)) - 1]

    @property
    def mean(self) -> float:
        """The arithmetic mean; raises ``ValueError`` without samples."""
        if not self.values:
            raise ValueError("no samples")
        return statistics.fmean(self.values)

    def statistic(self, name: str) -> float:
        """``p50``, ``p99.9``, ``min``, ``max`` or ``mean``.  Raises ``ValueError`` for another name."""
        match name:
            case "min":
                return self.percentile(0)
            case "max":
                return self.percentile(100)
            case "mean":
                return self.mean
            case _:
                found = _STATISTIC.fullmatch(name)
        if found is None:
            raise ValueError(f"no such statistic: {name}")
        return self.percentile(float(found[1]))

    def shown(self) -> dict[str, object]:
        """Milliseconds, for the result file: the usual statistics and the samples, an even choice of many."""
        if not self.values:
            return {"unit": "ms", "n": 0, "samples": []}
        names = ("min", *COLUMNS)
        figures = {name: round(self.statistic(name) * 1e3, 4) for name in names}
        step = math.ceil(len(self.values) / FILE_LIMIT)
        samples = [round(value * 1e3, 4) for value in self.values[::step]]
        return {"unit": "ms", "n": self.seen, **figures, "samples": samples}


def rank(q: float, count: int) -> int:
    """The nearest rank, from 1, of the ``q``-th percentile of ``count`` samples."""
    # Rounded first: 99.9 / 100 * 1000 is a little above 999 in floating point.
    return max(math.ceil(round(q * count / 100, 9)), 1)
