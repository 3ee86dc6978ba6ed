"""The pool's ledger: which process is whose, who waits, what is to be started or retired.

Pure: no I/O; ``now`` is seconds of a monotonic clock.  Owner: ``broker.pool.pool.Pool``, which carries out what is
decided here.  A slot that was leased is never warm again: the table (``broker.pool.slot``) has no way back.
Over 300 lines because who is served, what is started and what is retired is decided by one look at all slots and all
who wait.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from broker.config.limits import Limits
from broker.pool.backoff import Health
from broker.pool.quotas import UNCAPPED, StartQuota
from broker.pool.slot import Slot, SlotEvent, SlotState, Waiter
from protocol.codes import MissReason, Start


@dataclass(frozen=True, slots=True)
class Target:
    """How many processes of a profile to keep: ``warm`` spares, at most ``limit`` in all (None: no own limit), and
    room for ``reserve`` that no other profile may take."""

    warm: int
    limit: int | None = None
    reserve: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the pool may do: how many of which profile (by name), how many in all, waiting, and starting at a time."""

    targets: dict[str, Target]
    max_processes: int
    max_waiting: int
    spawn_concurrency: int


@dataclass(slots=True)
class Plan:
    """What the shell is to do now: start these slots, retire those."""

    start: list[Slot] = field(default_factory=list)
    retire: list[Slot] = field(default_factory=list)


