"""A session's task and the connections that come to it, cancelled at every await: they leave nothing."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from broker.auth import Identity
from broker.config.policy import Policy
from broker.errors import BrokerError, ProcessError
from broker.pool.slot import SlotState
from broker.sessions.entry import Entry
from broker.sessions.registry import Registry
from broker.sessions.stores import Key
from protocol.errors import ClientError, ConnectionRefused
from protocol.frames import Hello, UserMessage
from tests.broker.visitors import Tab, attached, ends, hello, is_over, talked
from tests.kit.injector import Injector, every_step
from tests.kit.stage import SETTLES_WITHIN_S, Stage, stage
from tests.soak import LONG_S
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(LONG_S)

BOB = Identity("bob", "bob", "controller", Policy())
REFUSALS = (BrokerError, ClientError, ConnectionRefused, ProcessError)


class Life(Registry):
    """A registry whose next session runs under an injector."""

    injector: Injector | None = None
    entry: Entry | None = None
    is_over = True

    async def _run(self, key: Key, entry: Entry) -> None:
        injector, self.injector = self.injector, None
        if injector is None:
            await super()._run(key, entry)
            return
        self.entry, self.is_over = entry, False
        try:
            await injector.drive(super()._run(key, entry))
        finally:
            self.is_over = True


class Client:
    """Somebody who talks, rests, talks again and deletes the conversation, as far as the session's task lives."""

    def __init__(self, found: Stage, registry: Life) -> None:
        self.stage, self.registry = found, registry
        self.accepted: list[str] = []

    async def until(self, entry: Entry, check: Callable[[], object]) -> bool:
        """Whether it came true before the session's task ended."""
        await eventually(lambda: self.registry.is_over or check(), SETTLES_WITHIN_S)
        return not self.registry.is_over

    async def say(self, entry: Entry, tab: Tab, message_id: str) -> bool:
        self.accepted.append(message_id)
        entry.session.submit(UserMessage("hello", id=message_id), tab, time.monotonic())
        if not await self.until(entry, lambda: entry.session.turns.is_idle):
            return False
        lease = entry.tenure.lease
        return lease is not None

    async def talk(self) -> None:
        tab = Tab()
        try:
            entry = await attached(self.stage, hello(), tab)
        except REFUSALS:
            return
        lease = entry.tenure.lease
        if lease is not None:
            self.stage.has_bound(lease)
        if await self.say(entry, tab, "m-1"):
            entry.tenure.rest.is_asked = True
            entry.tenure.wake()
            if await self.until(entry, lambda: entry.state == "hibernated") and await self.say(entry, tab, "m-2"):
                lease = entry.tenure.lease
                if lease is not None:
                    self.stage.has_bound(lease)
                entry.tenure.end()
                await self.until(entry, lambda: entry.state == "hibernated")
        if not self.registry.is_over:
            self.registry.delete(entry)
        entry.tenure.detach(tab)


async def test_a_session_whose_task_is_cancelled(tmp_path: Path) -> None:
    """While it leases, binds, talks, rests, comes back, ends, is wiped: one end for each message, no process left."""
    counts: Counter[str] = Counter()
    steps = 0
    async with stage(tmp_path, is_small=False, registry_type=Life, pool={"warm": 1}) as found:
        registry = found.registry
        assert isinstance(registry, Life)

        async def run(injector: Injector) -> None:
            injector.on_step = found.is_within_limits
            registry.injector = injector
            client = Client(found, registry)
            with anyio.fail_after(2 * SETTLES_WITHIN_S):
                await client.talk()
                await eventually(lambda: registry.is_over, SETTLES_WITHIN_S)
            assert registry.entry is not None
            assert ends(registry.entry) == Counter(client.accepted)
            directory = registry.entry.tenure.succession.directory
            if injector.is_cancelled and directory is not None:  # it would be another run's
                directory.is_kept = False
                await eventually(lambda: not found.pool._slots.count("default", SlotState.LEASED), SETTLES_WITHIN_S)
                directory.wipe()

        async for injector in every_step(run):
            counts[injector.how] += injector.has_struck
            steps = max(steps, injector.steps)
            assert registry.of("ann", None) == []
            await found.settled()
        await found.serve()
    print(f"a session's life: {steps} awaits, struck {dict(counts)}")
    assert min(counts.values()) >= 9


