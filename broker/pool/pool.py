"""The warm pool: a shell around the ledger of ``broker.pool.slots``: spawns, proves, leases, refills, ends processes.

Owner task: ``run``, in the root task group of ``broker.app``; it holds one supervisor task per child.  Caller:
``broker.sessions.tenure`` (``async with pool.lease(...)`` is the whole ownership of a process).  Over 300 lines because
leasing, refilling and supervising share one ledger and one table of children.
"""

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import msgspec
import structlog

from broker.config.launch_profile import OTHER, Choice, SpawnOptions, choose
from broker.config.limits import Limits
from broker.config.profile import Profile
from broker.config.settings import Settings
from broker.config.tree import Pool as PoolConfig
from broker.config.tree import Stop
from broker.errors import BrokerError, ProcessError, ResumeRefused
from broker.metrics import Metrics
from broker.pool.bind_turns import BindTurns
from broker.pool.pacing import Pacing
from broker.pool.quotas import QuotaExceeded
from broker.pool.slot import Slot, SlotState, Waiter
from broker.pool.slots import Bounds, PoolFull, Slots, Target
from broker.pool.spares import unfit
from broker.pool.unknown_profiles import UnknownProfiles
from broker.pool.waiting_room import WaitingRoom, Wish
from broker.processes.child import Again, Child, Lease
from broker.processes.launcher import Launcher
from broker.processes.process import Process
from broker.processes.session_directory import SessionDirectory
from protocol.codes import CloseCode, ErrorCode, FailureReason, MissReason
from protocol.errors import ClientError

log = structlog.get_logger(__name__)

CHECK_EVERY_S = 5.0
PRESSURE_LOOK_S = 0.25
"""While tenants wait for room: sessions become idle, or have been resident for long enough, without telling."""


