"""The pool's ledger, one situation at a time; ``test_slots_model`` has them in any order."""

from collections import Counter

import pytest

from broker.pool.backoff import BACKOFF_BASE_S, BREAKER_FAILURES, EARLY_DEATH_S
from broker.pool.slot import TRANSITIONS, Slot, SlotEvent, SlotState
from broker.pool.slots import Bounds, Plan, PoolFull, Slots, Target
from protocol.codes import MissReason, Start

TARGETS = {"small": Target(2), "large": Target(0)}


def ledger(targets: dict[str, Target] | None = None, *, most: int = 8, waiting: int = 100, at_once: int = 8) -> Slots:
    return Slots(Bounds(targets or TARGETS, most, waiting, at_once))


def started(slots: Slots, now: float = 0.0) -> list[Slot]:
    return slots.plan(now).start


def filled(slots: Slots, now: float = 0.0) -> list[Slot]:
    """Start and bring up whatever is planned; the slots that were started."""
    made = started(slots, now)
    for slot in made:
        slots.ready(slot, 0.0)
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


def test_other_limits_hold_from_the_next_plan_on() -> None:
    """More spares are started; fewer end nobody, and what leaves above them is not replaced; who waits counts anew."""
    slots = ledger()
    filled(slots)
    slots.bounds = Bounds({"small": Target(4), "large": Target(0)}, 4, 0, 8)
    assert len(filled(slots)) == 2
    slots.bounds = Bounds({"small": Target(1), "large": Target(0)}, 2, 0, 8)
    assert (slots.plan(1.0), states(slots)) == (Plan(), {SlotState.WARM: 4})
    for _ in range(4):
        slots.acquire("small", "ann", 1.0)
    assert started(slots, 1.0) == []
    with pytest.raises(PoolFull, match="max_waiting = 0"):
        slots.acquire("small", "ann", 1.0)


def test_a_spare_that_died_is_replaced() -> None:
    """The end of a process that was warm for a while is no failure; the next one is started at once."""
    slots = ledger()
    spare = filled(slots)[0]
    slots.spare_died(spare, EARLY_DEATH_S, 0.5)
    assert not slots.exited(spare, EARLY_DEATH_S, 0.5)
    assert slots.next_start_at(EARLY_DEATH_S) is None
    assert len(started(slots, EARLY_DEATH_S)) == 1


def test_spares_that_die_at_once_are_replaced_ever_later() -> None:
    """Twice the wait each time, for spares only: who waits is served meanwhile, and the breaker stays closed."""
    slots, now = ledger({"small": Target(1)}), 0.0
    for count in range(7):
        [spare] = started(slots, now)
        slots.ready(spare, now)
        slots.spare_died(spare, now + 0.1, 1.0)
        slots.exited(spare, now + 0.2, 1.0)
        again = now + 0.1 + BACKOFF_BASE_S * 2**count
        assert slots.next_start_at(now + 0.2) == again
        assert started(slots, again - 0.01) == []
        assert slots.breaker_retry_s("small", now + 0.2) is None
        assert slots.is_resting("small", again - 0.01)
        assert not slots.is_resting("small", again)
        now = again
    [spare] = started(slots, now)
    slots.ready(spare, now)
    slots.spare_died(spare, now, 1.0)
    slots.exited(spare, now, 1.0)
    waiter = slots.acquire("small", "ann", now)
    [own] = started(slots, now)
    assert slots.ready(own, now) is waiter


def test_a_spare_that_lasts_forgives_those_that_died() -> None:
    """Whether it is leased then or dies: the next early death counts as the first."""
    for ends in ("leased", "dies"):
        slots = ledger({"small": Target(1)})
        [spare] = filled(slots)
        slots.spare_died(spare, 0.0, 1.0)
        slots.exited(spare, 0.0, 1.0)
        [spare] = started(slots, 100.0)
        slots.ready(spare, 100.0)
        if ends == "leased":
            assert slots.acquire("small", "ann", 100.0 + EARLY_DEATH_S).slot is spare
        else:
            slots.spare_died(spare, 100.0 + EARLY_DEATH_S, 1.0)
        [spare] = started(slots, 200.0)
        slots.ready(spare, 200.0)
        slots.spare_died(spare, 200.0, 1.0)
        assert slots.next_start_at(200.0) == 200.0 + BACKOFF_BASE_S


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


