"""How many user messages a connection may send: a bucket of its own, its tenant's, and the patience with a flood.

Pure; ``now`` is seconds of a monotonic clock.  Owner of an ``Allowance``: one ``broker.sockets.connection.Connection``;
the tenant's bucket belongs to ``broker.pool.quotas.Quotas``.
"""

import math
from collections import deque

from broker.config.limits import Limits
from protocol.codes import CloseCode, ErrorCode, Limit
from protocol.errors import ClientError

FLOOD_WITHIN_S = 10.0
TENANT_BURST_S = 2.0
"""A tenant's bucket holds what its rate gives in this time."""
NEARLY = 1e-6
"""Of a token: who comes again exactly when it was told to is not refused for the last bits of a float."""


def milliseconds(wait_s: float) -> int:
    """A wait as clients are told it: whole milliseconds, one at least."""
    return max(1, math.ceil(round(wait_s * 1000, 6)))


class RateLimited(ClientError):
    """A message over a limit: nothing of it was accepted.  ``close`` is set once it is a flood."""

    def __init__(self, limit: Limit, message: str, ref: str | None, wait_s: float, *, is_flood: bool = False) -> None:
        super().__init__(
            ErrorCode.RATE_LIMITED,
            message,
            close=CloseCode.RATE_LIMITED if is_flood else None,
            ref=ref,
            retry_after_ms=milliseconds(wait_s),
        )
        self.limit = limit


class Bucket:
    """``burst`` tokens at once, ``rate`` more per second: in ``t`` seconds never more than ``burst + rate * t``.

    It begins full.  Who changes ``rate`` and ``burst`` neither fills nor empties it.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self._level, self._at = burst, -math.inf

    def wait_s(self, now: float) -> float:
        """Seconds until there is a token; 0.0 when there is one."""
        lacking = 1 - self._filled(now)
        return lacking / self.rate if lacking > NEARLY else 0.0

    def take(self, now: float) -> None:
        """Take a token that is there."""
        self._level, self._at = self._filled(now) - 1, now

    def _filled(self, now: float) -> float:
        return min(self.burst, self._level + (now - self._at) * self.rate)


class Window:
    """When something happened, as far as that is not longer ago than ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._times: deque[float] = deque()

    def add(self, now: float) -> None:
        """It happened; the caller bounds how often."""
        self._times.append(now)

    def count(self, now: float) -> int:
        """How often it happened within the window that ends now."""
        times = self._times
        while times and now - times[0] >= self._seconds:
            times.popleft()
        return len(times)

    def wait_s(self, limit: int, now: float) -> float:
        """Seconds until it has happened less than ``limit`` times; 0.0 when that is so.  ``limit`` is at least 1."""
        excess = self.count(now) - limit
        return 0.0 if excess < 0 else self._seconds - (now - self._times[excess])


class Allowance:
    """One connection's.  ``shared`` is the bucket of its tenant, None when the tenant has no such limit."""

    def __init__(self, limits: Limits, shared: Bucket | None) -> None:
        self._limits = limits
        self._own = Bucket(limits.messages_per_second, limits.messages_burst)
        self._shared = shared
        self._refused: Window | None = None

    def take(self, message_id: str | None, now: float) -> None:
        """Let one message pass.  Raises ``RateLimited``; then neither bucket has lost anything."""
        own = self._own.wait_s(now)
        shared = 0.0 if self._shared is None else self._shared.wait_s(now)
        if own or shared:
            raise self._refusal(message_id, now, own, shared)
        self._own.take(now)
        if self._shared is not None:
            self._shared.take(now)

    def _refusal(self, message_id: str | None, now: float, own: float, shared: float) -> RateLimited:
        self._refused = refused = self._refused or Window(FLOOD_WITHIN_S)
        refused.add(now)
        limits, wait_s = self._limits, max(own, shared)
        if refused.count(now) > limits.refused_messages:
            text = f"more than limits.refused_messages = {limits.refused_messages} in {FLOOD_WITHIN_S:g} s"
            return RateLimited(Limit.REFUSED_MESSAGES, text, message_id, wait_s, is_flood=True)
        if own >= shared:
            text = f"limits.messages_per_second = {self._own.rate:g}, limits.messages_burst = {self._own.burst:g}"
            return RateLimited(Limit.MESSAGES_PER_SECOND, text, message_id, wait_s)
        assert self._shared is not None
        text = f"limits.tenant_messages_per_second = {self._shared.rate:g}, over all connections"
        return RateLimited(Limit.TENANT_MESSAGES_PER_SECOND, text, message_id, wait_s)