class Pool:
    """Leases warm processes.  All methods belong to the event loop's thread."""

    def __init__(self, settings: Settings, launcher: Launcher, metrics: Metrics) -> None:
        self._settings = settings
        self._stop_config = settings.now.stop
        self._launcher = launcher
        self._metrics = metrics
        self._launches = {name: profile.launch for name, profile in self.profiles.items()}
        self._unknown = UnknownProfiles()
        self._slots = Slots(self._bounds)
        self._children: dict[int, Child] = {}
        self.on_pressure: Callable[[list[str]], None] = lambda tenants: None
        """Tenants wait, and there is no room; told again and again while that lasts."""
        self._room = WaitingRoom()
        self._changed = anyio.Event()
        self._pacing = Pacing()
        self.bind_turns = BindTurns()

    @property
    def _config(self) -> PoolConfig:
        """What holds now."""
        return self._settings.now.pool

    @property
    def profiles(self) -> dict[str, Profile]:
        """The configured ones; which there are, and what they start, is fixed."""
        return self._config.profiles

    @property
    def _bounds(self) -> Bounds:
        config = self._config
        targets = {name: Target(profile.warm, profile.max, profile.reserve) for name, profile in self.profiles.items()}
        return Bounds(
            targets | {OTHER: Target(0)},
            max_processes=config.process_limit,
            max_waiting=config.max_waiting,
            spawn_concurrency=config.spawn_concurrency,
        )

    @property
    def cli_version(self) -> str:
        """The version of the program behind every session."""
        return self._launcher.cli.version

    @property
    def is_simulated(self) -> bool:
        """Whether that program is the simulator."""
        return self._launcher.cli.simulated

    def place(self) -> tuple[str, SessionDirectory]:
        """A session id of the CLI and a directory, for a conversation that branches off.  Raises ``OSError``."""
        return self._launcher.place()

    def directory(self, name: str) -> SessionDirectory:
        """The directory of a conversation of an earlier run."""
        return self._launcher.directory(name)

    # -- running --

    async def run(self) -> None:
        """Keep the pool filled until cancelled; every child is then stopped within the stop ladder's bounds."""
        async with anyio.create_task_group() as group:
            try:
                while True:
                    self._changed = anyio.Event()
                    self._carry_out(group)
                    self._publish()
                    with anyio.move_on_after(self._pause()):
                        await self._changed.wait()
                    self._recycle()
                    self._launcher.tidy()
            finally:
                self._slots.is_closing = True

    def _pause(self) -> float:
        retry_at = self._slots.next_start_at(time.monotonic())
        soon = CHECK_EVERY_S if retry_at is None else max(0.01, min(CHECK_EVERY_S, retry_at - time.monotonic()))
        soon = min(soon, PRESSURE_LOOK_S) if self._slots.short_of else soon
        return min(soon, 0.05) if self._pacing.is_holding else soon

    def close(self) -> None:
        """Start nothing more, and let go of every process that nobody has: the broker is on its way out."""
        self._slots.is_closing = True
        for slot in self._slots:
            if slot.state is not SlotState.LEASED:
                self._slots.stop(slot)
                self._children[slot.id].scope.cancel()

    def kill_all(self) -> None:
        """End every process now, and every later one without its graces: time is over."""
        self._stop_config = Stop(eof_grace_s=0, term_grace_s=0)
        for child in self._children.values():
            if child.process is not None:
                child.process.kill()

    def reconsider(self) -> None:
        """Something has changed, the settings for example: look again."""
        self._changed.set()

    def _carry_out(self, group: anyio.abc.TaskGroup) -> None:
        now = time.monotonic()
        self._slots.bounds = self._bounds
        plan = self._slots.plan(now, hold_refill=self._pacing.is_held(now))
        for slot in plan.retire:
            self._children[slot.id].scope.cancel()
        for slot in plan.start:
            self._children[slot.id] = child = self._make_child(slot)
            group.start_soon(self._supervise, slot, child, name=f"slot-{slot.id}")
        self._room.tell(self._slots.waiting)
        if short := self._slots.short_of:
            self.on_pressure([waiter.tenant for waiter in short])

    def _make_child(self, slot: Slot) -> Child:
        if slot.reserved_for is None:
            return Child(self._launches[slot.profile], None)
        wish = self._room.wish(slot.reserved_for)
        return Child(wish.choice.profile, wish.again)

    def _recycle(self, *, at_once: bool = False) -> None:
        """Retire spares that are not fit to be handed out; a replacement is started by the next plan."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.state is not SlotState.WARM:
                continue
            child = self._children[slot.id]
            assert child.process is not None
            if child.process.is_dead:
                self._on_exit(slot, child)
            elif reason := unfit(child.process, now - slot.born_at, self.profiles[slot.profile], at_once=at_once):
                log.info("pool.recycled", slot=slot.id, reason=reason)
                self._slots.stop(slot)
                child.scope.cancel()

    def _publish(self) -> None:
        for profile, counts in self.statistics().items():
            for state, count in counts.items():
                self._metrics.pool_processes(profile, state, count)

    def statistics(self) -> dict[str, dict[str, int]]:
        """Processes by profile and state; those whose profile nobody configured are ``other``."""
        states = [state for state in SlotState if state is not SlotState.GONE]
        return {name: {s.value: self._slots.count(name, s) for s in states} for name in (*self.profiles, OTHER)}

    @property
    def limit(self) -> int:
        """How many processes there may be."""
        return self._config.process_limit

    @property
    def is_full(self) -> bool:
        """``max_processes`` are there: whoever waits, waits for somebody to leave."""
        return len(list(self._slots)) >= self._config.process_limit

    @property
    def is_ready(self) -> bool:
        """A spare is warm, or none is wanted, or none can be kept."""
        now = time.monotonic()
        return any(
            profile.warm == 0
            or self._slots.count(name, SlotState.WARM)
            or self._slots.count(name, SlotState.LEASED)
            or self._slots.is_resting(name, now)
            for name, profile in self.profiles.items()
        )

    def processes(self) -> list[Process]:
        """Those that there are, in any state."""
        return [child.process for child in self._children.values() if child.process is not None]

    # -- one child --

    async def _supervise(self, slot: Slot, child: Child) -> None:
        """One child from spawn to the end of its tree.  A bulkhead: whatever fails here ends this slot only."""
        try:
            try:
                with child.scope:
                    await self._bring_up(slot, child)
                    await child.supervise()
                    self._on_exit(slot, child)
            finally:
                with anyio.CancelScope(shield=True):
                    await self._take_down(slot, child)
        except (ProcessError, OSError, TimeoutError) as error:
            log.warning("process.start_failed", slot=slot.id, error=str(error) or "pool.start_timeout_s is over",
                        stderr=child.process.stderr_tail if child.process else "")  # fmt: skip
        except Exception:
            log.exception("process.supervisor_failed", slot=slot.id)

    async def _bring_up(self, slot: Slot, child: Child) -> None:
        is_spare = slot.reserved_for is None and not self._slots.waiting
        await child.bring_up(self._launcher, self._config.start_timeout_s, is_urgent=not is_spare)
        took, pid = time.monotonic() - child.begun_at, child.process.pid if child.process is not None else None
        self._metrics.process_started(slot.profile, took)
        log.info("process.ready", slot=slot.id, pid=pid, start_s=round(took, 3))
        self._unknown.started(child.profile)
        waiter = self._slots.ready(slot, time.monotonic())
        if waiter is not None:
            self._room.settle(waiter)
        self.reconsider()

    def _on_exit(self, slot: Slot, child: Child) -> None:
        assert child.process is not None
        if slot.state is SlotState.WARM:
            log.warning("pool.spare_died", slot=slot.id, returncode=child.process.returncode)
            self._slots.spare_died(slot, time.monotonic(), random.random())
        if child.lease is not None:
            child.lease.on_exit()

    async def _take_down(self, slot: Slot, child: Child) -> None:
        if slot.state is SlotState.WARM:  # its supervision has ended, whatever ended it: nobody gets it any more
            self._slots.stop(slot)
        try:
            await child.take_down(self._stop_config)
        finally:  # whatever fails or is cancelled here: the ledger counts no process that nobody looks after
            self._book_out(slot, child)
            await child.wipe()

    def _book_out(self, slot: Slot, child: Child) -> None:
        if child.process is not None:
            log.info("process.gone", slot=slot.id, pid=child.process.pid, returncode=child.process.returncode)
        own = slot.reserved_for
        if own is not None:
            own.is_refused, own.words = child.has_refused, child.last_words
        if self._slots.exited(slot, time.monotonic(), random.random()):
            self._refuse_if_broken(slot.profile)
        if own is not None:
            self._room.settle(own)
        del self._children[slot.id]
        self.reconsider()

    def _refuse_if_broken(self, profile: str) -> None:
        if self._slots.breaker_retry_s(profile, time.monotonic()) is not None:
            log.error("pool.breaker_open", profile=profile)
            for waiter in self._slots.refuse_all(profile):
                self._room.settle(waiter)

    # -- leasing --

    def choose(self, model: str | None, options: SpawnOptions) -> Choice:
        """The profile for a conversation that wishes these."""
        return choose(self._launches, model, options)

    def _meet(self, choice: Choice, now: float) -> None:
        """Count a wish for a profile that nobody configured, and tell an operator of it once.

        Raises ``ClientError(bind_failed)`` while it is not tried again after a failure.
        """
        label, is_new = self._unknown.met(choice.profile)
        self._metrics.profile_missed(label)
        if is_new:
            log.info("pool.profile_unknown", hash=label, profile=msgspec.to_builtins(choice.profile))
        words = self._unknown.held_back(choice.profile, now)
        if words is not None:
            raise self._refused(choice, words)

    @asynccontextmanager
    async def lease(
        self, choice: Choice, tenant: str, limits: Limits, *, again: Again | None, on_position: Callable[[int], None]
    ) -> AsyncIterator[Lease]:
        """Hold one process.  It is stopped when the block ends and never leased again.

        ``limits``: the tenant's.  ``again``: the next process of a conversation, started for it alone.  ``on_position``
        is told the place in the queue, from 1, at each change.  Raises ``BrokerError``: ``pool_unavailable`` at once
        when nobody may wait, or close 4005 after ``pool.queue_timeout_s``, ``quota_exceeded`` by the limits;
        ``ClientError(bind_failed)`` when the CLI does not start with options that nobody configured.  A cancel while
        waiting loses the place in the queue, nothing else.
        """
        asked = time.monotonic()
        waiter = await self._acquire(choice, tenant, limits, again, on_position)
        slot = waiter.slot
        assert slot is not None
        assert slot.start is not None
        self._pacing.leased(time.monotonic())
        lease = self._children[slot.id].make_lease(choice.pool, slot.start, slot.miss_reason)
        self._metrics.acquired(choice.pool, slot.start.value, time.monotonic() - asked)
        self.reconsider()
        try:
            yield lease
        finally:
            if slot.state is SlotState.LEASED:
                self._slots.stop(slot)
            if slot.id in self._children:
                self._children[slot.id].scope.cancel()
            self.reconsider()

    async def _acquire(
        self, choice: Choice, tenant: str, limits: Limits, again: Again | None, on_position: Callable[[int], None]
    ) -> Waiter:
        asked = time.monotonic()
        miss = None if choice.is_configured or again is not None else MissReason.NO_PROFILE
        if miss is not None:
            self._meet(choice, asked)
        self._recycle(at_once=True)
        try:
            waiter = self._slots.acquire(choice.pool, tenant, asked, limits, own_start=bool(again or miss), miss=miss)
        except QuotaExceeded as full:
            self._metrics.acquired(choice.pool, "rejected", 0.0)
            self._metrics.limit_refused(full.limit)
            raise
        except PoolFull as full:
            self._metrics.acquired(choice.pool, "rejected", 0.0)
            raise BrokerError.unavailable(full.message, full.retry_after_s) from full
        if waiter.slot is not None:
            return waiter
        try:
            wish = Wish(choice, again, on_position)
            was_settled = await self._room.wait(waiter, wish, self._config.queue_timeout_s, self.reconsider)
        except anyio.get_cancelled_exc_class():
            self._give_back(waiter)
            raise
        finally:
            self._slots.withdraw(waiter)
            self.reconsider()  # whoever waits behind moves on
        if waiter.is_served:
            return waiter
        if waiter.is_failed:
            raise self._start_failed(waiter, choice)
        waited = time.monotonic() - asked
        if was_settled:
            self._metrics.acquired(choice.pool, "rejected", waited)
            raise BrokerError.unavailable("processes keep failing to start", 5.0)
        self._metrics.acquired(choice.pool, "timeout", waited)
        message = f"no process within pool.queue_timeout_s = {self._config.queue_timeout_s:g}"
        raise BrokerError(ErrorCode.POOL_UNAVAILABLE, message, close=CloseCode.QUEUE_TIMEOUT, retry_after_ms=5000)

    def _start_failed(self, waiter: Waiter, choice: Choice) -> ClientError | ProcessError:
        """The process that was started for this waiter alone did not come up."""
        if waiter.is_restore:
            kind = ResumeRefused if waiter.is_refused else ProcessError
            return kind(FailureReason.CLI_EXITED, "the process could not be started again")
        if not waiter.is_refused:
            return ProcessError(FailureReason.CLI_EXITED, "the process could not be started")
        self._unknown.failed(choice.profile, waiter.words, time.monotonic(), random.random())
        return self._refused(choice, waiter.words)

    def _refused(self, choice: Choice, words: str) -> ClientError:
        self._metrics.acquired(choice.pool, "rejected", 0.0)
        message = f"the CLI does not start with these options: {words or 'it said nothing'}"
        return ClientError(ErrorCode.BIND_FAILED, message, close=CloseCode.BIND_FAILED)

    def _give_back(self, waiter: Waiter) -> None:
        """Cancelled in the moment of being served: the process is ended, not handed on."""
        if waiter.slot is not None:
            self._slots.stop(waiter.slot)
            self._children[waiter.slot.id].scope.cancel()
            self.reconsider()

    def first_token_awaited(self, change: int) -> None:
        """Sessions tell +1 when a turn is written, -1 at its first token or end; spares are not started meanwhile."""
        if self._pacing.first_token_awaited(change):
            self.reconsider()
