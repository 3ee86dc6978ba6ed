"""Whether the CLI is at work, as it says itself, and how long a queued message waits for it to be idle.

Pure: times are seconds of a monotonic clock.  Owner: one ``broker.sessions.session.Session``.
"""

from dataclasses import dataclass

GRACE_S = 5.0
"""How long a queued message waits for a CLI that has given its ``result`` and does not say that it is idle."""
BUSY_STATES = ("running", "requires_action")


@dataclass(slots=True)
class Occupation:
    """What the CLI's ``session_state_changed`` tells of itself.  ``until``: how long that is believed."""

    is_busy: bool = False
    is_own: bool = False
    """What it does was nobody's message: it has begun by itself, when a background task had ended."""
    until: float = 0.0

    def tell(self, state: str, own_until: float | None) -> None:
        """The CLI has told ``state``; ``own_until`` when no client's turn runs: what it does ends with its own result,
        by that time."""
        self.is_busy = state in BUSY_STATES
        self.is_own = self.is_busy and (self.is_own or own_until is not None)
        if self.is_busy and own_until is not None:
            self.until = own_until

    def result(self, now: float) -> None:
        """It has ended a turn, and is soon idle."""
        self.is_own, self.until = False, now + GRACE_S

    def give_up(self, now: float) -> bool:
        """Whether it has been waited for long enough: it then counts as idle."""
        if self.is_busy and now >= self.until:
            self.is_busy = self.is_own = False
            return True
        return False
