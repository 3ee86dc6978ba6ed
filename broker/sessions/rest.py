"""When an idle session gives its process back.

Pure: times are monotonic seconds.  Owner: one ``broker.sessions.tenure.Tenure``, which knows what idle is.
"""

from dataclasses import dataclass

from broker.config.tree import Session


@dataclass(slots=True)
class Rest:
    """The clocks of one session.  ``is_asked``: its process is wanted for somebody else, so that idle is enough."""

    limits: Session
    detached_at: float
    bound_at: float
    is_asked: bool = False

    def bound(self, now: float) -> None:
        """It has got a process."""
        self.bound_at, self.is_asked = now, False

    def due_at(self, last_terminal_at: float, *, has_readers: bool) -> float:
        """When it rests, if nothing happens until then."""
        if self.is_asked:
            return self.bound_at
        if has_readers:
            return max(self.bound_at, last_terminal_at) + self.limits.hibernate_after_s
        return max(self.detached_at, last_terminal_at) + self.limits.detach_timeout_s

    def log_ends_at(self, last_terminal_at: float, keep_s: float) -> float:
        """When what nobody reads is kept no longer, if nobody comes and no turn runs until then."""
        return max(self.detached_at, last_terminal_at) + keep_s

    def may_be_asked(self, now: float) -> bool:
        """Whether it has had its process for long enough to be asked for it."""
        return now >= self.bound_at + self.limits.min_resident_s
