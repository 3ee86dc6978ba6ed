"""The receiver: a process of its own that does one job and writes down what it measured.

``python -m bench.peers.receiver JOB RESULT``; caller: ``receive``.  It runs on uvloop where that is installed, and
watches itself: its own time and the lag of its loop are part of the result.
"""

import asyncio
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import anyio
import msgspec

from bench.children import child
from bench.clock import LoopLag
from bench.peers.connection import ConnectionFailed
from bench.peers.job import Job, Measured
from bench.peers.runs import RUNS

ROOT: Final = Path(__file__).resolve().parents[2]
GRACE_S: Final = 30.0
"""Beyond a job's own deadline, for its start and its end."""


async def receive(job: Job, place: Path) -> Measured:
    """Have a receiver do ``job``.  ``place`` is a directory for its files.

    Raises ``ChildFailed`` with the end of its log when it fails; its deadline is the job's.
    """
    with TemporaryDirectory(dir=place) as folder:
        asked, done = Path(folder) / "job.json", Path(folder) / "result.json"
        asked.write_bytes(msgspec.json.encode(job))
        argv = [sys.executable, "-m", "bench.peers.receiver", str(asked), str(done)]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        async with child("the receiver", argv, Path(folder) / "receiver.log", environ) as process:
            text = await process.wait_file(done, job.deadline_s + GRACE_S)
    return msgspec.json.decode(text, type=Measured)


async def perform(job: Job) -> Measured:
    """Do ``job`` in this process.  Raises ``ConnectionFailed``, ``TimeoutError``, ``OSError``."""
    measured, lag = Measured(), LoopLag()
    async with anyio.create_task_group() as group:
        group.start_soon(lag.watch)
        with anyio.fail_after(job.deadline_s):
            await RUNS[job.kind](job, measured, lag)
        group.cancel_scope.cancel()
    return measured


def main(asked: Path, done: Path) -> int:
    """Read a job, do it, write its result in one piece; 1 and a line on stderr when it fails."""
    job = msgspec.json.decode(asked.read_bytes(), type=Job)
    with ExitStack() as stack:
        try:
            from uvloop import new_event_loop  # noqa: PLC0415 - an extra
        except ImportError:
            runner = asyncio.Runner()
        else:
            runner = asyncio.Runner(loop_factory=new_event_loop)
        stack.enter_context(runner)
        measured = None
        try:
            measured = runner.run(perform(job))
        except* (ConnectionFailed, TimeoutError, OSError) as failed:
            print(f"{job.kind.value}: {_leaf(failed)!r}", file=sys.stderr)
    if measured is None:
        return 1
    part = done.with_name("part")
    part.write_bytes(msgspec.json.encode(measured))
    part.replace(done)
    return 0


def _leaf(error: BaseException) -> BaseException:
    """The first of what a group of groups holds."""
    return _leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
