"""Bounds on a figure: the targets that are printed beside it, and ``--assert 'welcome_p50<60ms'``.

Pure.  Callers: the sub-commands (targets) and ``bench.__main__`` (assertions).
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bench.samples import Samples

OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_FORM: Final = re.compile(
    r"\s*(?P<series>[a-z][a-z0-9_]*)_(?P<statistic>p[0-9.]+|min|max|mean)\s*"
    r"(?P<operator><=|>=|<|>)\s*(?P<limit>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>us|ms|s)\s*"
)


@dataclass(frozen=True, slots=True)
class Bound:
    """``series`` and one of its statistics, and the seconds that it is compared with."""

    series: str
    statistic: str
    operator: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Bound":
        """Read ``SERIES_STATISTIC OPERATOR NUMBER UNIT``, for example ``welcome_p50<60ms``.  Raises ``ValueError``."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not of the form welcome_p50<60ms (p50 p95 p99 ... min max mean; us ms s)")
        Samples([0.0]).statistic(found["statistic"])
        limit = float(found["limit"]) * _SECONDS[found["unit"]]
        return cls(found["series"], found["statistic"], found["operator"], limit)

    def __str__(self) -> str:
        return f"{self.series}_{self.statistic} {self.operator} {self.limit * 1e3:g} ms"

    def measured(self, series: Mapping[str, Samples]) -> float | None:
        """The figure in seconds, None when there is no sample of it."""
        samples = series.get(self.series)
        return samples.statistic(self.statistic) if samples is not None and len(samples) else None

    def holds(self, series: Mapping[str, Samples]) -> bool:
        """Whether the figure was measured and is within the bound."""
        value = self.measured(series)
        return value is not None and OPERATORS[self.operator](value, self.limit)

    def verdict(self, series: Mapping[str, Samples]) -> str:
        """One line for a person."""
        value = self.measured(series)
        if value is None:
            return f"FAILED  {self}: not measured"
        return f"{'ok     ' if self.holds(series) else 'FAILED '} {self}: {value * 1e3:.2f} ms"
