"""Whether the figures are the broker's or this program's own.  The judgement is pure.

Caller: ``bench.traffic.meter``.  A load generator that has no time to read its sockets measures itself.
"""

import time
from dataclasses import dataclass
from typing import Final

from bench.clock import now

LAG_P99_S: Final = 0.02
SLIP_P99_S: Final = 0.02
CPU_SHARE: Final = 0.9


@dataclass(frozen=True)
class Health:
    """How the generator did.  Seconds; ``cpu`` is its share of one core.  None: not measured."""

    lag_p99: float | None
    slip_p99: float | None
    """How late it began what it alone made late: a session that waited for a place does not count."""
    cpu: float

    def reasons(self) -> list[str]:
        """Why the generator was the limit; empty when it was not."""
        found = []
        if self.lag_p99 is not None and self.lag_p99 > LAG_P99_S:
            found.append(f"its loop's lag has a p99 of {self.lag_p99 * 1e3:.1f} ms (at most {LAG_P99_S * 1e3:g})")
        if self.slip_p99 is not None and self.slip_p99 > SLIP_P99_S:
            found.append(f"its starts were late by {self.slip_p99 * 1e3:.1f} ms at p99 (at most {SLIP_P99_S * 1e3:g})")
        if self.cpu > CPU_SHARE:
            found.append(f"it used {self.cpu:.0%} of a core (at most {CPU_SHARE:.0%})")
        return found

    def shown(self) -> dict[str, str]:
        """For the table."""
        return {
            "loop lag p99": _ms(self.lag_p99), "slip p99": _ms(self.slip_p99), "of a core": f"{self.cpu:.0%}",
        }  # fmt: skip


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f} ms"


class Effort:
    """The processor time of this process since it was made."""

    def __init__(self) -> None:
        self._began, self._used = now(), time.process_time()

    def share(self) -> float:
        """Of one core."""
        return (time.process_time() - self._used) / max(1e-9, now() - self._began)
