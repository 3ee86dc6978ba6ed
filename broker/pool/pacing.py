"""When spares are not started, because tenants need the CPU more: starting a CLI burns about a second of it.

Pure: ``now`` is seconds of a monotonic clock.  Owner: ``broker.pool.pool.Pool``.  Tenants who wait for a process are
never held back by this, and no hold lasts longer than ``HOLD_S``.
"""

HOLD_AFTER_LEASE_S = 0.3
"""A tenant that has just got its process binds it and speaks: its replacement is not started meanwhile."""
HOLD_S = 2.0
"""Longest time that spares wait for turns that wait for their first token."""


class Pacing:
    """Leases, and turns that wait for their first token."""

    def __init__(self) -> None:
        self._awaiting_first_token = 0
        self._leased_at = float("-inf")
        self._held_since: float | None = None

    def leased(self, now: float) -> None:
        """A tenant got its process."""
        self._leased_at = now

    def first_token_awaited(self, change: int) -> bool:
        """+1 when a turn is written, -1 at its first token or end; True when none waits any more."""
        self._awaiting_first_token += change
        return not self._awaiting_first_token

    def is_held(self, now: float) -> bool:
        """Whether spares are not to be started now."""
        if not self._awaiting_first_token and now - self._leased_at >= HOLD_AFTER_LEASE_S:
            self._held_since = None
            return False
        if self._held_since is None:
            self._held_since = now
        return now - self._held_since < HOLD_S

    @property
    def is_holding(self) -> bool:
        """Whether ``is_held`` should be asked again soon."""
        return self._held_since is not None
