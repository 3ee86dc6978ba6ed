"""The pool's ledger at its limits: a full pool, a full profile, starts that fail."""

import pytest

from broker.pool.backoff import BACKOFF_BASE_S, BACKOFF_CAP_S, BREAKER_FAILURES
from broker.pool.slots import Bounds, Plan, PoolFull, Slots, Target
from tests.broker.pool.test_slots import filled, ledger, started


def fail(slots: Slots, profile: str, now: float, jitter: float = 1.0) -> None:
    """One start of ``profile``, which fails."""
    [slot] = [slot for slot in started(slots, now) if slot.profile == profile]
    assert slots.exited(slot, now, jitter)


# -- room ------------------------------------------------------------------------------------------------------------


def test_a_spare_of_another_profile_makes_room() -> None:
    """In a full pool one spare that nobody waits for is retired, and the waiter's start follows."""
    slots = ledger({"small": Target(2), "large": Target(0)}, most=2)
    filled(slots)
    waiter = slots.acquire("large", "ann", 0.0)
    plan = slots.plan(0.0)
    assert (len(plan.retire), plan.start) == (1, [])
    assert slots.plan(0.0).retire == [], "one is on its way out already"
    slots.exited(plan.retire[0], 1.0, 0.5)
    [slot] = started(slots, 1.0)
    assert slots.ready(slot, 0.0) is waiter
    assert started(slots, 1.0) == []


def test_a_conversation_finds_room_among_its_own_spares() -> None:
    """Where spares fill the profile's limit, or the pool, one of them gives way to a start of its own."""
    for slots in (ledger({"small": Target(2, 2)}), ledger({"small": Target(2)}, most=2)):
        filled(slots)
        waiter = slots.acquire("small", "ann", 0.0, own_start=True)
        plan = slots.plan(0.0)
        assert (len(plan.retire), plan.start) == (1, [])
        slots.exited(plan.retire[0], 1.0, 0.5)
        [own] = started(slots, 1.0)
        assert slots.ready(own, 0.0) is waiter


def test_leased_processes_are_not_touched() -> None:
    """Who waits behind leases waits until one ends."""
    slots = ledger({"small": Target(0, 1)})
    filled(slots)
    first, second = slots.acquire("small", "ann", 0.0), slots.acquire("small", "bob", 0.0)
    [slot] = filled(slots)
    assert first.slot is slot
    assert slots.plan(1.0) == Plan()
    slots.stop(slot)
    slots.exited(slot, 2.0, 0.5)
    [slot] = started(slots, 2.0)
    assert slots.ready(slot, 0.0) is second


def test_reserved_room_is_left_alone() -> None:
    """A profile's reserve is not taken by others, and counts as used once the profile uses it."""
    slots = ledger({"small": Target(4), "large": Target(0, None, 2)}, most=4)
    assert len(filled(slots)) == 2
    waiters = [slots.acquire("large", "ann", 0.0) for _ in range(2)]
    assert len(filled(slots)) == 2
    assert all(waiter.is_served for waiter in waiters)


def test_a_spare_that_its_profile_has_a_right_to_is_kept() -> None:
    """It would make room for nobody else."""
    slots = ledger({"small": Target(0), "large": Target(2, None, 2)}, most=3)
    filled(slots)
    slots.acquire("small", "ann", 0.0)
    filled(slots)
    slots.acquire("small", "bob", 0.0)
    assert slots.plan(0.0) == Plan()


def test_a_spare_makes_room_only_where_that_helps() -> None:
    """One that its profile has a right to is kept; another one goes, although the pool has room for the reserve."""
    slots = ledger({"small": Target(1), "large": Target(2, None, 2), "other": Target(0)}, most=3)
    filled(slots)
    slots.acquire("other", "ann", 0.0)
    [retired] = slots.plan(0.0).retire
    assert retired.profile == "small"
    slots = ledger({"small": Target(1), "large": Target(0, None, 2), "other": Target(0)}, most=3)
    filled(slots)
    slots.acquire("other", "ann", 0.0)
    [retired] = slots.plan(0.0).retire
    assert retired.profile == "small"


# -- failing starts --------------------------------------------------------------------------------------------------


def test_failures_back_off_and_success_forgets_them() -> None:
    """Twice as long after each failure, with jitter down to half, up to a minute; other profiles start on."""
    slots = ledger({"small": Target(1), "large": Target(1)})
    now = 0.0
    for count in range(10):
        now += 1000.0
        fail(slots, "small", now)
        wait = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**count)
        assert slots.next_start_at(now) == now + wait
        assert [slot.profile for slot in slots.plan(now + wait - 0.01).start] in ([], ["large"])
    assert slots.next_start_at(now + 100) is None
    [slot] = started(slots, now + 100)
    slots.ready(slot, 0.0)
    slots.stop(slot)
    slots.exited(slot, now + 100, 0.0)
    fail(slots, "small", now + 100, jitter=0.0)
    assert slots.next_start_at(now + 100) == now + 100 + BACKOFF_BASE_S / 2


