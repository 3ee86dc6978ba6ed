"""The ceiling for the memory of a process: what it does when it cannot look."""

from pathlib import Path

import anyio
import pytest

from broker.config.settings import Settings
from broker.config.tree import Config
from broker.metrics import Metrics
from broker.processes import memory_watch
from broker.processes.memory_watch import MemoryWatch
from broker.processes.process import Process
from tests.broker.launches import launch
from tests.broker.processes.test_process import ended, room_for
from tests.waiting import eventually


async def test_a_look_that_fails_is_counted_and_the_next_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a file descriptor there is no ceiling: that is counted, ends nothing, and passes with its cause."""
    monkeypatch.setattr(memory_watch, "LOOK_EVERY_S", 0.01)
    metrics, looks = Metrics(), 0
    process = await Process.start(launch(tmp_path, "sleep", "300"))

    def living() -> list[Process]:
        nonlocal looks
        looks += 1
        return [process]

    def failed() -> float:
        return metrics.registry.get_sample_value("broker_process_faults_total", {"fault": "memory_unknown"}) or 0.0

    async with anyio.create_task_group() as group:
        group.start_soon(MemoryWatch(Settings(Config()), metrics, living).run)
        with room_for(0):
            await eventually(lambda: failed() > 1)
        before, seen = failed(), looks
        await eventually(lambda: looks > seen + 3)
        group.cancel_scope.cancel()
    assert failed() <= before + 1  # one may have been under way
    assert process.returncode is None
    await ended(process, process.kill)
