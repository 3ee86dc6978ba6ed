"""Which spares are not fit to be handed out any more: stopped, too old, or too large.

Caller: ``broker.pool.pool``, which looks for dead ones itself.  Asks the kernel, never waits.
"""

from typing import Literal

from broker.config.profile import Profile
from broker.processes.process import Process


def unfit(
    process: Process, age_s: float, profile: Profile, *, at_once: bool = False
) -> Literal["stopped", "age", "rss"] | None:
    """Why a spare that was begun ``age_s`` seconds ago has to go; None: it may stay.

    ``at_once``: somebody waits for one, so only what is of no use to anybody has to go.
    """
    if process.is_stopped:
        return "stopped"
    if at_once:
        return None
    if age_s > profile.max_age_s:
        return "age"
    return "rss" if process.resident_bytes > profile.max_rss_mb * 2**20 else None
