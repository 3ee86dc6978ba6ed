"""Spares that die while they lie about, and in the moment in which somebody comes: no client sees it."""

import os
import random
import signal
import time
from pathlib import Path

import anyio
import pytest

from broker.config.profile import Profile
from broker.errors import BrokerError
from broker.pool import backoff
from broker.pool.slot import SlotState
from broker.pool.spares import unfit
from broker.processes.process import Process
from protocol.codes import CloseCode, ErrorCode
from protocol.frames import UserMessage
from tests.broker.visitors import Tab, attached, ends, hello
from tests.kit.injector import Injector
from tests.kit.stage import SETTLES_WITHIN_S, Stage, stage
from tests.processes import read_process
from tests.soak import LONG_S, size
from tests.waiting import eventually

WARM = 3
ROUNDS = size(24, 300)
"""About two kills each."""
CREDENTIALS = {"credentials": {"oauth_token": "simulated"}}
PROMISE_S = 1.0
"""From hello to welcome, for 99 of 100."""


class _Told(Process):
    """A process by its figures alone."""

    def __init__(self, resident_bytes: int, *, is_stopped: bool = False) -> None:
        self._resident = resident_bytes
        self._stopped = is_stopped

    @property
    def is_stopped(self) -> bool:
        return self._stopped

    @property
    def resident_bytes(self) -> int:
        return self._resident


def test_a_spare_is_fit_until_it_is_old_or_large() -> None:
    """By the figures of its profile."""
    profile = Profile(max_age_s=10, max_rss_mb=1)
    assert unfit(_Told(2**20), 10.0, profile) is None
    assert unfit(_Told(2**20), 10.1, profile) == "age"
    assert unfit(_Told(2**20 + 1), 1.0, profile) == "rss"
    assert unfit(_Told(2**20 + 1), 10.1, profile, at_once=True) is None
    assert unfit(_Told(1, is_stopped=True), 1.0, profile, at_once=True) == "stopped"


def kill(found: Stage, count: int, *states: SlotState, number: int = signal.SIGKILL) -> int:
    """Send ``number`` to processes in these states, the next to be leased first; how many were there."""
    slots = [slot for slot in found.pool._slots if slot.state in states][:count]
    for slot in slots:
        process = found.pool._children[slot.id].process
        assert process is not None
        os.kill(process.pid, number)
    return len(slots)


@pytest.mark.timeout(LONG_S)
async def test_a_spare_that_dies_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the breath before hello, some or all of them, or while it is bound: welcomed all the same, in time."""
    monkeypatch.setattr(backoff, "EARLY_DEATH_S", 0.0)  # or each of them would wait longer than the one before
    took, killed, chosen = [], 0, random.Random(33)
    async with stage(tmp_path, is_small=False, pool={"warm": WARM}) as found:
        for number in range(ROUNDS):
            tab, injector = Tab(), Injector()
            is_later = number % 3 == 2
            if not is_later:
                killed += kill(found, chosen.randint(1, WARM), SlotState.WARM)
            began = time.monotonic()

            async def come(tab: Tab = tab, began: float = began) -> None:
                entry = await attached(found, hello(), tab)
                took.append(time.monotonic() - began)
                entry.session.submit(UserMessage("hello", id="m"), tab, time.monotonic())
                await eventually(lambda: ends(entry)["m"], SETTLES_WITHIN_S)
                assert entry.session.turns.completed == 1
                found.registry.delete(entry)

            def strike(injector: Injector = injector) -> None:
                nonlocal killed
                if injector.steps == 1:  # it waits for the process: leased in the next breath, and bound
                    killed += kill(found, 1, SlotState.WARM)

            injector.on_step = strike if is_later else injector.on_step
            with anyio.fail_after(SETTLES_WITHIN_S):
                await injector.drive(come())
            await found.settled()
        in_use = lost(found)
        assert in_use, "none of them was leased"
    took.sort()
    p99 = took[len(took) * 99 // 100]
    print(f"{killed} spares killed, {in_use:.0f} of them leased, {len(took)} welcomed, "
          f"p50 {took[len(took) // 2] * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms")  # fmt: skip
    assert len(took) == ROUNDS
    assert p99 < 5 * PROMISE_S


def lost(found: Stage) -> float:
    """Processes that were leased, and of no use."""
    return found.metrics.registry.get_sample_value("broker_pool_processes_lost_total", {"pool": "default"}) or 0.0


async def test_a_stopped_spare_is_nobodys(tmp_path: Path) -> None:
    """All of them stopped, as by a debugger or an operator's mistake: none is handed out, all are replaced."""
    async with stage(tmp_path, is_small=False, pool={"warm": WARM}) as found:
        spares = found.pool.processes()
        assert kill(found, WARM, SlotState.WARM, number=signal.SIGSTOP) == WARM
        await eventually(lambda: all(spare.is_stopped or spare.is_dead for spare in spares))
        tab = Tab()
        with anyio.fail_after(SETTLES_WITHIN_S):
            entry = await attached(found, hello(), tab)
        entry.session.submit(UserMessage("hello", id="m"), tab, time.monotonic())
        await eventually(lambda: ends(entry)["m"], SETTLES_WITHIN_S)
        assert (entry.session.turns.completed, lost(found)) == (1, 0)
        found.registry.delete(entry)
        await found.settled()


async def test_a_spare_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped unseen, as behind a wrapper: silent at the bind's deadline, so the next one is taken, nobody is told."""
    monkeypatch.setattr(Process, "is_stopped", False)
    async with stage(tmp_path, is_small=False, pool={"warm": WARM, "bind_timeout_s": 1}) as found:
        spares = {process.pid for process in found.pool.processes()}
        assert kill(found, 1, SlotState.WARM, number=signal.SIGSTOP) == 1
        await eventually(lambda: "T" in [row.state for pid in spares if (row := read_process(pid))])
        tab = Tab()
        with anyio.fail_after(SETTLES_WITHIN_S):
            entry = await attached(found, hello(), tab)
        entry.session.submit(UserMessage("hello", id="m"), tab, time.monotonic())
        await eventually(lambda: ends(entry)["m"], SETTLES_WITHIN_S)
        assert (entry.session.turns.completed, lost(found)) == (1, 1)
        found.registry.delete(entry)
        await found.settled()


async def test_spares_that_all_stay_silent_are_no_fault_of_the_tenant(tmp_path: Path) -> None:
    """After three of them the client is told to come again, without the stop ladder of any."""
    async with stage(tmp_path, pool={"warm": WARM, "bind_timeout_s": 0.2}) as found:
        with anyio.fail_after(SETTLES_WITHIN_S), pytest.raises(BrokerError) as caught:
            await attached(found, hello(options=CREDENTIALS), Tab())
        assert (caught.value.code, caught.value.close) == (ErrorCode.POOL_UNAVAILABLE, CloseCode.POOL_UNAVAILABLE)
        assert caught.value.message == "no answer within pool.bind_timeout_s"
        assert lost(found) == 3
        await found.settled()
