"""What the receiver does for each kind of job.  Callers: ``bench.peers.receiver``."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

import anyio

from bench.clock import LoopLag
from bench.peers.connection import Connection, ConnectionFailed, open_connection
from bench.peers.job import Job, Kind, Measured
from bench.peers.meter import Meter
from bench.peers.process_clock import resident_bytes
from bench.samples import Samples

GOODBYE_S: Final = 10.0
REST_S: Final = 0.3
"""For what a server still does behind the last turn, before its memory is looked at."""


async def burst(job: Job, measured: Measured, lag: LoopLag) -> None:
    """All frames of a turn, from before its message is sent; every session has had one before."""
    async with _open(job) as connections:
        await _talk(job.warm_up, connections)
        before = sum(one.frames for one in connections)
        meter = Meter(job.target.pid, lag)
        await _talk(job.say, connections)
        meter.end(measured)
        measured.frames = sum(one.frames for one in connections) - before


async def paced(job: Job, measured: Measured, lag: LoopLag) -> None:
    """The stamped lines that come while the window is open."""
    delays: list[int] = []
    async with _open(job, delays) as connections:
        for connection in connections:
            connection.send(job.say)
        for connection in connections:
            await connection.wait(_has_delta(connection), "the first line")
        await anyio.sleep(job.settle_s)
        delays.clear()
        meter = Meter(job.target.pid, lag)
        await anyio.sleep(job.window_s)
        meter.end(measured)
        window = Samples(delay / 1e6 for delay in delays)
        measured.frames, measured.expected = len(window), job.rate * measured.wall_s * job.sessions
        for connection in connections:
            if connection.failure is not None:
                raise ConnectionFailed(f"in the window: {connection.failure}")
    if len(window):
        measured.latency_ms = {name: window.statistic(name) for name in ("p50", "p99", "mean", "max")}


async def connect(job: Job, measured: Measured, lag: LoopLag) -> None:
    """One connection after another; they stay open, so that no start meets an end."""
    connections: list[Connection] = []
    try:
        meter = Meter(job.target.pid, lag)
        for _ in range(job.sessions):
            began = time.monotonic_ns()
            connection = await open_connection(job.target)
            connections.append(connection)
            connection.send(job.say)
            await connection.wait(_has_ended(connection), "the end of the turn")
            if job.target.hello and not connection.is_warm:
                raise ConnectionFailed("a start was not warm: its figure would be of something else")
            for at, series in (
                (connection.first_at, measured.connect_ms),
                (connection.cli_at, measured.cli_frame_ms),
                (connection.delta_at, measured.first_delta_ms),
            ):
                assert at is not None
                series.append((at - began) / 1e6)
        meter.end(measured)
    finally:
        await _close(job, connections)


async def memory(job: Job, measured: Measured, _lag: LoopLag) -> None:
    """Memory of the server before connections and with them, each after a turn where one is asked for."""
    assert job.target.pid is not None
    async with _open(job, count=1) as first:  # what is made once is made now
        await _talk(job.say, first)
        await anyio.sleep(REST_S)
        before = resident_bytes(job.target.pid)
        async with _open(job) as connections:
            await _talk(job.say, connections)
            await anyio.sleep(REST_S)
            measured.memory_bytes = resident_bytes(job.target.pid) - before
            measured.connections = len(connections)


async def handshakes(job: Job, measured: Measured, lag: LoopLag) -> None:
    """Connections that are welcomed and reset, as many at a time as the job says."""
    meter = Meter(job.target.pid, lag)

    async def one() -> None:
        connection = await open_connection(job.target)
        try:
            await connection.wait(lambda: connection.welcome_at is not None, "the welcome")
        finally:
            connection.abort()
        measured.connections += 1

    await _some(job.at_once, (one for _ in range(job.sessions)))
    meter.end(measured)


RUNS: Final[dict[Kind, Callable[[Job, Measured, LoopLag], Awaitable[None]]]] = {
    Kind.BURST: burst,
    Kind.PACED: paced,
    Kind.CONNECT: connect,
    Kind.MEMORY: memory,
    Kind.HANDSHAKES: handshakes,
}


@asynccontextmanager
async def _open(job: Job, delays: list[int] | None = None, count: int | None = None) -> AsyncIterator[list[Connection]]:
    """All connections of a job, ready to talk; closed with the block."""
    connections: list[Connection] = []

    async def one() -> None:
        connection = await open_connection(job.target, delays)
        connections.append(connection)
        if job.target.hello:
            await connection.wait(lambda: connection.welcome_at is not None, "the welcome")

    try:
        await _some(job.at_once, (one for _ in range(job.sessions if count is None else count)))
        yield connections
    finally:
        await _close(job, connections)


async def _talk(text: str, connections: list[Connection]) -> None:
    """A turn in each, one after another; without a text, none."""
    if text:
        for connection in connections:
            connection.ended_at = None
            connection.send(text)
            await connection.wait(_has_ended(connection), "the end of the turn")


async def _close(job: Job, connections: list[Connection]) -> None:
    with anyio.CancelScope(shield=True):
        if job.target.goodbye:
            for connection in connections:
                if not connection.lost.is_set():
                    connection.send(job.target.goodbye)
            with anyio.move_on_after(GOODBYE_S):
                for connection in connections:
                    await connection.lost.wait()
        for connection in connections:
            connection.abort()
        for connection in connections:
            await asyncio.get_running_loop().run_in_executor(None, connection.reap)


async def _some(at_once: int, jobs: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """All of them, so many at a time.  What one raises ends the others."""
    left = iter(jobs)

    async def worker() -> None:
        for job in left:
            await job()

    async with anyio.create_task_group() as group:
        for _ in range(at_once):
            group.start_soon(worker)


def _has_ended(connection: Connection) -> Callable[[], bool]:
    return lambda: connection.ended_at is not None


def _has_delta(connection: Connection) -> Callable[[], bool]:
    return lambda: connection.delta_at is not None
