"""How long to wait before what has failed is tried again: twice as long each time, up to a bound, never in step.

Pure; ``now`` is seconds of a monotonic clock, ``jitter`` a random number in 0..1.  Callers: ``broker.pool.slots``, one
``Health`` a profile; ``broker.pool.unknown_profiles``.
"""

from dataclasses import dataclass

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 60.0
BREAKER_FAILURES = 5
"""Starts in a row that must fail before new tenants are refused at once instead of queued."""
EARLY_DEATH_S = 10.0
"""A spare that has not lived so long was never sound: the next one is not started at once."""


def delay_s(failures: int, jitter: float) -> float:
    """Seconds after the ``failures``-th failure in a row, from 1; jitter takes up to half of it away."""
    delay = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(failures - 1, 20))
    return delay * (0.5 + jitter / 2)


@dataclass(slots=True)
class Health:
    """How the starts of one profile go, and how its spares keep.

    Failed starts hold back everybody.  Spares that die at once hold back spares only: a tenant that waits gets its
    process when it is ready, before it can lie about.
    """

    failures: int = 0
    not_before: float = 0.0
    early_deaths: int = 0
    refill_from: float = 0.0

    def failed(self, now: float, jitter: float) -> None:
        """A process died before it was ready."""
        self.failures += 1
        self.not_before = now + delay_s(self.failures, jitter)

    def came_up(self) -> None:
        """A process was ready."""
        self.failures = 0

    def spare_died(self, lived_s: float, now: float, jitter: float) -> None:
        """A spare ended by itself."""
        if lived_s >= EARLY_DEATH_S:
            self.early_deaths = 0
            return
        self.early_deaths += 1
        self.refill_from = now + delay_s(self.early_deaths, jitter)

    def spare_served(self, lived_s: float) -> None:
        """A spare found its tenant."""
        if lived_s >= EARLY_DEATH_S:
            self.early_deaths = 0

    def retry_s(self, now: float) -> float | None:
        """Seconds until the next probe while starts keep failing (the breaker is open), else None."""
        return max(0.0, self.not_before - now) if self.failures >= BREAKER_FAILURES else None

    @property
    def put_off_until(self) -> tuple[float, ...]:
        """When starts may be tried that failures put off, if they did."""
        return (self.not_before if self.failures else 0.0, self.refill_from)
