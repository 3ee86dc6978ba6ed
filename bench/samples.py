"""Raw samples and their exact percentiles.  Pure.

Callers: every sub-command and the report.  A percentile is the nearest rank of all samples: a value that was really
measured, never an interpolation and never a mean of percentiles.  With fewer than a hundred samples p99 is the maximum,
and the table says how many there were.
"""

import math
import re
from collections.abc import Iterable
from typing import Final

COLUMNS: Final = ("p50", "p95", "p99", "max")
_STATISTIC: Final = re.compile(r"p(100|[0-9]{1,2}(?:\.[0-9]{1,3})?)")


class Samples:
    """Measured durations in seconds, in the order in which they were measured."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.values = list(values)

    def __len__(self) -> int:
        return len(self.values)

    def add(self, value: float) -> None:
        """One more."""
        self.values.append(value)

    def percentile(self, q: float) -> float:
        """The smallest sample that at least ``q`` percent of all samples do not exceed.

        ``q`` from 0 (the minimum) to 100 (the maximum).  Raises ``ValueError`` without samples or outside that range.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"no such percentile: {q}")
        if not self.values:
            raise ValueError("no samples")
        ordered = sorted(self.values)
        # Rounded first: 99.9 / 100 * 1000 is a little above 999 in floating point.
        rank = math.ceil(round(q * len(ordered) / 100, 9))
        return ordered[max(rank, 1) - 1]

    @property
    def mean(self) -> float:
        """The arithmetic mean; raises ``ValueError`` without samples."""
        if not self.values:
            raise ValueError("no samples")
        return math.fsum(self.values) / len(self.values)

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
        """Milliseconds, for the result file: the usual statistics and every sample."""
        milliseconds = [round(value * 1e3, 4) for value in self.values]
        if not milliseconds:
            return {"unit": "ms", "n": 0, "samples": []}
        names = ("min", "mean", *COLUMNS)
        statistics = {name: round(self.statistic(name) * 1e3, 4) for name in names}
        return {"unit": "ms", "n": len(milliseconds), **statistics, "samples": milliseconds}
