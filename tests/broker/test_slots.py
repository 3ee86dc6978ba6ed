"""The pool's ledger, one situation at a time; ``test_slots_model`` has them in any order."""

from collections import Counter

import pytest

from broker.slots import (
    BACKOFF_BASE_S,
    BACKOFF_CAP_S,
    BREAKER_FAILURES,
    TRANSITIONS,
    Plan,
    PoolFull,
    Slot,
    SlotEvent,
    Slots,
    SlotState,
    Target,
)
from protocol.codes import MissReason, Start

TARGETS = {"small": Target(2), "large": Target(0)}


def ledger(targets: dict[str, Target] | None = None, *, most: int = 8, waiting: int = 100, at_once: int = 8) -> Slots:
    return Slots(targets or TARGETS, max_processes=most, max_waiting=waiting, spawn_concurrency=at_once)


def started(slots: Slots, now: float = 0.0) -> list[Slot]:
    return slots.plan(now).start


def filled(slots: Slots, now: float = 0.0) -> list[Slot]:
    """Start and bring up whatever is planned; the slots that were started."""
    made = started(slots, now)
    for slot in made:
        slots.ready(slot)
    return made


def fail(slots: Slots, profile: str, now: float, jitter: float = 1.0) -> None:
    """One start of ``profile``, which fails."""
    [slot] = [slot for slot in started(slots, now) if slot.profile == profile]
    assert slots.exited(slot, now, jitter)


def states(slots: Slots, profile: str = "small") -> Counter[SlotState]:
    return Counter(slot.state for slot in slots if slot.profile == profile)


def test_the_table_has_no_way_back() -> None:
    """A leased slot can only stop and go; nothing leads to warm but a start, and nothing leads out of gone."""
    assert {after for (state, _), after in TRANSITIONS.items() if state is SlotState.LEASED} == {
        SlotState.STOPPING, SlotState.GONE
    }  # fmt: skip
    assert [state for (state, _), after in TRANSITIONS.items() if after is SlotState.WARM] == [SlotState.STARTING]
    assert not any(state is SlotState.GONE for state, _ in TRANSITIONS)
    assert all((state, SlotEvent.EXIT) in TRANSITIONS for state in SlotState if state is not SlotState.GONE)
    assert all((state, SlotEvent.STOP) in TRANSITIONS for state in SlotState if state is not SlotState.GONE)


def test_spares_are_started_up_to_the_target_and_replaced() -> None:
    """As many as wanted, not one more; after a lease the next one is started."""
    slots = ledger()
    first = filled(slots)
    assert len(first) == 2
    assert filled(slots) == []
    waiter = slots.acquire("small", "ann", 1.0)
    assert waiter.slot is first[0], "the oldest spare"
    assert (waiter.is_served, first[0].tenant, first[0].start) == (True, "ann", Start.WARM)
    assert len(filled(slots)) == 1
    assert states(slots) == {SlotState.LEASED: 1, SlotState.WARM: 2}


def test_a_spare_that_died_is_replaced() -> None:
    """The end of a warm process is no failure to start."""
    slots = ledger()
    spare = filled(slots)[0]
    slots.stop(spare)
    assert not slots.exited(spare, 1.0, 0.5)
    assert slots.next_start_at(1.0) is None
    assert len(started(slots, 1.0)) == 1


def test_starts_are_limited_at_once_and_in_all() -> None:
    """``spawn_concurrency`` bounds those that start, ``max_processes`` those that are there, stopping ones included."""
    slots = ledger({"small": Target(9)}, most=3, at_once=2)
    assert len(filled(slots)) == 2
    assert len(filled(slots)) == 1
    assert filled(slots) == []
    waiter = slots.acquire("small", "ann", 0.0)
    assert waiter.slot is not None
    slots.stop(waiter.slot)
    slots.stop(waiter.slot)
    assert started(slots) == []
    slots.exited(waiter.slot, 0.0, 0.5)
    assert len(started(slots)) == 1