class PoolFull(Exception):
    """Nobody may wait any more, or starts keep failing; ``retry_after_s`` is a hint, ``message`` the operator's."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class Slots:
    """The ledger.  All methods are synchronous; ``plan`` is called after each change.

    ``bounds`` may be replaced at any time by others of the same profiles; what is above them already is left to end.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._slots: dict[int, Slot] = {}
        self._queues: dict[str, deque[Waiter]] = {}  # by tenant; the dict's order is the round robin
        self._health = {name: Health() for name in bounds.targets}
        self._quota = StartQuota()
        self._next_id = 1
        self._deserted: list[Slot] = []
        self.is_closing = False

    # -- asking --

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self._slots.values()))

    def count(self, profile: str, state: SlotState) -> int:
        """Slots of ``profile`` in ``state``."""
        return sum(slot.profile == profile and slot.state is state for slot in self._slots.values())

    @property
    def waiting(self) -> list[Waiter]:
        """Everybody who waits, in the order in which they will be served: round robin over tenants."""
        queues = [list(queue) for queue in self._queues.values()]
        longest = max(map(len, queues), default=0)
        return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]

    @property
    def short_of(self) -> list[Waiter]:
        """Those who wait because there is no room: a process that ends makes some."""
        full = {name for name in self.bounds.targets if self._is_full(name) or self._is_at_limit(name)}
        short = [waiter for waiter in self._without_a_start if waiter.profile in full]
        ending = sum(slot.state is SlotState.STOPPING for slot in self._slots.values())
        return short[ending:]

    def breaker_retry_s(self, profile: str, now: float) -> float | None:
        """Seconds until the next probe when starts of ``profile`` keep failing, else None."""
        return self._health[profile].retry_s(now)

    def is_resting(self, profile: str, now: float) -> bool:
        """Spares of ``profile`` are put off because they die at once; starts work, so whoever comes is served."""
        health = self._health[profile]
        return not health.failures and now < health.refill_from

    # -- leasing --

    def acquire(
        self, profile: str, tenant: str, now: float, limits: Limits = UNCAPPED, *,
        own_start: bool = False, miss: MissReason | None = None,
    ) -> Waiter:  # fmt: skip
        """Ask for a process.  ``waiter.slot`` is set at once when a spare is warm; otherwise it waits its turn.

        ``limits`` are the tenant's; ``own_start`` and ``miss``: see ``Waiter``.  Raises ``PoolFull`` when
        ``max_waiting`` wait already or the breaker is open, ``QuotaExceeded`` when the tenant has what it may have.
        """
        waiter = Waiter(profile, tenant, now, own_start, miss)
        waiting = len(self._queues.get(tenant, ()))
        self._quota.check_processes(limits, self._leased(tenant), waiting)
        if not own_start and not self._waits_before(waiter):
            spare = self._oldest_spare(profile)
            if spare is not None:
                self._health[profile].spare_served(now - spare.ready_at)
                self._lease(spare, waiter, Start.WARM, None)
                return waiter
        retry = self.breaker_retry_s(profile, now)
        if retry is not None and (retry > 0 or self._is_probed(profile)):
            raise PoolFull(f"processes of profile {profile!r} keep failing to start", retry)
        if not waiter.is_restore and sum(map(len, self._queues.values())) >= self.bounds.max_waiting:
            raise PoolFull(f"pool.max_waiting = {self.bounds.max_waiting} tenants wait already", 5.0)
        self._quota.check_wait(tenant, limits, waiting, now, is_restore=waiter.is_restore)
        self._quota.waits(tenant, limits, now)
        self._queues.setdefault(tenant, deque()).append(waiter)
        return waiter

    def withdraw(self, waiter: Waiter) -> None:
        """The waiter gives up; harmless when it was served or withdrawn.  A process that was started for it alone
        holds its conversation: the next ``plan`` retires it."""
        queue = self._queues.get(waiter.tenant)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            if not queue:
                del self._queues[waiter.tenant]
        for slot in self._slots.values():
            if slot.reserved_for is waiter:
                slot.reserved_for = None
                self.stop(slot)
                self._deserted.append(slot)

    def _leased(self, tenant: str) -> int:
        return sum(slot.state is SlotState.LEASED and slot.tenant == tenant for slot in self._slots.values())

    def _is_probed(self, profile: str) -> bool:
        """Somebody already finds out whether a start of ``profile`` works again."""
        return self.count(profile, SlotState.STARTING) > 0 or any(w.profile == profile for w in self.waiting)

    def _waits_before(self, waiter: Waiter) -> bool:
        return any(other.profile == waiter.profile and not other.own_start for other in self.waiting)

    def _oldest_spare(self, profile: str) -> Slot | None:
        spares = (s for s in self._slots.values() if s.state is SlotState.WARM and s.profile == profile)
        return min(spares, key=lambda slot: slot.id, default=None)

    def _lease(self, slot: Slot, waiter: Waiter, start: Start, miss: MissReason | None) -> None:
        slot.advance(SlotEvent.LEASE)
        slot.tenant, slot.start, slot.miss_reason = waiter.tenant, start, miss
        waiter.slot = slot

    # -- what happens to a slot --

    def ready(self, slot: Slot, now: float) -> Waiter | None:
        """The process proved itself ready: the waiter that gets it, or None when it becomes a spare, or is to end."""
        if slot.state is SlotState.STOPPING:
            return None
        slot.advance(SlotEvent.READY)
        slot.ready_at = now
        self._health[slot.profile].came_up()
        own = slot.reserved_for
        waiter = own or next((w for w in self.waiting if w.profile == slot.profile and not w.own_start), None)
        if waiter is None:
            return None
        slot.reserved_for = None
        self.withdraw(waiter)
        if queue := self._queues.pop(waiter.tenant, None):
            self._queues[waiter.tenant] = queue  # served: the tenant goes to the end of the round
        if waiter.own_start:
            miss = waiter.miss
        else:
            miss = MissReason.POOL_EMPTY if self.bounds.targets[slot.profile].warm else MissReason.POOL_DISABLED
        self._lease(slot, waiter, Start.RESTORED if waiter.is_restore else Start.COLD, miss)
        return waiter

    def spare_died(self, slot: Slot, now: float, jitter: float) -> None:
        """A warm process ended by itself.  Its replacement waits when it had lived for a moment only."""
        self._health[slot.profile].spare_died(now - slot.ready_at, now, jitter)
        self.stop(slot)

    def stop(self, slot: Slot) -> None:
        """The slot's process is to end: its lease is over, or it is retired."""
        slot.advance(SlotEvent.STOP)

    def exited(self, slot: Slot, now: float, jitter: float) -> bool:
        """The process is gone; True when it died before it was ready.  ``jitter`` is a random number in 0..1."""
        was_starting = slot.state is SlotState.STARTING
        slot.advance(SlotEvent.EXIT)
        del self._slots[slot.id]
        own, slot.reserved_for = slot.reserved_for, None
        if own is not None:  # that one waiter's options or transcript do not start says nothing about the profile
            own.is_failed = True
            self.withdraw(own)
            return False
        if was_starting:
            self._health[slot.profile].failed(now, jitter)
        return was_starting

    def refuse_all(self, profile: str) -> list[Waiter]:
        """Take out everybody who waits for ``profile``, but for those whose own process starts: its breaker opened."""
        starting = self._reserved_for()
        refused = [waiter for waiter in self.waiting if waiter.profile == profile and waiter not in starting]
        for waiter in refused:
            self.withdraw(waiter)
        return refused

    # -- deciding --

    def plan(self, now: float, *, hold_refill: bool = False) -> Plan:
        """What to start and what to retire now.  ``hold_refill``: turns wait for their first token, so only tenants
        who wait are served, spares later."""
        plan = Plan()
        if self.is_closing:
            return plan
        plan.retire += [slot for slot in self._deserted if slot.id in self._slots]
        self._deserted.clear()
        unmet = self._start_for_waiters(plan, now)
        if not unmet and not hold_refill:
            self._refill(plan, now)
        self._make_room(plan, unmet)
        return plan

    def next_start_at(self, now: float) -> float | None:
        """When a start that a failure has put off may be tried; None when nothing is put off."""
        times = [at for health in self._health.values() for at in health.put_off_until if at > now]
        return min(times, default=None)

    def _may_start(self, profile: str, now: float) -> bool:
        starting = [slot for slot in self._slots.values() if slot.state is SlotState.STARTING]
        health = self._health[profile]
        return (
            not self._is_full(profile)
            and len(starting) < self.bounds.spawn_concurrency
            and not self._is_at_limit(profile)
            and now >= health.not_before
            and not (health.failures and any(slot.profile == profile for slot in starting))
        )

    def _is_at_limit(self, profile: str) -> bool:
        limit = self.bounds.targets[profile].limit
        return limit is not None and sum(slot.profile == profile for slot in self._slots.values()) >= limit

    def _reserved_for(self) -> set[Waiter]:
        return {slot.reserved_for for slot in self._slots.values() if slot.reserved_for is not None}

    def _is_full(self, profile: str) -> bool:
        """No room for ``profile``: what other profiles have a right to and do not use yet counts as taken."""
        used = Counter(slot.profile for slot in self._slots.values())
        reserved = sum(max(0, t.reserve - used[name]) for name, t in self.bounds.targets.items() if name != profile)
        return len(self._slots) + reserved >= self.bounds.max_processes

    @property
    def _without_a_start(self) -> list[Waiter]:
        """Those who wait and for whom no process starts yet."""
        coming = {name: self._unreserved_starting(name) for name in self.bounds.targets}
        reserved = self._reserved_for()
        found: list[Waiter] = []
        for waiter in self.waiting:
            if waiter in reserved:
                continue
            if not waiter.own_start and coming[waiter.profile] > 0:
                coming[waiter.profile] -= 1
            else:
                found.append(waiter)
        return found

    def _start_for_waiters(self, plan: Plan, now: float) -> list[Waiter]:
        unmet: list[Waiter] = []
        for waiter in self._without_a_start:
            if self._may_start(waiter.profile, now):
                plan.start.append(self._new_slot(waiter.profile, now, waiter if waiter.own_start else None))
            else:
                unmet.append(waiter)
        return unmet

    def _refill(self, plan: Plan, now: float) -> None:
        wanted = [waiter.profile for waiter in self.waiting if not waiter.own_start]
        for name, target in self.bounds.targets.items():
            if now < self._health[name].refill_from:
                continue
            have = self.count(name, SlotState.WARM) + self._unreserved_starting(name) - wanted.count(name)
            while have < target.warm and self._may_start(name, now):
                plan.start.append(self._new_slot(name, now, None))
                have += 1

    def _make_room(self, plan: Plan, unmet: list[Waiter]) -> None:
        """Retire a spare that helps nobody who waits, where the pool or the profile that one of them needs is full.
        One that its profile has a right to would make room for nobody else."""
        needed = {waiter.profile for waiter in unmet}
        wanted = {waiter.profile for waiter in unmet if not waiter.own_start}
        crowded = {profile for profile in needed if self._is_at_limit(profile)}
        used = Counter(slot.profile for slot in self._slots.values())
        if any(self._is_full(profile) for profile in needed):
            crowded |= needed | {name for name, target in self.bounds.targets.items() if used[name] > target.reserve}
        spares = [
            slot
            for slot in self._slots.values()
            if slot.state is SlotState.WARM and slot.profile in crowded and slot.profile not in wanted
        ]
        stopping = sum(slot.state is SlotState.STOPPING for slot in self._slots.values())
        if spares and stopping < len(unmet):
            self.stop(spares[0])
            plan.retire.append(spares[0])

    def _unreserved_starting(self, profile: str) -> int:
        return sum(
            slot.profile == profile and slot.state is SlotState.STARTING and slot.reserved_for is None
            for slot in self._slots.values()
        )

    def _new_slot(self, profile: str, now: float, waiter: Waiter | None) -> Slot:
        slot = Slot(self._next_id, profile, now, reserved_for=waiter)
        self._next_id += 1
        self._slots[slot.id] = slot
        return slot
