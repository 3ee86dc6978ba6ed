"""The broker of a chaos run, what is done to it, and what is looked at meanwhile.

Owner of the broker, of the proxies, of the travellers and of the busy loops; everything ends with ``run``.
Caller: ``bench.chaos.command``.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import msgspec

from bench.broker_process import Broker, Setup, broker_in
from bench.chaos import aftermath, plan
from bench.chaos.checker import Checker
from bench.chaos.plan import Deed, Event
from bench.chaos.traveller import Traveller
from bench.clock import now
from bench.fault_proxy import FaultProxy, fault_proxy
from bench.load import Load
from bench.vitals import Vital, look
from broker.processes.orphans import children_of

SEND_DEADLINE_S: Final = 2.0
TURN_IDLE_S: Final = 20.0
"""Of silence within a turn.  No turn of the plan is silent: one that fails for it was starved, or lost."""
LOOK_EVERY_S: Final = 1.0
AT_REST_WITHIN_S: Final = 20.0
IDLE_THREADS: Final = 4
"""A thread that nobody needs ends after ten seconds."""
SETTLE_EVERY_S: Final = 1.0
PROXY_BUFFER_BYTES: Final = 1 << 18
NOBODY: Final = 1
"""A port on which nobody listens."""


@dataclass
class Scale:
    """How much of what."""

    tenants: int
    processes: int
    """``pool.max_processes``: less than tenants, so that some must rest for others."""
    seconds: float
    seed: int
    timeline: list[Event]
    starve: int = 0
    """Busy loops beside the broker."""


@dataclass
class World:
    """One run; ``place`` is a directory of its own."""

    place: Path
    scale: Scale
    cli: str
    checker: Checker
    load: Load
    vitals: list[Vital] = field(default_factory=list)
    """Once a second, under load."""
    at_rest: list[Vital] = field(default_factory=list)
    """Before the first tenant and after the last one."""
    _broker: Broker | None = None
    _generation: int = 0
    """Odd while a broker is up."""
    _url: str = ""
    _reloads: int = 0
    _offset: int = 0
    _proxies: list[FaultProxy] = field(default_factory=list)
    _is_over: bool = False

    async def run(self) -> None:
        """All of it.  Raises ``ChildFailed`` when a broker does not start, or ends by itself."""
        with busy_loops(self.scale.starve):
            async with AsyncExitStack() as stack:
                for number in range(self.scale.tenants):
                    proxy = fault_proxy(NOBODY, seed=self.scale.seed * 1000 + number, buffer_bytes=PROXY_BUFFER_BYTES)
                    self._proxies.append(await stack.enter_async_context(proxy))
                await self._live()
        await aftermath.judge_leftovers(self.place, self.scale.tenants, self.checker.violations)
        self._read_ledger()
        aftermath.judge_log(self.place, self.checker.violations)

    async def _live(self) -> None:
        ready = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(self._brokers, ready)
            await ready.wait()
            await self._look_at_rest()
            began = now()
            watching = anyio.CancelScope()
            for background in (partial(self._watch, watching), self._settle, partial(self._deeds, began)):
                group.start_soon(background)
            ends_at = began + self.scale.seconds
            await self.load.run(
                partial(self._traveller(number, proxy).run, ends_at) for number, proxy in enumerate(self._proxies)
            )
            watching.cancel()
            await self._look_at_rest()
            self._is_over = True
            group.cancel_scope.cancel()

    async def _look_at_rest(self) -> None:
        """Before the first tenant comes, and when all have gone and so has every process that is no spare."""
        if self._broker is None:
            return
        await self._broker.wait_settled()
        deadline = now() + AT_REST_WITHIN_S
        while True:
            found = await look(self._broker, self._generation, self.place / "state" / "sessions")
            before = self.at_rest[0] if self.at_rest else found
            if now() > deadline or (found.fds <= before.fds and found.threads <= before.threads + IDLE_THREADS):
                self.at_rest.append(found)
                return
            await anyio.sleep(LOOK_EVERY_S)

    def _traveller(self, number: int, proxy: FaultProxy) -> Traveller:
        seed = self.scale.seed
        canary = plan.canary(seed, number)
        return Traveller(
            number, seed, canary, proxy, self.checker, self.load.subject, lambda: self._url, lambda: self._generation
        )

    # -- the broker --

    def _setup(self) -> Setup:
        # Who starves the broker starves the clients too, which run here.
        send_s, hello_s = (SEND_DEADLINE_S, 5.0) if not self.scale.starve else (10.0, 20.0)
        spares = max(1, min(4, self.scale.processes // 4))
        return Setup(
            self.cli,
            spares,
            processes=self.scale.processes,
            env={"SIMULATOR_LEDGER": str(self.place / aftermath.LEDGER)},
            server=f"send_deadline_s = {send_s:g}\nhello_timeout_s = {hello_s:g}\nmax_unauthenticated_per_ip = 500",
            # Some sessions outlast an absence, some do not; who is idle makes room at once.
            session="detach_timeout_s = 1\nmin_resident_s = 0\nhibernate_after_s = 3",
            tables=(
                # A log that is full after a minute or two, so that what grows later is something else.
                f"[replay]\nframes = 500\nbytes = {2**18}\n"
                f"[turn]\nfirst_token_timeout_s = {TURN_IDLE_S}\nidle_timeout_s = {TURN_IDLE_S}\n"
                f"[stop]\neof_grace_s = 2\nterm_grace_s = 2\ndrain_timeout_s = 5\n"
                f"[limits]\nmessages_burst = {40 + self._reloads % 2}"
            ),
        )

    async def _brokers(self, ready: anyio.Event) -> None:
        """One broker after another; each is killed by ``_deeds``, the last one drained when this is cancelled."""
        while not self._is_over:
            async with broker_in(self.place, self._setup()) as running:
                await running.wait_settled(60.0)
                self._generation += 1
                self._broker, self._url = running, running.url
                for proxy in self._proxies:
                    proxy.target = running.port
                ready.set()
                await running.process.wait_end()
                if self._broker is running:
                    running.process.check()  # nobody has killed it: it raises

    async def _deeds(self, began: float) -> None:
        for event in self.scale.timeline:
            await anyio.sleep(max(0.0, began + event.at_s - now()))
            if self._broker is not None:  # between two brokers there is nothing to do it to
                self.checker.counts[f"deed: {event.deed.value}"] += 1
                self._do(event, self._broker)

    def _do(self, event: Event, running: Broker) -> None:
        match event.deed:
            case Deed.RELOAD:
                self._reloads += 1
                (self.place / "broker.toml").write_text(self._setup().toml(self.place / "state"))
                running.process.signal(signal.SIGHUP)
            case Deed.RESTART:
                self._broker = None
                self.checker.restarted()
                self._generation += 1
                for proxy in self._proxies:
                    proxy.target = NOBODY
                running.process.signal(signal.SIGKILL)
            case Deed.KILL_CLI:
                found = sorted(children_of(running.process.pid))
                if found:
                    self.checker.killed()
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(random.Random(event.choice).choice(found), signal.SIGKILL)

    # -- what is looked at --

    async def _watch(self, scope: anyio.CancelScope) -> None:
        with scope:
            while True:
                running, generation = self._broker, self._generation
                if running is not None:
                    with contextlib.suppress(OSError, KeyError):  # it is being killed
                        self.vitals.append(await look(running, generation, self.place / "state" / "sessions"))
                await anyio.sleep(LOOK_EVERY_S)

    async def _settle(self) -> None:
        while True:
            await anyio.sleep(SETTLE_EVERY_S)
            self._read_ledger()

    def _read_ledger(self) -> None:
        """Take in what the CLIs have written.  A row is there before its line is sent, so before any client has it."""
        ledger = self.place / aftermath.LEDGER
        if not ledger.exists():
            return
        with ledger.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data.rpartition(b"\n")[0]
        self._offset += len(whole) + 1 if whole else 0
        for line in whole.split(b"\n") if whole else []:
            self.checker.wrote(msgspec.json.decode(line))
        self.checker.settle()


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Programs that do nothing but compute, at normal priority; ended with the block."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()
