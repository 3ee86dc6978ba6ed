"""Whether a process is ready, and what is told of one that never was."""

from pathlib import Path

import anyio
import pytest

from broker.errors import ProcessError
from broker.processes.child import PROBE, REHEARSAL, prove_ready
from broker.processes.process import Process
from tests.broker.launches import launch
from tests.waiting import eventually


@pytest.mark.parametrize("question", [PROBE, REHEARSAL], ids=["probe", "rehearsal"])
async def test_how_it_ended_is_told_though_it_read_nothing(question: bytes, tmp_path: Path) -> None:
    """A CLI that refuses its options at once is gone before anything can be asked."""
    process = await Process.start(launch(tmp_path, "sh", "-c", "exit 3"))
    async with anyio.create_task_group() as group:
        group.start_soon(process.supervise)
        await eventually(process.dead.is_set)
        with anyio.fail_after(20), pytest.raises(ProcessError, match="exited with 3 before it was ready"):
            await prove_ready(process, question)
        await process.exited.wait()
    assert process.returncode == 3
