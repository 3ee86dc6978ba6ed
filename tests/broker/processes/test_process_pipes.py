"""What a child may say at once, and what is kept of it: real children on real pipes."""

import os
import time
from pathlib import Path

import anyio

from broker.config.launch_profile import LaunchProfile
from broker.processes.launcher import Launch
from broker.processes.process import LINES_PER_TURN, STDERR_RING_BYTES, Process
from broker.processes.session_directory import SessionDirectory
from protocol.lines import Line
from tests.waiting import eventually


def launch(folder: Path, script: str) -> Launch:
    """A shell in place of the CLI."""
    return Launch(
        argv=("/bin/sh", "-c", script), environment={"PATH": os.environ["PATH"]}, cwd=folder, marker=f"TEST={folder}",
        session_id="", directory=SessionDirectory(folder), profile=LaunchProfile("sonnet"),
    )  # fmt: skip


async def said(folder: Path, script: str, count: int) -> tuple[Process, list[list[Line]]]:
    """The batches in which ``count`` lines of a child were handed on while it lived; it has ended by now."""
    batches: list[list[Line]] = []
    process = await Process.start(launch(folder, f"read go; {script}; read end"))
    process.on_lines = batches.append
    process.write(b"\n")
    async with anyio.create_task_group() as group:
        group.start_soon(process.supervise)
        await eventually(lambda: sum(map(len, batches)) >= count, 20)
        process.write(b"\n")
        await eventually(process.exited.is_set, 20)
    return process, batches


async def test_a_read_of_tiny_lines_is_handed_on_in_portions(tmp_path: Path) -> None:
    """Sixty thousand lines of a byte come whole and in order, never more than a turn's share at once."""
    _, batches = await said(tmp_path, "seq 1 20000; yes | head -n 40000", 60_000)
    lines = [line for batch in batches for line in batch]
    assert lines == [*(b"%d" % number for number in range(1, 20001)), *[b"y"] * 40000]
    assert max(map(len, batches)) <= LINES_PER_TURN


async def test_others_have_their_turn_between_portions(tmp_path: Path) -> None:
    """With lines that take a while each, whoever waits for the loop waits for one portion and not for a whole read."""
    turns: list[int] = []
    seen = 0

    def slow(lines: list[Line]) -> None:
        nonlocal seen
        seen += len(lines)
        end = time.perf_counter() + len(lines) * 2e-6
        while time.perf_counter() < end:
            pass

    process = await Process.start(launch(tmp_path, "read go; yes '' | head -n 60000; read end"))
    process.on_lines = slow
    process.write(b"\n")
    async with anyio.create_task_group() as group:
        group.start_soon(process.supervise)
        with anyio.fail_after(20):
            while seen < 60000:
                before = seen
                await anyio.lowlevel.checkpoint()
                turns.append(seen - before)
        process.write(b"\n")
        await eventually(process.exited.is_set, 20)
    assert max(turns) <= 2 * LINES_PER_TURN


async def test_the_last_words_of_a_child_are_all_heard(tmp_path: Path) -> None:
    """What is in the pipe of a child that has died is handed on however many lines it is."""
    batches: list[list[Line]] = []
    process = await Process.start(launch(tmp_path, "read go; yes | head -n 30000"))
    process.on_lines = batches.append
    process.write(b"\n")
    async with anyio.create_task_group() as group:
        group.start_soon(process.supervise)
        await eventually(process.exited.is_set, 20)
    assert sum(map(len, batches)) == 30_000


async def test_a_child_that_makes_its_pipe_larger_gets_no_larger_share(tmp_path: Path) -> None:
    """F_SETPIPE_SZ on its own stdout changes the portions by nothing."""
    script = "python3 -c 'import fcntl, os; fcntl.fcntl(1, 1031, 1 << 20); os.write(1, b\"x\\n\" * 500000)'"
    _, batches = await said(tmp_path, script, 500_000)
    assert sum(map(len, batches)) == 500_000
    assert max(map(len, batches)) <= LINES_PER_TURN


async def test_the_last_words_on_stderr_are_kept_and_no_more(tmp_path: Path) -> None:
    """Of writes of a byte as of large ones the last 64 KiB are there, in so many bytes of memory."""
    process, _ = await said(tmp_path, "yes 0123456 | head -n 100000 >&2; yes | head -n 3 >&2; printf end >&2; echo", 1)
    assert process.stderr_tail.endswith("0123456\ny\ny\ny\nend")
    assert len(process._stderr) == STDERR_RING_BYTES
