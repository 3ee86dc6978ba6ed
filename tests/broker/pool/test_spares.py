"""Spares that die while they lie about, and in the moment in which somebody comes: no client sees it."""

import os
import random
import signal
import time
from pathlib import Path

import anyio
import pytest

from broker.config.profile import Profile
from broker.pool import backoff
from broker.pool.slot import SlotState
from broker.pool.spares import unfit
from broker.processes.process import Process
from protocol.frames import UserMessage
from tests.broker.visitors import Tab, attached, ends, hello
from tests.kit.injector import Injector
from tests.kit.stage import SETTLES_WITHIN_S, Stage, stage
from tests.soak import LONG_S, size
from tests.waiting import eventually

WARM = 3
ROUNDS = size(24, 300)
"""About two kills each."""
PROMISE_S = 1.0
"""From hello to welcome, for 99 of 100."""


class _Told(Process):
    """A process by its figures alone."""

    def __init__(self, resident_bytes: int) -> None:
        self._resident = resident_bytes

    @property
    def resident_bytes(self) -> int:
        return self._resident


def test_a_spare_is_fit_until_it_is_old_or_large() -> None:
    """By the figures of its profile."""
    profile = Profile(max_age_s=10, max_rss_mb=1)
    assert unfit(_Told(2**20), 10.0, profile) is None
    assert unfit(_Told(2**20), 10.1, profile) == "age"
    assert unfit(_Told(2**20 + 1), 1.0, profile) == "rss"


def kill(found: Stage, count: int, *states: SlotState) -> int:
    """Kill processes in these states, the next to be leased first; how many were there."""
    slots = [slot for slot in found.pool._slots if slot.state in states][:count]
    for slot in slots:
        process = found.pool._children[slot.id].process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
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
        lost = found.metrics.registry.get_sample_value("broker_pool_processes_lost_total", {"pool": "default"})
        assert lost, "none of them was leased"
    took.sort()
    p99 = took[len(took) * 99 // 100]
    print(f"{killed} spares killed, {lost:.0f} of them leased, {len(took)} welcomed, "
          f"p50 {took[len(took) // 2] * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms")  # fmt: skip
    assert len(took) == ROUNDS
    assert p99 < 5 * PROMISE_S
