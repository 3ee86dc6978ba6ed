"""The pool's ledger, one situation at a time; ``test_slots_model`` has them in any order."""

from collections import Counter

import pytest

from broker.slots import (
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


def test_nothing_is_started_once_the_pool_closes() -> None:
    """The last plan is empty, whoever waits."""
    slots = ledger()
    slots.acquire("small", "ann", 0.0)
    slots.is_closing = True
    assert slots.plan(0.0) == Plan()