@pytest.mark.parametrize(
    ("profile", "own_start", "miss", "is_warm", "told"),
    [
        ("small", False, None, True, (Start.WARM, None)),
        ("small", False, None, False, (Start.COLD, MissReason.POOL_EMPTY)),
        ("large", False, None, False, (Start.COLD, MissReason.POOL_DISABLED)),
        ("other", True, MissReason.NO_PROFILE, True, (Start.COLD, MissReason.NO_PROFILE)),
        ("other", True, MissReason.NO_PROFILE, False, (Start.COLD, MissReason.NO_PROFILE)),
        ("small", True, None, True, (Start.RESTORED, None)),
        ("large", True, None, False, (Start.RESTORED, None)),
        ("other", True, None, False, (Start.RESTORED, None)),
    ],
)
def test_a_start_is_told_with_its_reason(
    profile: str, own_start: bool, miss: MissReason | None, is_warm: bool, told: tuple[Start, MissReason | None]
) -> None:
    """Warm without a reason; cold because the pool was empty, keeps none, or nobody configured it; restored."""
    slots = ledger(TARGETS | {"other": Target(0)})
    if is_warm:
        filled(slots)
    waiter = slots.acquire(profile, "ann", 0.0, own_start=own_start, miss=miss)
    for slot in [] if waiter.is_served else started(slots):
        slots.ready(slot, 0.0)
    assert waiter.slot is not None
    assert (waiter.slot.start, waiter.slot.miss_reason) == told


def test_a_waiter_gets_the_next_slot_even_one_started_earlier() -> None:
    """Spares under way count for those who wait: no start more than needed."""
    slots = ledger(at_once=2)
    early = started(slots)
    waiter = slots.acquire("small", "ann", 1.0)
    assert started(slots, 1.0) == []
    assert slots.ready(early[1], 0.0) is waiter
    assert slots.ready(early[0], 0.0) is None
    assert states(slots) == {SlotState.LEASED: 1, SlotState.WARM: 1}


def test_tenants_are_served_in_turn() -> None:
    """A tenant that asks ten times does not push back one that asks once; within a tenant first come, first served."""
    slots = ledger({"small": Target(0)}, most=20, at_once=20)
    order = ["ann", "ann", "ann", "ann", "bob", "cyd", "bob"]
    waiters = [slots.acquire("small", tenant, float(at)) for at, tenant in enumerate(order)]
    assert [(w.tenant, w.since) for w in slots.waiting] == [
        ("ann", 0), ("bob", 4), ("cyd", 5), ("ann", 1), ("bob", 6), ("ann", 2), ("ann", 3)
    ]  # fmt: skip
    served = [slots.ready(slot, 0.0) for slot in started(slots, 10.0)]
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
        waiter = slots.ready(slot, 0.0)
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
    assert slots.ready(slot, 0.0) is waiter
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


def test_an_unknown_profile_waits_with_the_others() -> None:
    """Started for one tenant alone, in turn, in the bounds of the whole pool; a spare makes room for it."""
    slots = ledger({"small": Target(2), "other": Target(0)}, most=2, waiting=2)
    spares = filled(slots)
    waiters = [
        slots.acquire("other", tenant, 0.0, own_start=True, miss=MissReason.NO_PROFILE) for tenant in ("ann", "bob")
    ]
    assert slots.waiting == waiters
    with pytest.raises(PoolFull, match=r"pool\.max_waiting = 2 "):
        slots.acquire("other", "cyd", 0.0, own_start=True, miss=MissReason.NO_PROFILE)
    plan = slots.plan(0.0)
    assert (plan.start, plan.retire) == ([], spares[:1])
    slots.exited(spares[0], 0.0, 0.5)
    [own] = slots.plan(0.0).start
    assert own.reserved_for is waiters[0]
    assert not slots.exited(own, 1.0, 0.5), "no failure of a profile's"
    assert waiters[0].is_failed
    assert slots.breaker_retry_s("other", 1.0) is None
    [own] = slots.plan(1.0).start
    assert slots.ready(own, 1.0) is waiters[1]


def test_withdrawing_leaves_no_trace() -> None:
    """Who gives up is skipped; giving up twice, or after being served, does nothing."""
    slots = ledger()
    waiter, other = slots.acquire("small", "ann", 0.0), slots.acquire("small", "ann", 1.0)
    slots.withdraw(waiter)
    slots.withdraw(waiter)
    slot = started(slots)[0]
    assert slots.ready(slot, 0.0) is other
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
    assert slots.ready(own, 0.0) is waiter
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
    assert slots.ready(own, 0.0) is None
    assert own.tenant is None
    plan = slots.plan(1.0)
    assert plan.retire == [own]
    assert [slot.reserved_for for slot in plan.start] == [None]
    assert slots.plan(1.0).retire == []
    assert not slots.exited(own, 2.0, 0.5)
    assert slots.ready(plan.start[0], 0.0) is stranger


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
