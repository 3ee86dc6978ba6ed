"""The receiver of ``bench peers`` against servers of the websockets library."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.server import ServerConnection, serve

from bench.peers.connection import ConnectionFailed, open_connection
from bench.peers.job import Job, Kind, Target
from bench.peers.receiver import perform

DELTA = '{"type":"stream_event","event":{"type":"content_block_delta"}}'
RESULT = '{"is_error":false,"type":"result"}'


@asynccontextmanager
async def server(handle: Callable[[ServerConnection], Awaitable[None]], hello: str = "") -> AsyncIterator[Target]:
    """A server and how it is reached."""
    async with serve(handle, "127.0.0.1", 0) as running:
        yield Target(pid=None, port=next(iter(running.sockets)).getsockname()[1], hello=hello)


async def test_pings_are_answered_and_messages_counted() -> None:
    """Control frames are no messages; a message of any length arrives as it was sent, and the end of a turn is seen."""
    heard = []

    async def handle(socket: ServerConnection) -> None:
        heard.append(await socket.recv())
        await (await socket.ping(b"here"))
        await socket.send(DELTA)
        await socket.send(RESULT)
        await socket.wait_closed()

    async with server(handle) as target:
        connection = await open_connection(target)
        connection.send("x" * 70_000)
        await connection.wait(lambda: connection.ended_at is not None, "the end")
        connection.abort()
        await connection.lost.wait()
    assert heard == ["x" * 70_000]
    assert connection.frames == 2
    assert connection.delta_at is not None
    assert connection.ended_at is not None
    assert connection.delta_at <= connection.ended_at


async def test_delays_are_from_the_moment_in_the_line() -> None:
    """Only lines that carry one count; the difference is in nanoseconds."""
    delays: list[int] = []

    async def handle(socket: ServerConnection) -> None:
        await socket.recv()
        moment = time.monotonic_ns() - 5_000_000
        await socket.send(f'{{"delta":{{"type":"text_delta","text":"@{moment:019d} xx"}}}}')
        await socket.send('{"delta":{"type":"text_delta","text":"xx"}}')
        await socket.send(RESULT)
        await socket.wait_closed()

    async with server(handle) as target:
        connection = await open_connection(target, delays)
        connection.send("go")
        await connection.wait(lambda: connection.ended_at is not None, "the end")
        connection.abort()
        await connection.lost.wait()
    (delay,) = delays
    assert 5_000_000 <= delay < 10_000_000_000


async def test_a_close_tells_its_code() -> None:
    """Who waits learns why nothing comes any more, and what came last."""

    async def handle(socket: ServerConnection) -> None:
        await socket.send(DELTA)
        await socket.close(4001, "slow")

    async with server(handle) as target:
        connection = await open_connection(target)
        with pytest.raises(ConnectionFailed, match=r"before the end: closed 4001 b'slow'; last b'.*content_block"):
            await connection.wait(lambda: False, "the end")
        connection.abort()
        await connection.lost.wait()


async def test_only_a_warm_start_is_a_figure() -> None:
    """A welcome that says otherwise ends the job: its figure would be of something else."""
    start = "warm"

    async def handle(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send(f'{{"type":"broker.welcome","protocol":1,"start":"{start}"}}')
        await socket.recv()
        for line in ('{"type":"system"}', DELTA, RESULT):
            await socket.send(line)
        await socket.wait_closed()

    async with server(handle, hello="hello") as target:
        job = Job(Kind.CONNECT, target, say="go", sessions=2, deadline_s=20)
        measured = await perform(job)
        assert [len(one) for one in (measured.connect_ms, measured.cli_frame_ms, measured.first_delta_ms)] == [2, 2, 2]
        start = "cold"
        with pytest.raises(ExceptionGroup) as failed:
            await perform(job)
        assert failed.group_contains(ConnectionFailed, match="not warm")