def test_a_profile_that_fails_starts_one_at_a_time() -> None:
    """After a failure the next start is a probe; the rest follows once it succeeded."""
    slots = ledger({"small": Target(3)})
    first = started(slots)
    assert len(first) == 3
    for slot in first:
        slots.exited(slot, 0.0, 1.0)
    [probe] = started(slots, 10.0)
    assert started(slots, 10.0) == []
    slots.ready(probe, 0.0)
    assert len(started(slots, 10.0)) == 2


def test_the_breaker_refuses_at_once() -> None:
    """After so many failures nobody is queued any more, everybody who waits is refused, and the rest goes on."""
    slots = ledger({"small": Target(1), "large": Target(1)})
    fail(slots, "small", 0.0)
    waiting = slots.acquire("small", "ann", 0.0)
    now = 0.0
    for _ in range(BREAKER_FAILURES - 1):
        assert slots.breaker_retry_s("small", now) is None
        now += 100.0
        fail(slots, "small", now)
    assert slots.breaker_retry_s("small", now) == 8.0
    assert slots.refuse_all("small") == [waiting]
    with pytest.raises(PoolFull, match="'small' keep failing") as caught:
        slots.acquire("small", "bob", now + 1.0)
    assert caught.value.retry_after_s == 7.0
    [large] = [slot for slot in slots if slot.profile == "large"]
    slots.ready(large, 0.0)
    assert slots.acquire("large", "bob", now).is_served
    assert slots.breaker_retry_s("large", now) is None


def broken(warm: int) -> tuple[Slots, float]:
    """A ledger whose breaker is open and whose wait is just over; the time."""
    slots, now = ledger({"small": Target(warm)}), 0.0
    for _ in range(BREAKER_FAILURES):
        now += 100.0
        if warm == 0:
            slots.acquire("small", "ann", now)
        fail(slots, "small", now)
        slots.refuse_all("small")
    assert slots.breaker_retry_s("small", now + 100.0) == 0.0
    return slots, now + 100.0


def test_the_refill_probes_behind_an_open_breaker() -> None:
    """When the wait is over a spare is tried; tenants are refused until it is there."""
    slots, now = broken(warm=1)
    [probe] = started(slots, now)
    with pytest.raises(PoolFull):
        slots.acquire("small", "ann", now)
    assert slots.ready(probe, 0.0) is None
    assert slots.breaker_retry_s("small", now) is None
    assert slots.acquire("small", "ann", now).slot is probe


def test_the_first_tenant_probes_where_there_are_no_spares() -> None:
    """Without a refill one tenant may try, the others are refused until it is served."""
    slots, now = broken(warm=0)
    assert started(slots, now) == []
    waiter = slots.acquire("small", "ann", now)
    with pytest.raises(PoolFull):
        slots.acquire("small", "bob", now)
    [probe] = started(slots, now)
    with pytest.raises(PoolFull):
        slots.acquire("small", "bob", now)
    assert slots.ready(probe, 0.0) is waiter
    assert not slots.acquire("small", "bob", now).is_served
    slots, now = broken(warm=0)
    slots.acquire("small", "ann", now)
    fail(slots, "small", now)
    assert slots.breaker_retry_s("small", now) == BACKOFF_BASE_S * 2**BREAKER_FAILURES


def test_a_conversation_under_way_outlives_the_breaker() -> None:
    """Whose own process starts already is not refused with the others."""
    slots = ledger({"small": Target(1)})
    own = slots.acquire("small", "ann", 0.0, own_start=True)
    slot = next(slot for slot in started(slots) if slot.reserved_for is own)
    other = slots.acquire("small", "bob", 0.0)
    assert slots.refuse_all("small") == [other]
    assert slots.ready(slot, 0.0) is own


def test_a_start_that_was_called_off_is_no_failure() -> None:
    """A process that is stopped while it starts says nothing about its profile."""
    slots = ledger()
    slot = started(slots)[0]
    slots.stop(slot)
    assert not slots.exited(slot, 0.0, 0.5)
    assert slots.next_start_at(0.0) is None


def test_whoever_has_a_process_on_its_way_is_not_short_of_one() -> None:
    """Nobody is asked for the process of a second session while that of the first one starts in its place."""
    slots = Slots(Bounds({"small": Target(0)}, max_processes=1, max_waiting=9, spawn_concurrency=1))
    first = slots.acquire("small", "ann", 0.0)
    assert slots.short_of == []
    [slot] = slots.plan(0.0).start
    second = slots.acquire("small", "bob", 0.0)
    assert slots.short_of == [second]
    assert slots.ready(slot, 1.0) is first
    assert slots.short_of == [second]
    slots.stop(slot)
    assert slots.short_of == []
