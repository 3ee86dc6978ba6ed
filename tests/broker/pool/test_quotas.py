"""What one tenant may have at once; another one never notices."""

from collections.abc import Callable

import pytest

from broker.config.limits import Limits
from broker.pool.quotas import COLD_WITHIN_S, QuotaExceeded, Quotas, StartQuota
from broker.pool.slots import Target
from protocol.codes import CloseCode, ErrorCode, Limit, MissReason
from tests.broker.pool.test_slots import filled, ledger


def refused(asks: Callable[[], object]) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught:
        asks()
    assert caught.value.code is ErrorCode.QUOTA_EXCEEDED
    return caught.value


def test_every_limit_is_counted_by_its_key() -> None:
    """Each key of ``[limits]`` has its label; the burst is counted with its rate.  The others are the server's own."""
    keys = set(Limits.__struct_fields__) - {"messages_burst"}
    others = {
        "max_inbound_bytes",
        "send_deadline_s",
        "max_unauthenticated",
        "max_unauthenticated_per_ip",
        "descriptors",
    }
    assert {limit.value for limit in Limit} == keys | others


# -- sockets and messages --------------------------------------------------------------------------------------------


def test_connections_are_counted_by_tenant() -> None:
    """The third of two is refused by name and value; what was refused is not counted; who leaves makes room."""
    quotas, limits = Quotas(), Limits(tenant_connections=2)
    quotas.connect("ann", limits)
    quotas.connect("ann", limits)
    for asks in (quotas.check_connection, quotas.connect, quotas.connect):
        error = refused(lambda asks=asks: asks("ann", limits))  # type: ignore[misc]
        assert (error.limit, error.close) == (Limit.TENANT_CONNECTIONS, CloseCode.RATE_LIMITED)
        assert error.message == "the tenant has reached limits.tenant_connections = 2"
        assert error.retry_after_ms == 5000
    quotas.connect("bob", limits)
    quotas.disconnect("ann")
    quotas.connect("ann", limits)


def test_without_a_cap_nobody_is_refused() -> None:
    """Sockets that came before there was a cap count once there is one."""
    quotas = Quotas()
    for _ in range(100):
        quotas.connect("ann", Limits())
    refused(lambda: quotas.connect("ann", Limits(tenant_connections=100)))


def test_a_tenants_bucket_outlives_its_connections() -> None:
    """Whoever comes back finds it as it was; a changed limit changes it and does not fill it."""
    quotas = Quotas()
    assert quotas.bucket("ann", Limits()) is None
    bucket = quotas.bucket("ann", Limits(tenant_messages_per_second=2))
    assert bucket is not None
    assert (bucket.rate, bucket.burst) == (2, 4)
    for _ in range(4):
        bucket.take(0.0)
    again = quotas.bucket("ann", Limits(tenant_messages_per_second=10))
    assert again is bucket
    assert (again.rate, again.burst) == (10, 20)
    assert quotas.bucket("bob", Limits(tenant_messages_per_second=2)) is not bucket
    slow = quotas.bucket("cyd", Limits(tenant_messages_per_second=0.1))
    assert slow is not None
    assert slow.burst == 1, "one message at least"


# -- processes -------------------------------------------------------------------------------------------------------


def test_processes_count_with_those_that_are_waited_for() -> None:
    """At the cap nobody is queued: neither a warm spare nor a start, nor a conversation that goes on, is given."""
    slots, limits = ledger({"small": Target(3)}), Limits(tenant_processes=2)
    filled(slots)
    held = slots.acquire("small", "ann", 0.0, limits)
    assert held.slot is not None
    waiter = slots.acquire("small", "ann", 0.0, limits, own_start=True)
    for own in (False, True):
        error = refused(lambda own=own: slots.acquire("small", "ann", 0.0, limits, own_start=own))  # type: ignore[misc]
        assert (error.limit, error.close) == (Limit.TENANT_PROCESSES, CloseCode.POOL_UNAVAILABLE)
        assert error.message == "the tenant has reached limits.tenant_processes = 2"
    assert slots.acquire("small", "bob", 0.0, limits).is_served
    slots.withdraw(waiter)
    assert slots.acquire("small", "ann", 0.0, limits).is_served
    slots.stop(held.slot)
    assert not slots.acquire("small", "ann", 0.0, limits).is_served, "it waits: bob has the last spare"


def test_places_in_the_queue_are_counted_by_tenant() -> None:
    """The queue is full for one tenant and not for the other; a conversation that goes on waits all the same."""
    slots, limits = ledger({"small": Target(0)}), Limits(tenant_waiting=1)
    first = slots.acquire("small", "ann", 0.0, limits)
    error = refused(lambda: slots.acquire("small", "ann", 0.0, limits))
    assert (error.limit, error.close) == (Limit.TENANT_WAITING, CloseCode.POOL_UNAVAILABLE)
    slots.acquire("small", "bob", 0.0, limits)
    slots.acquire("small", "ann", 0.0, limits, own_start=True)
    refused(lambda: slots.acquire("small", "ann", 0.0, limits, own_start=True, miss=MissReason.NO_PROFILE))
    slots.withdraw(first)
    refused(lambda: slots.acquire("small", "ann", 0.0, limits))


def test_a_tenant_that_may_not_wait_gets_spares_only() -> None:
    """With ``tenant_waiting = 0`` a warm process is leased and nobody waits for another."""
    slots, limits = ledger({"small": Target(1)}), Limits(tenant_waiting=0)
    filled(slots)
    assert slots.acquire("small", "ann", 0.0, limits).is_served
    refused(lambda: slots.acquire("small", "ann", 0.0, limits))


def test_cold_starts_are_counted_over_a_minute() -> None:
    """Two in any 60 s, restores among them; warm ones are free, and the refusal says when the oldest is forgotten."""
    slots, limits = ledger({"small": Target(1)}), Limits(tenant_cold_starts_per_minute=2)
    filled(slots)
    assert slots.acquire("small", "ann", 0.0, limits).is_served
    for now, own in ((0.0, False), (10.0, True)):
        slots.withdraw(slots.acquire("small", "ann", now, limits, own_start=own))
    for own in (False, True):
        error = refused(lambda own=own: slots.acquire("small", "ann", 20.0, limits, own_start=own))  # type: ignore[misc]
        assert (error.limit, error.retry_after_ms) == (Limit.TENANT_COLD_STARTS_PER_MINUTE, 40_000)
        assert error.close is CloseCode.POOL_UNAVAILABLE
    slots.acquire("small", "bob", 20.0, limits)
    slots.acquire("small", "ann", COLD_WITHIN_S, limits)
    refused(lambda: slots.acquire("small", "ann", COLD_WITHIN_S, limits))


def test_what_is_not_limited_is_not_remembered() -> None:
    """Without a cap on cold starts the ledger keeps no times of them."""
    quota = StartQuota()
    quota.check_wait("ann", Limits(), 0, 0.0, is_restore=False)
    quota.waits("ann", Limits(), 0.0)
    assert quota._cold == {}
