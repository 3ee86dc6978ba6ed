"""Pool and conversations as one state machine: arrivals, words, cuts, crashes, rests and drains in any order."""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from broker.pool.quotas import QuotaExceeded
from broker.pool.relief import Idle, chosen
from broker.pool.slot import Slot, SlotState, Waiter
from broker.pool.slots import PoolFull
from protocol.codes import FailureReason
from protocol.errors import ClientError
from tests.broker.pool.test_slots_model import PROFILES, TENANTS, Ledger, acquired
from tests.broker.talk import LIMITS, MAX_QUEUED, Talk, View
from tests.soak import IS_SOAK, LONG_S, size

STEPS = size(2_000, 100_000)
IDS = [f"m-{number}" for number in range(24)]
ACTIONS = ["attach", "send", "send", "cancel", "drop", "resume", "stall", "catch up", "says", "result", "result"]

EVENTS = {*ACTIONS, "crash", "wake", "asked", "hibernate", "expire", "drain"}


class Life(Ledger):
    """The ledger's model, where each lease is a conversation: ``acquire`` of the ledger is the arrival of a new one."""

    steps: ClassVar[Iterator[int]] = itertools.count()
    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.talks: list[Talk] = []
        self.restoring: dict[Waiter, Talk] = {}

    @initialize(
        warm=st.tuples(st.integers(0, 2), st.integers(0, 1)),
        limits=st.tuples(st.none() | st.integers(2, 4), st.none()),
        most=st.integers(3, 6),
        at_once=st.integers(1, 3),
        caps=st.tuples(*[st.none() | st.integers(2, 4)] * 3),
        tenants=st.lists(TENANTS, min_size=2, max_size=6),
    )
    def configure(self, tenants: list[str], **rest: Any) -> None:
        """A pool with room, and some who are there already."""
        super().configure(**rest, reserve=0, waiting=6)
        for tenant in tenants:
            self.arrive(tenant, "small", is_served=True)

    def told(self, name: str) -> None:
        Life.seen[name] += 1

    # -- processes come and go --

    def leased(self, waiter: Waiter) -> None:
        super().leased(waiter)
        slot, talk = waiter.slot, self.restoring.pop(waiter, None)
        assert slot is not None
        if talk is None:
            talk = Talk(waiter.tenant, waiter.profile, self.now)
            talk.views.append(View(0, talk.epoch))
            self.talks.append(talk)
        assert (talk.tenant, talk.profile) == (slot.tenant, slot.profile)
        assert talk.slot is None, "two processes for one conversation"
        talk.slot = slot
        talk.rest.bound(self.now)
        talk.start_next(self.now)

    def unleased(self, slot: Slot) -> None:
        super().unleased(slot)
        for talk in [talk for talk in self.talks if talk.slot is slot]:
            self.told("crash" if talk.turns.current else "process gone")
            talk.process_gone(FailureReason.CLI_EXITED, self.now)

    def left(self, waiter: Waiter) -> None:
        super().left(waiter)
        self.restoring.pop(waiter, None)

    # -- what clients and their processes do --

    @rule(tenant=TENANTS, profile=PROFILES, is_served=st.booleans())
    def arrive(self, tenant: str, profile: str, is_served: bool) -> None:
        """A new conversation; ``is_served``: whatever has to happen for it, happens."""
        waiter = acquired(self.slots, profile, tenant, self.now, self.limits)
        if not isinstance(waiter, Waiter):
            return
        if waiter.slot is None:
            self.joined(waiter)
        else:
            self.leased(waiter)
        if is_served:
            self.settle()

    @rule()
    def settle(self) -> None:
        """What ends, ends; what starts, comes up."""
        for _ in range(3):
            for slot in self.of(SlotState.STOPPING):
                self.slots.exited(slot, self.now, 0.5)
            self.slots.plan(self.now)
            for slot in self.of(SlotState.STARTING):
                waiter = self.slots.ready(slot, self.now)
                if waiter is not None:
                    self.waiters.remove(waiter)
                    self.leased(waiter)
                    self.turn += 1
                    self.rings[waiter.tenant] = self.turn

    @precondition(lambda self: self.talks)
    @rule(data=st.data(), actions=st.lists(st.sampled_from(ACTIONS), min_size=6, max_size=24), first=st.integers(0, 23))
    def go_on(self, data: st.DataObject, actions: list[str], first: int) -> None:
        """Conversations go on: one event after the other, as far as each can happen."""
        for number, action in enumerate(actions):
            talk = data.draw(st.sampled_from(self.talks))
            self.act(talk, action, IDS[(first + number) % len(IDS)], data)
            self.every_process_is_one_conversations()
            self.now += 0.01

    def act(self, talk: Talk, action: str, message_id: str, data: st.DataObject) -> None:
        match action:
            case "attach":
                talk.views.append(View(talk.log.head, talk.epoch))
            case "send" if talk.views and len(talk.turns.queued_ids) >= MAX_QUEUED and message_id not in talk.accepted:
                with pytest.raises(ClientError):
                    talk.send(message_id, self.now)
            case "send" if talk.views:
                talk.send(message_id, self.now)
            case "cancel" if talk.turns.queued_ids:
                talk.cancel(self.now)
            case "drop" if talk.views:
                talk.leave(data.draw(st.sampled_from(talk.views)), self.now)
            case "resume" if talk.gone:
                talk.resume(data.draw(st.sampled_from(talk.gone)))
            case "stall" if talk.views:  # it takes nothing any more
                data.draw(st.sampled_from(talk.views)).is_slow = True
            case "catch up" if talk.views:
                view = data.draw(st.sampled_from(talk.views))
                view.is_slow = False
                talk.read(view)
            case "says" if talk.turns.current:
                for _ in range(5):
                    talk.publish()
            case "result" if talk.turns.current:
                talk.result(self.now)
            case _:
                return
        self.told(action)

    @precondition(lambda self: any(talk.is_wanted for talk in self.talks))
    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        """A conversation without a process asks for its next one."""
        waits = set(self.restoring.values())
        asleep = [talk for talk in self.talks if talk.is_wanted and talk not in waits]
        if not asleep:
            return
        talk = data.draw(st.sampled_from(asleep))
        try:
            waiter = self.slots.acquire(talk.profile, talk.tenant, self.now, self.limits, own_start=True)
        except (PoolFull, QuotaExceeded):
            talk.drop_queue(self.now)  # the queued messages end, and may be sent again
            return
        assert waiter.slot is None
        self.joined(waiter)
        self.restoring[waiter] = talk
        self.told("wake")

    @rule()
    def look(self) -> None:
        """As the tenures and the upkeep do it: rest when it is time, or when somebody is short of a process."""
        idle = [talk for talk in self.talks if talk.is_idle]
        short = [waiter.tenant for waiter in self.slots.short_of]
        rows = {Idle(t.tenant, t.last_terminal_at): t for t in idle if t.rest.may_be_asked(self.now)}
        held = Counter(talk.tenant for talk in self.talks if talk.slot is not None)
        share = self.most / max(1, len({*held, *short}))
        for each in chosen(list(rows), held, short, self.most, len(short)):
            talk = rows[each]
            assert self.now >= talk.rest.bound_at + LIMITS.min_resident_s
            above = {row.tenant for row, other in rows.items() if held[row.tenant] > share and other.slot is not None}
            assert not above or talk.tenant in above, "one within its share gives before one above it"
            held[talk.tenant] -= 1
            talk.rest.is_asked = True
            self.hibernate(talk)
            self.told("asked")
        for talk in idle:
            if talk.slot is not None and self.now >= talk.rests_at:
                self.hibernate(talk)
                self.told("hibernate")

    def hibernate(self, talk: Talk) -> None:
        slot = talk.slot
        assert slot is not None
        self.slots.stop(slot)
        self.unleased(slot)

    @rule()
    def expire(self) -> None:
        for talk in self.talks:
            if not talk.views and talk.turns.is_idle:
                talk.log.expire()
                self.told("expire")

    @precondition(lambda self: len(self.talks) > 2)
    @rule(is_meant=st.integers(0, 3))
    def drain(self, is_meant: int) -> None:
        """Now and then the broker ends, and another one takes over: with the conversations, and nothing else."""
        if is_meant:
            return
        self.slots.is_closing = True
        for talk in self.talks:
            talk.turns.is_closed = True
            talk.drop_queue(self.now)
        for slot in self.slots:
            if slot.state is not SlotState.STOPPING:
                self.slots.stop(slot)
            self.unleased(slot)
        for waiter in list(self.waiters):
            self.slots.withdraw(waiter)
            self.left(waiter)
        plan = self.slots.plan(self.now)
        assert not plan.start, "a start while the broker ends"
        assert not plan.retire
        for slot in self.slots:
            self.slots.exited(slot, self.now, 0.5)
        assert not list(self.slots)
        for talk in self.talks:
            assert talk.terminals == Counter(talk.accepted)
            for view in list(talk.views):
                talk.leave(view, self.now)
            talk.begin()
            talk.accepted, talk.terminals = set(), Counter()
        self.slots.is_closing = False
        self.told("drain")

    # -- what always holds --

    @invariant()
    def every_process_is_one_conversations(self) -> None:
        next(Life.steps)
        held = [talk.slot for talk in self.talks if talk.slot is not None]
        assert len(held) == len(set(held)), "two conversations on one process"
        assert set(held) == set(self.leases)
        for talk in self.talks:
            talk.agree()
            assert talk.slot is None or (talk.slot.tenant, talk.slot.state) == (talk.tenant, SlotState.LEASED)

    def teardown(self) -> None:
        """The end: every accepted message has its terminal frame."""
        super().teardown()
        for talk in self.talks:
            talk.process_gone(FailureReason.DRAINING, self.now)
            talk.drop_queue(self.now)
            assert talk.terminals == Counter(talk.accepted)


@pytest.mark.timeout(LONG_S)
def test_pool_and_conversations_keep_their_promises() -> None:
    """Never two tenants on a process, no gap, one terminal frame for each message, no bound exceeded, nobody passed
    over or forgotten."""
    Life.steps, Life.seen = itertools.count(), Counter()
    while (done := next(Life.steps)) < STEPS:
        examples = max(10, min(500, (STEPS - done) // 40))
        options = settings(max_examples=examples, stateful_step_count=50, deadline=None, derandomize=False)
        run_state_machine_as_test(Life, settings=options)
    print(f"{done} steps: {dict(Life.seen.most_common())}")
    assert not (EVENTS if IS_SOAK else {"attach", "send", "result"}) - set(Life.seen), "never happened"