def test_a_cold_waiter_is_told_why() -> None:
    """Without spares in the configuration the miss has another reason than with an empty pool."""
    slots = ledger()
    [large, small] = [slots.acquire(profile, "ann", 0.0) for profile in ("large", "small")]
    for slot in started(slots):
        slots.ready(slot)
    assert large.slot is not None
    assert small.slot is not None
    assert (large.slot.start, large.slot.miss_reason) == (Start.COLD, MissReason.POOL_DISABLED)
    assert (small.slot.start, small.slot.miss_reason) == (Start.COLD, MissReason.POOL_EMPTY)


def test_a_waiter_gets_the_next_slot_even_one_started_earlier() -> None:
    """Spares under way count for those who wait: no start more than needed."""
    slots = ledger(at_once=2)
    early = started(slots)
    waiter = slots.acquire("small", "ann", 1.0)
    assert started(slots, 1.0) == []
    assert slots.ready(early[1]) is waiter
    assert slots.ready(early[0]) is None
    assert states(slots) == {SlotState.LEASED: 1, SlotState.WARM: 1}


def test_tenants_are_served_in_turn() -> None:
    """A tenant that asks ten times does not push back one that asks once; within a tenant first come, first served."""
    slots = ledger({"small": Target(0)}, most=20, at_once=20)
    order = ["ann", "ann", "ann", "ann", "bob", "cyd", "bob"]
    waiters = [slots.acquire("small", tenant, float(at)) for at, tenant in enumerate(order)]
    assert [(w.tenant, w.since) for w in slots.waiting] == [
        ("ann", 0), ("bob", 4), ("cyd", 5), ("ann", 1), ("bob", 6), ("ann", 2), ("ann", 3)
    ]  # fmt: skip
    served = [slots.ready(slot) for slot in started(slots, 10.0)]
    assert [waiters.index(w) for w in served if w is not None] == [0, 4, 5, 1, 6, 2, 3]
    assert slots.waiting == []


def test_whoever_was_served_goes_to_the_end() -> None:
    """The turn is remembered between two slots, also when others come in between."""
    slots = ledger({"small": Target(0)}, at_once=1)
    for at, tenant in enumerate(["ann", "ann", "bob"]):
        slots.acquire("small", tenant, float(at))
    order = []
    for at in range(3):
        [slot] = started(slots, 10.0 + at)
        waiter = slots.ready(slot)
        assert waiter is not None
        order.append(waiter.tenant)
        if at == 0:
            slots.acquire("small", "cyd", 10.0)
    assert order == ["ann", "bob", "ann"]


def test_refill_waits_for_first_tokens() -> None:
    """While turns wait for their first token only tenants are served."""
    slots = ledger()
    assert slots.plan(0.0, hold_refill=True).start == []
    waiter = slots.acquire("small", "ann", 0.0)
    [slot] = slots.plan(0.0, hold_refill=True).start
    assert slots.ready(slot) is waiter
    assert len(started(slots)) == 2


def test_too_many_who_wait_are_refused_with_the_setting() -> None:
    """The refusal names the limit; a warm spare is given all the same, and a conversation's own start may wait."""
    slots = ledger({"small": Target(1), "large": Target(0)}, waiting=1)
    filled(slots)
    slots.acquire("large", "ann", 0.0)
    with pytest.raises(PoolFull, match=r"pool\.max_waiting = 1 ") as caught:
        slots.acquire("large", "bob", 0.0)
    assert caught.value.retry_after_s > 0
    assert slots.acquire("small", "bob", 0.0).is_served
    assert slots.acquire("large", "bob", 0.0, own_start=True) in slots.waiting


def test_withdrawing_leaves_no_trace() -> None:
    """Who gives up is skipped; giving up twice, or after being served, does nothing."""
    slots = ledger()
    waiter, other = slots.acquire("small", "ann", 0.0), slots.acquire("small", "ann", 1.0)
    slots.withdraw(waiter)
    slots.withdraw(waiter)
    slot = started(slots)[0]
    assert slots.ready(slot) is other
    slots.withdraw(other)
    assert slot.state is SlotState.LEASED
    assert slots.waiting == []


