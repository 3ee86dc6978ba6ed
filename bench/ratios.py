"""Bounds on plain numbers, ratios above all: targets, and ``--assert 'burst_vs_websocketd<=0.3'``.  Pure.

``bench.bounds`` has those on durations.  Callers: ``bench.peers`` (targets), ``bench.report``, ``bench.__main__``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bench.bounds import OPERATORS

_FORM: Final = re.compile(
    r"\s*(?P<series>[a-z][a-z0-9_]*)\s*(?P<operator><=|>=|<|>)\s*(?P<limit>[0-9]+(?:\.[0-9]+)?)\s*"
)


@dataclass(frozen=True, slots=True)
class RatioBound:
    """The number of a name, and what it is compared with."""

    series: str
    operator: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> "RatioBound":
        """Read ``NAME OPERATOR NUMBER``, for example ``burst_vs_websocketd<=0.3``.  Raises ``ValueError``."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not of the form burst_vs_websocketd<=0.3")
        return cls(found["series"], found["operator"], float(found["limit"]))

    def __str__(self) -> str:
        return f"{self.series} {self.operator} {self.limit:g}"

    def holds(self, ratios: Mapping[str, float]) -> bool:
        """Whether the number is there and within the bound."""
        value = ratios.get(self.series)
        return value is not None and OPERATORS[self.operator](value, self.limit)

    def verdict(self, ratios: Mapping[str, float]) -> str:
        """One line for a person; what was not measured is missed."""
        value = ratios.get(self.series)
        word = "ok    " if self.holds(ratios) else "MISSED"
        return f"{word} {self}: {'not measured' if value is None else number(value)}"


def number(value: float) -> str:
    """Three significant digits or so."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
