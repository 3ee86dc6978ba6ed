"""When sessions arrive: at even distances or by chance, at a rate that stays or moves in a line.  Pure.

Callers: ``bench.traffic.opened`` and the commands that name a rate.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Arrival = Literal["constant", "poisson"]
ARRIVALS: Final[tuple[Arrival, ...]] = ("constant", "poisson")


@dataclass(frozen=True)
class Plan:
    """Arrivals per second from ``first`` to ``last`` in a line over ``seconds``; none negative, and not both 0."""

    first: float
    last: float
    seconds: float
    arrival: Arrival = "constant"

    def rate(self, at_s: float) -> float:
        """Arrivals per second at a moment of the plan."""
        share = min(max(at_s / self.seconds, 0.0), 1.0) if self.seconds else 1.0
        return self.first + (self.last - self.first) * share

    def expected(self) -> float:
        """Arrivals in all, on average."""
        return (self.first + self.last) / 2 * self.seconds

    def moments(self, seed: int) -> Iterator[float]:
        """Seconds from the start of the plan at which a session is due, ascending, all before its end.

        Each is where the integral of the rate passes the next mark: 0, 1, 2, ... for ``constant``; for ``poisson``
        marks of exponential distances with mean 1, which makes the arrivals a Poisson process of that rate.
        """
        chance = random.Random(seed)
        mark = chance.expovariate(1.0) if self.arrival == "poisson" else 0.0
        while (at := self._reaches(mark)) is not None and at < self.seconds:
            yield at
            mark += chance.expovariate(1.0) if self.arrival == "poisson" else 1.0

    def _reaches(self, mark: float) -> float | None:
        """When as many arrivals as ``mark`` are due; None when the rate has fallen to 0 before."""
        bend = (self.last - self.first) / self.seconds if self.seconds else 0.0
        under = self.first**2 + 2 * bend * mark
        if under < 0:
            return None
        # The root in the form that does not subtract what is nearly equal.
        below = self.first + math.sqrt(under)
        return 2 * mark / below if below else (0.0 if mark == 0 else None)