class Arrival:
    """A connection that says hello, is attached for a breath, and leaves."""

    def __init__(self, found: Stage, frame: Hello) -> None:
        self.stage, self.frame = found, frame
        self.on_waiting: Callable[[], None] = lambda: None

    async def come(self) -> None:
        tab = Tab()
        tab.on_sent = self.on_waiting
        entry = await attached(self.stage, self.frame, tab)
        try:
            await anyio.lowlevel.checkpoint()
        finally:
            entry.tenure.detach(tab)

    async def run(self, injector: Injector) -> None:
        injector.on_step = self.stage.is_within_limits
        with anyio.fail_after(SETTLES_WITHIN_S):
            await injector.drive(self.come())

    async def run_in_the_queue(self, injector: Injector) -> None:
        """Another tenant has the only process, and ends when this one is told to wait."""
        tab = Tab()
        entry = await attached(self.stage, hello(), tab, BOB)
        self.on_waiting = entry.tenure.end
        await self.run(injector)
        self.stage.registry.delete(entry)


@pytest.mark.parametrize("scene", ["warm", "cold", "queue", "live", "hibernated"])
async def test_a_connection_that_is_cancelled(scene: str, tmp_path: Path) -> None:
    """While it opens a new session, waits for one, or comes to one that lives or sleeps: it leaves nothing there."""
    counts: Counter[str] = Counter()
    pool = {"warm": 0 if scene in ("cold", "queue") else 1, "max_processes": 1 if scene == "queue" else 4}
    is_new, steps = scene not in ("live", "hibernated"), 0
    async with stage(tmp_path, is_small=False, pool=pool, session={"detach_timeout_s": 0}) as found:
        arrival = Arrival(found, hello() if is_new else hello(session={"id": "known", "mode": "resume"}))
        pid, base, tab = 0, None, Tab()
        if not is_new:
            base, tab = await talked(found)
            pid = base.session.process.pid if base.session.process is not None else 0
            if scene == "hibernated":
                base.tenure.detach(tab)
                await eventually(lambda: is_over(base), SETTLES_WITHIN_S)
                assert base.tenure.succession.directory is not None
                found.kept.add(base.tenure.succession.directory.root.name)
            found.leased = int(scene == "live")
        async for injector in every_step(arrival.run_in_the_queue if scene == "queue" else arrival.run):
            assert injector.is_cancelled == injector.has_struck
            counts[injector.how] += injector.has_struck
            steps = max(steps, injector.steps)
            entries = [entry for entry in found.registry.of("ann", None) if isinstance(entry, Entry)]
            if scene == "live":
                assert base is not None
                assert base.session.process is not None
                assert (base.session.process.pid, base.session.readers, tab.is_closed) == (pid, [tab], False)
            else:
                await eventually(lambda: all(map(is_over, found.registry._entries.values())), SETTLES_WITHIN_S)
            for entry in entries:
                assert not entry.tenure.lobby.arriving
                assert not entry.tenure.lobby.is_process_wanted
                if is_new:
                    found.registry.delete(entry)
            await found.settled()
        if base is not None:
            found.registry.delete(base)
            found.leased = 0
            found.kept.clear()
            await found.settled()
        if scene != "queue":
            await found.serve()
    print(f"{scene}: {steps} awaits, struck {dict(counts)}")
    assert min(counts.values()) >= (1 if scene == "live" else 2)


async def test_one_who_comes_and_leaves_while_the_process_ends(tmp_path: Path) -> None:
    """Whose wish is given up gets no process later on."""
    counts: Counter[str] = Counter()
    async with stage(tmp_path, is_small=False, session={"detach_timeout_s": 60}) as found:
        entry, tab = await talked(found)
        assert entry.tenure.succession.directory is not None
        found.kept.add(entry.tenure.succession.directory.root.name)
        entry.tenure.detach(tab)
        arrival = Arrival(found, hello(session={"id": "known", "mode": "resume"}))

        async def run(injector: Injector) -> None:
            await arrival.run(Injector())
            bound_at = entry.tenure.rest.bound_at
            entry.tenure.end()
            while entry.tenure.is_live:
                await anyio.lowlevel.checkpoint()
            await arrival.run(injector)
            if injector.is_cancelled and injector.steps == 1:
                await eventually(lambda: is_over(entry), SETTLES_WITHIN_S)
                await found.settled()
                assert entry.tenure.rest.bound_at == bound_at

        async for injector in every_step(run, ("scope", "task")):
            counts[injector.how] += injector.has_struck
        found.registry.delete(entry)
        found.kept.clear()
        await found.settled()
    assert min(counts.values()) >= 1
