"""The load client against a socket that misbehaves: every failure is told, none hangs."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.server import ServerConnection, serve

from bench.tenant import TenantFailed, connect

HELLO = {"model": "sonnet"}


@asynccontextmanager
async def server(*frames: object, closes: bool = False) -> AsyncIterator[str]:
    """A server that answers the first message with ``frames`` and then closes, or waits."""

    async def answer(socket: ServerConnection) -> None:
        await socket.recv()
        for frame in frames:
            await socket.send(frame if isinstance(frame, str) else json.dumps(frame))
        if not closes:
            await socket.wait_closed()

    async with serve(answer, "127.0.0.1", 0, close_timeout=1) as running:
        yield f"ws://127.0.0.1:{next(iter(running.sockets)).getsockname()[1]}/"


def delta(kind: str) -> dict[str, object]:
    """A stream event of the CLI."""
    return {"type": "stream_event", "event": {"type": "content_block_delta", "delta": {"type": kind}}}


async def test_only_visible_deltas_count() -> None:
    """Text, thinking and tool input are seen; a signature is not, nor is any other event; gaps are between the seen."""
    frames = [
        {"type": "broker.welcome", "start": "warm", "ready_ms": 2.5},
        {"type": "system", "subtype": "init", "message": {"event": []}},
        {"type": "stream_event", "event": {"type": "message_start"}},
        delta("signature_delta"),
        delta("text_delta"),
        delta("thinking_delta"),
        delta("input_json_delta"),
        {"type": "broker.turn_completed", "is_error": False},
    ]
    async with server(*frames) as url, connect(url) as tenant:
        tenant.hello(HELLO, "Hello")
        assert await tenant.wait_welcome(5) > 0
        turn = await tenant.wait_end(5)
        assert await tenant.wait_first_delta(5) > 0
        assert (tenant.start, tenant.ready_ms, turn.deltas, len(turn.gaps)) == ("warm", 2.5, 3, 2)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        ({"type": "broker.error", "code": "bind_failed", "message": "model: unknown"}, "bind_failed: model: unknown"),
        ({"type": "broker.turn_failed", "reason": "cli_exited"}, "the turn failed: cli_exited"),
        ({"type": "broker.turn_completed", "is_error": True}, "ended with an error"),
        ("[", "unreadable frame"),
    ],
)
async def test_what_the_broker_refuses_is_told(frame: object, why: str) -> None:
    """An error, a failed turn and an unreadable frame end the wait with their reason."""
    async with server(frame) as url, connect(url) as tenant:
        tenant.hello(HELLO, "Hello")
        with pytest.raises(TenantFailed, match=why):
            await tenant.wait_end(5)


async def test_an_answer_without_a_visible_delta_is_none_that_is_missing() -> None:
    """A turn of tools alone ends without one: who waits for the answer to begin waits no longer than for its end."""
    async with server({"type": "broker.turn_completed", "ttft_ms": None, "overhead_ms": 1.5}) as url:
        async with connect(url) as tenant:
            tenant.hello(HELLO, "Hello")
            await tenant.wait_answering(5)
            turn = await tenant.wait_end(5)
            assert (turn.first_delta_at, turn.server_ttft, turn.server_overhead) == (None, None, 0.0015)


async def test_a_closed_socket_ends_every_wait() -> None:
    """Whoever waits for a frame learns at once that none will come."""
    async with server(closes=True) as url, connect(url) as tenant:
        tenant.hello(HELLO)
        with pytest.raises(TenantFailed, match="closed 1000"):
            await tenant.wait_welcome(5)


async def test_silence_ends_at_the_deadline() -> None:
    """A frame that does not come in time is named."""
    async with server() as url, connect(url) as tenant:
        tenant.hello(HELLO)
        with pytest.raises(TenantFailed, match=r"broker\.welcome did not come within 0\.05 s"):
            await tenant.wait_welcome(0.05)


async def test_a_refused_upgrade_is_told() -> None:
    """A broker that answers the handshake with an HTTP error is a failure, not a hang."""
    async with serve(lambda _: None, "127.0.0.1", 0, process_request=lambda s, _: s.respond(503, "no")) as running:  # type: ignore[arg-type,return-value]
        url = f"ws://127.0.0.1:{next(iter(running.sockets)).getsockname()[1]}/"
        with pytest.raises(TenantFailed, match="503"):
            async with connect(url):
                pass
