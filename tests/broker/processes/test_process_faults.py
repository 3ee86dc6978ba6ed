"""One child process, real: whoever listens to it has a bug, or what it has left may not be killed."""

import asyncio
import os
from pathlib import Path

import anyio
import pytest

from broker.processes import orphans
from broker.processes.process import Process
from protocol.codes import FailureReason
from protocol.lines import Line
from tests.broker.launches import launch
from tests.broker.processes.test_process import LOOPS

ENDS_WITHIN_S = 20.0


@pytest.mark.parametrize("count", [10, 600], ids=["one share", "more than a share"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_bug_of_the_listener_ends_the_process(loop: str, count: int, tmp_path: Path) -> None:
    """It is told once, and that it was no fault of the process; no CLI is silent for ever."""
    seen: list[int] = []
    told: list[str] = []

    def listen(lines: list[Line]) -> None:
        seen.append(len(lines))
        raise RuntimeError("a bug")

    async def one() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(repr(context["exception"])))
        script = f"yes | head -n {count} > f; cat f; echo later; exec sleep 60"
        process = await Process.start(launch(tmp_path, "sh", "-c", script))
        process.on_lines = listen
        with anyio.fail_after(ENDS_WITHIN_S):
            await process.supervise()
        assert process.exited.is_set()
        assert process.end[0] is FailureReason.INTERNAL

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(one())
    assert len(seen) == 1
    assert told == ["RuntimeError('a bug')"]


async def test_what_may_not_be_killed_hides_no_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An heir that runs a setuid program, say: it is left alone, and the process has exited all the same."""
    real, heir = orphans.children_of, 2**22 + 1  # above the largest number of a process
    signals: list[int] = []

    def refuse(pid: int, number: int) -> None:
        signals.append(pid)
        raise PermissionError(1, "Operation not permitted")

    process = await Process.start(launch(tmp_path, "true"))
    monkeypatch.setattr(orphans, "children_of", lambda pid: [*real(pid), heir])
    monkeypatch.setattr(orphans, "_group", lambda pid: process.pid if pid == heir else None)
    monkeypatch.setattr(os, "kill", refuse)
    with anyio.fail_after(ENDS_WITHIN_S):
        await process.supervise()
    assert process.exited.is_set()
    assert signals == [heir]


async def test_a_sweep_that_fails_hides_no_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error goes up; whoever waits for the process goes on."""

    async def fail(marker: str, group: int, user: int | None = None) -> int:
        raise RuntimeError("a bug")

    process = await Process.start(launch(tmp_path, "true"))
    monkeypatch.setattr(orphans, "kill_marked", fail)
    with anyio.fail_after(ENDS_WITHIN_S), pytest.raises(RuntimeError):
        await process.supervise()
    assert process.exited.is_set()
