"""Which spares are not fit to be handed out any more: too old, or too large.

Caller: ``broker.pool.pool``, which looks for dead ones itself.  Asks the kernel, never waits.
"""

from typing import Literal

from broker.config.profile import Profile
from broker.processes.process import Process


def unfit(process: Process, age_s: float, profile: Profile) -> Literal["age", "rss"] | None:
    """Why a spare that was begun ``age_s`` seconds ago has to go; None: it may stay."""
    if age_s > profile.max_age_s:
        return "age"
    return "rss" if process.resident_bytes > profile.max_rss_mb * 2**20 else None
