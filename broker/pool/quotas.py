"""What one tenant may have at once, beside every other one: the caps of ``[limits]``.

Pure; ``now`` is seconds of a monotonic clock.  Owners: ``broker.sockets.server`` has the one ``Quotas`` of all sockets,
the pool's ledger (``broker.pool.slots``) the one ``StartQuota``; ``broker.sessions.registry`` counts its sessions
itself.  The limits are an argument: those of the tenant as its latest connection found them.
"""

from collections import Counter

from broker.config.limits import Limits
from broker.errors import BrokerError
from broker.pool.limits import TENANT_BURST_S, Bucket, Window, milliseconds
from protocol.codes import CloseCode, ErrorCode, Limit

COLD_WITHIN_S = 60.0
UNCAPPED = Limits()
RETRY_S = 5.0
"""What a tenant is told where nobody knows when something of its own will end."""


class QuotaExceeded(BrokerError):
    """The tenant has as much as it may have.  The connection that wanted more cannot go on."""

    def __init__(self, limit: Limit, value: int, close: CloseCode, retry_after_s: float | None = RETRY_S) -> None:
        super().__init__(
            ErrorCode.QUOTA_EXCEEDED,
            f"the tenant has reached limits.{limit.value} = {value}",
            close=close,
            retry_after_ms=None if retry_after_s is None else milliseconds(retry_after_s),
        )
        self.limit = limit


def check_cap(
    limit: Limit, cap: int | None, used: int, close: CloseCode, retry_after_s: float | None = RETRY_S
) -> None:
    """Raises ``QuotaExceeded`` when one more than ``used`` would be above ``cap``; None: no cap."""
    if cap is not None and used >= cap:
        raise QuotaExceeded(limit, cap, close, retry_after_s)


class Quotas:
    """Sockets by tenant, and the tenants' buckets of messages.  As many entries as the operator has named tenants."""

    def __init__(self) -> None:
        self._connections: Counter[str] = Counter()
        self._buckets: dict[str, Bucket] = {}

    def check_connection(self, tenant: str, limits: Limits) -> None:
        """Raises ``QuotaExceeded`` when the tenant may have no more sockets."""
        used = self._connections[tenant]
        check_cap(Limit.TENANT_CONNECTIONS, limits.tenant_connections, used, CloseCode.RATE_LIMITED)

    def connect(self, tenant: str, limits: Limits) -> None:
        """Count one more socket of the tenant.  Raises ``QuotaExceeded``, and counts nothing then."""
        self.check_connection(tenant, limits)
        self._connections[tenant] += 1

    def disconnect(self, tenant: str) -> None:
        """A socket that was counted is gone."""
        self._connections[tenant] -= 1

    def bucket(self, tenant: str, limits: Limits) -> Bucket | None:
        """The tenant's own, whoever asks; it outlives the tenant's connections, else a reconnect would fill it."""
        rate = limits.tenant_messages_per_second
        if rate is None:
            return None
        burst = max(1.0, rate * TENANT_BURST_S)
        bucket = self._buckets.setdefault(tenant, Bucket(rate, burst))
        bucket.rate, bucket.burst = rate, burst
        return bucket


class StartQuota:
    """A tenant's processes, its places in the queue, and how often it was not served at once."""

    def __init__(self) -> None:
        self._cold: dict[str, Window] = {}

    def check_processes(self, limits: Limits, leased: int, waiting: int) -> None:
        """Raises ``QuotaExceeded`` when the tenant's processes, with those that it waits for, are at the cap."""
        used = leased + waiting
        check_cap(Limit.TENANT_PROCESSES, limits.tenant_processes, used, CloseCode.POOL_UNAVAILABLE)

    def check_wait(self, tenant: str, limits: Limits, waiting: int, now: float, *, is_restore: bool) -> None:
        """No spare is there: raises ``QuotaExceeded`` when the tenant may not wait, or not have another start.

        A conversation that goes on (``is_restore``) waits however many wait; its start counts like any other.
        """
        if not is_restore:
            check_cap(Limit.TENANT_WAITING, limits.tenant_waiting, waiting, CloseCode.POOL_UNAVAILABLE)
        cap = limits.tenant_cold_starts_per_minute
        if cap is not None and (wait_s := self._window(tenant).wait_s(cap, now)) > 0:
            raise QuotaExceeded(Limit.TENANT_COLD_STARTS_PER_MINUTE, cap, CloseCode.POOL_UNAVAILABLE, wait_s)

    def waits(self, tenant: str, limits: Limits, now: float) -> None:
        """The tenant waits for a start."""
        if limits.tenant_cold_starts_per_minute is not None:
            self._window(tenant).add(now)

    def _window(self, tenant: str) -> Window:
        return self._cold.setdefault(tenant, Window(COLD_WITHIN_S))
