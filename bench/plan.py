"""How much of what ``cold-vs-warm`` measures.

Callers: ``bench.cold_vs_warm`` makes it from the arguments, the series read it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Counts and seconds."""

    n: int
    """Single warm arrivals."""
    interval_s: float
    """From one of them to the next."""
    tenants: int
    """Arrivals in the same moment."""
    rounds: int
    """How often these."""
    colds: int
    """Single cold arrivals."""
    quiet_s: float
    """Longest wait for a machine with little else to do."""
    seed: int
