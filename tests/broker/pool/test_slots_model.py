"""The pool's ledger as a state machine: whatever happens in whatever order, it keeps its promises."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker.config.limits import Limits
from broker.pool.backoff import BACKOFF_CAP_S, EARLY_DEATH_S
from broker.pool.quotas import COLD_WITHIN_S, QuotaExceeded
from broker.pool.slot import Slot, SlotState, Waiter
from broker.pool.slots import Bounds, PoolFull, Slots, Target
from protocol.codes import Limit, MissReason, Start
from tests.soak import size

TENANTS = st.sampled_from(["ann", "bob", "cyd"])
PROFILES = st.sampled_from(["small", "large"])


def acquired(
    slots: Slots, profile: str, tenant: str, now: float, limits: Limits, *,
    own_start: bool = False, miss: MissReason | None = None,
) -> Waiter | Limit | None:  # fmt: skip
    """A waiter, or when refused None or the tenant's limit."""
    try:
        return slots.acquire(profile, tenant, now, limits, own_start=own_start, miss=miss)
    except PoolFull:
        return None
    except QuotaExceeded as full:
        return full.limit


class Ledger(RuleBasedStateMachine):
    """A shell that carries out every plan, on processes that come up, fail and end at random."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.leases: dict[Slot, Waiter] = {}
        self.was_leased: set[Slot] = set()
        self.waiters: list[Waiter] = []
        self.waits: list[tuple[str, float]] = []
        self.retired: set[Slot] = set()
        self.rings: dict[str, int] = {}
        self.turn = 0

    @initialize(
        warm=st.tuples(st.integers(0, 3), st.integers(0, 2)),
        limits=st.tuples(st.none() | st.integers(1, 4), st.none() | st.integers(1, 3)),
        reserve=st.integers(0, 2),
        most=st.integers(2, 6),
        waiting=st.integers(0, 6),
        at_once=st.integers(1, 3),
        caps=st.tuples(*[st.none() | st.integers(1, 3)] * 3),
    )
    def configure(
        self, warm: tuple[int, int], limits: tuple[int | None, int | None], reserve: int, most: int, waiting: int,
        at_once: int, caps: tuple[int | None, int | None, int | None],
    ) -> None:  # fmt: skip
        targets = {
            "small": Target(min(warm[0], limits[0] or 9), limits[0]),
            "large": Target(min(warm[1], limits[1] or 9), limits[1], min(reserve, limits[1] or 9, most - 1)),
            "other": Target(0),
        }
        self.limits = Limits(
            tenant_processes=caps[0], tenant_waiting=caps[1], tenant_cold_starts_per_minute=caps[2]
        )  # fmt: skip
        self.most, self.max_waiting, self.at_once = most, waiting, at_once
        self.slots = Slots(Bounds(targets, most, waiting, at_once))

    def of(self, state: SlotState, profile: str | None = None) -> list[Slot]:
        return [slot for slot in self.slots if slot.state is state and profile in (None, slot.profile)]

    # -- what happens --

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 90.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(profile=PROFILES, tenant=TENANTS, own_start=st.booleans())
    def acquire(self, profile: str, tenant: str, own_start: bool) -> None:
        spares = self.of(SlotState.WARM, profile)
        rivals = [w for w in self.slots.waiting if w.profile == profile and not w.own_start]
        retry = self.slots.breaker_retry_s(profile, self.now)
        used = self.used(tenant)
        waiter = acquired(self.slots, profile, tenant, self.now, self.limits, own_start=own_start)
        if isinstance(waiter, Limit):
            self.is_over(waiter, tenant, used, is_restore=own_start, is_cold=own_start or bool(rivals) or not spares)
            return
        if waiter is None:
            assert own_start or rivals or not spares, "refused although a spare was warm"
            assert retry is not None or (not own_start and len(self.slots.waiting) >= self.max_waiting)
            return
        if waiter.slot is None:
            assert own_start or rivals or not spares, "waits although a spare was warm"
            self.joined(waiter)
            return
        assert not own_start
        assert waiter.slot is min(spares, key=lambda slot: slot.born_at)
        assert (waiter.slot.start, waiter.slot.miss_reason) == (Start.WARM, None)
        self.leased(waiter)

    @rule(tenant=TENANTS)
    def acquire_unknown(self, tenant: str) -> None:
        used, miss = self.used(tenant), MissReason.NO_PROFILE
        waiter = acquired(self.slots, "other", tenant, self.now, self.limits, own_start=True, miss=miss)
        if isinstance(waiter, Limit):
            self.is_over(waiter, tenant, used, is_restore=False, is_cold=True)
            return
        if waiter is None:
            assert len(self.slots.waiting) >= self.max_waiting
            return
        assert not waiter.is_served, "an unknown profile has no spares"
        self.joined(waiter)

    def used(self, tenant: str) -> tuple[int, int]:
        """The tenant's processes, and how often it waits."""
        leased = sum(slot.tenant == tenant for slot in self.of(SlotState.LEASED))
        return leased, sum(waiter.tenant == tenant for waiter in self.waiters)

    def is_over(
        self, limit: Limit, tenant: str, used: tuple[int, int], *, is_restore: bool, is_cold: bool
    ) -> None:  # fmt: skip
        """A tenant is refused for its own sake only where it has what it may have; nothing has changed then."""
        assert used == self.used(tenant)
        if limit is Limit.TENANT_PROCESSES:
            assert sum(used) == self.limits.tenant_processes
            return
        assert is_cold, "refused although a spare was warm"
        if limit is Limit.TENANT_WAITING:
            assert not is_restore
            assert self.limits.tenant_waiting is not None
            assert used[1] >= self.limits.tenant_waiting
        else:
            assert limit is Limit.TENANT_COLD_STARTS_PER_MINUTE
            assert self.cold_starts(tenant) == self.limits.tenant_cold_starts_per_minute

    def cold_starts(self, tenant: str) -> int:
        """How often the tenant began to wait within a minute."""
        return sum(name == tenant and self.now - at < COLD_WITHIN_S for name, at in self.waits)

    def joined(self, waiter: Waiter) -> None:
        self.waiters.append(waiter)
        self.waits.append((waiter.tenant, self.now))
        if sum(other.tenant == waiter.tenant for other in self.slots.waiting) == 1:
            self.turn += 1
            self.rings[waiter.tenant] = self.turn

    def left(self, waiter: Waiter) -> None:
        """It waits no more, and has nothing."""
        self.waiters.remove(waiter)

    def unleased(self, slot: Slot) -> None:
        """Whoever had the process, if anybody, has it no more."""
        self.leases.pop(slot, None)

    def leased(self, waiter: Waiter) -> None:
        slot = waiter.slot
        assert slot is not None
        assert slot not in self.was_leased, "leased a second time"
        assert slot.state is SlotState.LEASED
        assert (slot.profile, slot.tenant) == (waiter.profile, waiter.tenant)
        assert waiter.is_served
        assert slot.reserved_for is None
        self.was_leased.add(slot)
        self.leases[slot] = waiter

    @precondition(lambda self: bool(self.of(SlotState.STARTING)))
    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.of(SlotState.STARTING)))
        own, queue = slot.reserved_for, self.slots.waiting
        rivals = [w for w in queue if w.profile == slot.profile and not w.own_start]
        waiter = self.slots.ready(slot, self.now)
        if own is None and not rivals:
            assert waiter is None
            assert slot.state is SlotState.WARM
            return
        assert waiter is not None
        self.waiters.remove(waiter)
        self.leased(waiter)
        if own is not None:
            assert waiter is own
            assert (slot.start, slot.miss_reason) == (Start.COLD if own.miss else Start.RESTORED, own.miss)
        else:
            assert waiter is rivals[0]
            self.is_fair(waiter, rivals, queue)
            disabled = self.slots.bounds.targets[slot.profile].warm == 0
            missed = MissReason.POOL_DISABLED if disabled else MissReason.POOL_EMPTY
            assert (slot.start, slot.miss_reason) == (Start.COLD, missed)
        self.turn += 1
        self.rings[waiter.tenant] = self.turn

    def is_fair(self, chosen: Waiter, rivals: list[Waiter], queue: list[Waiter]) -> None:
        """First come first served within a tenant; of tenants whose turn it could be, the one that waits longest."""
        assert all(chosen.since <= other.since for other in rivals if other.tenant == chosen.tenant)
        heads = {waiter.tenant: waiter for waiter in reversed(queue)}  # the first of each tenant
        candidates = [waiter for waiter in heads.values() if waiter in rivals]
        if candidates:
            assert chosen is min(candidates, key=lambda waiter: self.rings[waiter.tenant])

    @precondition(lambda self: bool(list(self.slots)))
    @rule(data=st.data(), jitter=st.floats(0, 1))
    def exit(self, data: st.DataObject, jitter: float) -> None:
        slot = data.draw(st.sampled_from(list(self.slots)))
        state, own = slot.state, slot.reserved_for
        failed = self.slots.exited(slot, self.now, jitter)
        assert slot.state is SlotState.GONE
        assert failed == (state is SlotState.STARTING and own is None)
        self.unleased(slot)
        if own is not None:
            assert own.is_failed
            assert not own.is_served
            self.left(own)
        if failed:
            next_start = self.slots.next_start_at(self.now)
            assert next_start is not None
            assert next_start - self.now <= BACKOFF_CAP_S
            if self.slots.breaker_retry_s(slot.profile, self.now) is not None:
                for refused in self.slots.refuse_all(slot.profile):
                    self.left(refused)

    @precondition(lambda self: bool(self.of(SlotState.WARM)))
    @rule(data=st.data(), jitter=st.floats(0, 1))
    def spare_dies(self, data: st.DataObject, jitter: float) -> None:
        slot = data.draw(st.sampled_from(self.of(SlotState.WARM)))
        is_early = self.now - slot.ready_at < EARLY_DEATH_S
        self.slots.spare_died(slot, self.now, jitter)
        assert slot.state is SlotState.STOPPING
        assert not self.slots.exited(slot, self.now, jitter)
        started = self.slots.plan(self.now).start
        if is_early and not self.waiters:
            assert slot.profile not in [other.profile for other in started]
            assert self.slots.next_start_at(self.now) is not None

    @precondition(lambda self: bool(self.leases))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.leases, key=lambda slot: slot.id)))
        self.slots.stop(slot)
        self.unleased(slot)
        assert slot.state is SlotState.STOPPING

    @precondition(lambda self: bool(self.waiters))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiters))
        own = [slot for slot in self.slots if slot.reserved_for is waiter]
        self.slots.withdraw(waiter)
        self.slots.withdraw(waiter)
        self.left(waiter)
        for slot in own:  # it holds the conversation of the one who left
            assert slot.state is SlotState.STOPPING
            assert self.slots.ready(slot, self.now) is None
            retired = self.slots.plan(self.now).retire
            assert slot in retired
            self.retired |= set(retired)

    @rule(hold=st.booleans())
    def plan(self, hold: bool) -> None:
        before = Counter(slot.profile for slot in self.slots)
        warm = {slot for slot in self.slots if slot.state is SlotState.WARM}
        unserved = [waiter for waiter in self.slots.waiting if waiter.slot is None]
        plan = self.slots.plan(self.now, hold_refill=hold)
        for slot in plan.start:
            target = self.slots.bounds.targets[slot.profile]
            before[slot.profile] += 1
            assert target.limit is None or before[slot.profile] <= target.limit
            assert slot.state is SlotState.STARTING
            assert slot.born_at == self.now
        if hold:
            assert len(plan.start) <= len(unserved), "a spare was started while turns wait for their first token"
        for slot in plan.retire:
            assert slot.state is SlotState.STOPPING
            assert unserved or slot not in warm, "a spare was retired for nobody"
            assert slot not in self.retired, "retired a second time"
        self.retired |= set(plan.retire)

    # -- what always holds --

    @invariant()
    def bounds_hold(self) -> None:
        live = list(self.slots)
        assert len(live) <= self.most
        assert len(self.of(SlotState.STARTING)) <= self.at_once
        assert sum(not waiter.is_restore for waiter in self.slots.waiting) <= self.max_waiting
        assert self.slots.breaker_retry_s("other", self.now) is None
        assert not self.of(SlotState.WARM, "other")
        for profile in self.slots.bounds.targets:
            assert sum(self.slots.count(profile, state) for state in SlotState) == sum(
                slot.profile == profile for slot in live
            )

    @invariant()
    def no_tenant_has_more_than_it_may_have(self) -> None:
        for tenant in ("ann", "bob", "cyd"):
            leased, waiting = self.used(tenant)
            new = sum(waiter.tenant == tenant and not waiter.is_restore for waiter in self.waiters)
            processes, places = self.limits.tenant_processes, self.limits.tenant_waiting
            starts = self.limits.tenant_cold_starts_per_minute
            assert processes is None or leased + waiting <= processes
            assert places is None or new <= places
            assert starts is None or self.cold_starts(tenant) <= starts

    @invariant()
    def nobody_is_lost(self) -> None:
        assert set(self.slots.waiting) == set(self.waiters)
        assert len(self.slots.waiting) == len(self.waiters)
        assert set(self.of(SlotState.LEASED)) == set(self.leases)
        for slot in self.slots:
            assert slot.reserved_for is None or slot.reserved_for in self.waiters
            assert slot.reserved_for is None or slot.reserved_for.own_start

    @invariant()
    def no_spare_lies_idle_while_somebody_waits(self) -> None:
        wanted = {waiter.profile for waiter in self.waiters if not waiter.own_start}
        assert not [slot for slot in self.of(SlotState.WARM) if slot.profile in wanted]

    @invariant()
    def nobody_is_short_for_whom_a_process_starts(self) -> None:
        short, starting = self.slots.short_of, self.of(SlotState.STARTING)
        assert all(waiter in self.waiters for waiter in short)
        assert not {slot.reserved_for for slot in starting} & set(short)
        for profile in self.slots.bounds.targets:
            coming = sum(slot.profile == profile and slot.reserved_for is None for slot in starting)
            waiting = sum(waiter.profile == profile and not waiter.own_start for waiter in self.waiters)
            unserved = sum(waiter.profile == profile and not waiter.own_start for waiter in short)
            assert unserved <= max(0, waiting - coming)

    def teardown(self) -> None:
        """When nothing fails any more, everybody who can be served is, and then the spares reach their targets."""
        if not hasattr(self, "slots"):
            return
        self.now += 2 * BACKOFF_CAP_S
        for _ in range(4 * (len(self.waiters) + self.most) + 8):
            plan = self.slots.plan(self.now)
            for slot in self.of(SlotState.STOPPING):
                self.slots.exited(slot, self.now, 0.5)
            for slot in self.of(SlotState.STARTING):
                waiter = self.slots.ready(slot, self.now)
                if waiter is not None:
                    self.waiters.remove(waiter)
                    self.leased(waiter)
            if not plan.start and not plan.retire and self.leases and self.waiters:
                slot = next(iter(self.leases))  # somebody leaves, and the next one is served
                self.slots.stop(slot)
                self.unleased(slot)
        assert not self.waiters, "somebody waits although nothing fails"
        live = Counter(slot.profile for slot in self.slots)
        for name, target in self.slots.bounds.targets.items():
            reserved = sum(
                max(0, other.reserve - live[key]) for key, other in self.slots.bounds.targets.items() if key != name
            )
            is_full = sum(live.values()) + reserved >= self.most
            is_at_limit = target.limit is not None and live[name] >= target.limit
            assert self.slots.count(name, SlotState.WARM) >= target.warm or is_full or is_at_limit


def test_the_ledger_keeps_its_promises() -> None:
    """Bounds, fairness, no process leased twice, no conversation handed on, nobody forgotten, spares refilled."""
    run_state_machine_as_test(
        Ledger, settings=settings(max_examples=size(62, 250), stateful_step_count=50, deadline=None)
    )