# -- starts for one conversation -------------------------------------------------------------------------------------


def test_a_conversation_gets_the_process_that_was_started_for_it() -> None:
    """No spare will do, and neither does one that is under way for somebody else."""
    slots = ledger()
    spare = filled(slots)[0]
    waiter = slots.acquire("small", "ann", 0.0, own_start=True)
    assert waiter.slot is None
    assert spare.state is SlotState.WARM
    [own] = started(slots)
    assert own.reserved_for is waiter
    assert started(slots) == []
    other = slots.acquire("large", "bob", 0.0)
    assert slots.ready(own) is waiter
    assert (own.start, own.miss_reason, own.tenant) == (Start.RESTORED, None, "ann")
    assert not other.is_served


def test_a_spare_under_way_is_not_counted_for_a_conversation() -> None:
    """Its own start begins at once, beside the refill."""
    slots = ledger()
    assert len(started(slots)) == 2
    waiter = slots.acquire("small", "ann", 0.0, own_start=True)
    [own] = started(slots)
    assert own.reserved_for is waiter


def test_a_conversation_is_never_handed_on() -> None:
    """Who leaves before the restored process is ready takes it along: it is retired, once, and serves nobody."""
    slots = ledger({"small": Target(0)})
    leaver = slots.acquire("small", "ann", 0.0, own_start=True)
    [own] = started(slots)
    stranger = slots.acquire("small", "bob", 1.0)
    slots.withdraw(leaver)
    assert slots.ready(own) is None
    assert own.tenant is None
    plan = slots.plan(1.0)
    assert plan.retire == [own]
    assert [slot.reserved_for for slot in plan.start] == [None]
    assert slots.plan(1.0).retire == []
    assert not slots.exited(own, 2.0, 0.5)
    assert slots.ready(plan.start[0]) is stranger


def test_a_deserted_process_that_is_gone_is_not_retired() -> None:
    """Between leaving and the next plan it may have ended by itself."""
    slots = ledger({"small": Target(0)})
    leaver = slots.acquire("small", "ann", 0.0, own_start=True)
    [own] = started(slots)
    slots.withdraw(leaver)
    slots.exited(own, 0.0, 0.5)
    assert slots.plan(0.0).retire == []


def test_a_conversation_that_cannot_be_restored_says_nothing_about_its_profile() -> None:
    """The waiter is told; no back-off, no breaker."""
    slots = ledger({"small": Target(0)})
    for _ in range(BREAKER_FAILURES + 1):
        waiter = slots.acquire("small", "ann", 0.0, own_start=True)
        [own] = started(slots)
        assert not slots.exited(own, 0.0, 0.5)
        assert (waiter.is_failed, waiter.is_served) == (True, False)
    assert slots.next_start_at(0.0) is None
    assert slots.breaker_retry_s("small", 0.0) is None
    assert slots.waiting == []


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
    assert slots.ready(slot) is waiter
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
        assert slots.ready(own) is waiter


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
    assert slots.ready(slot) is second


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
    slots.ready(slot)
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
    slots.ready(probe)
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
    slots.ready(large)
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
    assert slots.ready(probe) is None
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
    assert slots.ready(probe) is waiter
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
    assert slots.ready(slot) is own


def test_a_start_that_was_called_off_is_no_failure() -> None:
    """A process that is stopped while it starts says nothing about its profile."""
    slots = ledger()
    slot = started(slots)[0]
    slots.stop(slot)
    assert not slots.exited(slot, 0.0, 0.5)
    assert slots.next_start_at(0.0) is None


def test_nothing_is_started_once_the_pool_closes() -> None:
    """The last plan is empty, whoever waits."""
    slots = ledger()
    slots.acquire("small", "ann", 0.0)
    slots.is_closing = True
    assert slots.plan(0.0) == Plan()
