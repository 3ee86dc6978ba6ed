"""``bench connect``: the bare client against servers that misbehave, and one small storm."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol

from bench.__main__ import main
from bench.server_bytes import PONG, TEXT
from bench.tenant import TenantFailed
from bench.traffic.bare_socket import client_frame, greet, greeting
from tests.waiting import eventually


@given(st.binary(max_size=70_000), st.sampled_from([TEXT, PONG]))
def test_a_frame_is_what_a_server_reads(payload: bytes, opcode: int) -> None:
    """In each of the three forms of a length; a pong is short."""
    payload = payload[:125] if opcode == PONG else payload
    server = Protocol(SERVER, max_size=None)
    server.receive_data(client_frame(opcode, payload))
    (frame,) = server.events_received()
    assert isinstance(frame, Frame)
    assert (frame.opcode, bytes(frame.data)) == (Opcode(opcode), payload)


@asynccontextmanager
async def server(*frames: str, closes: bool = False, pings: bool = False) -> AsyncIterator[str]:
    """A server that answers hello with ``frames``."""

    async def answer(socket: ServerConnection) -> None:
        await socket.recv()
        for frame in frames:
            await socket.send(frame)
        if pings:
            await (await socket.ping())
            await socket.send('{"type":"broker.welcome"}')
        if not closes:
            await socket.wait_closed()

    async with serve(answer, "127.0.0.1", 0, close_timeout=1, subprotocols=["broker.v1"]) as running:  # type: ignore[list-item]
        yield f"ws://127.0.0.1:{next(iter(running.sockets)).getsockname()[1]}/"


async def test_it_waits_for_its_welcome_and_answers_pings() -> None:
    """The pong comes before the welcome here, which is what keeps an idle socket alive; then it closes."""
    async with server(pings=True) as url:
        made = await greet(greeting(url, {"type": "broker.hello"}), 5)
        await made.wait_welcome(5)
        assert made.opened_at is not None
        assert made.welcome_at is not None
        assert made.welcome_at > made.opened_at
        made.leave()
        await eventually(lambda: made.failure is not None)


@pytest.mark.parametrize(
    ("frames", "closes", "reason"),
    [
        (('{"type":"broker.error","code":"unauthorized"}',), False, "unauthorized"),
        (("[",), False, "unreadable_frame"),
        ((), True, "closed_1000"),
        ((), False, "no_welcome"),
    ],
)
async def test_each_failure_has_its_reason(frames: tuple[str, ...], closes: bool, reason: str) -> None:
    """A refusal by its code, a close by its number, silence by what did not come."""
    async with server(*frames, closes=closes) as url:
        made = await greet(greeting(url, {}), 5)
        with pytest.raises(TenantFailed) as failed:
            await made.wait_welcome(0.2 if reason == "no_welcome" else 5)
        assert failed.value.reason == reason
        made.leave()
        await eventually(lambda: made.failure is not None)


async def test_a_refused_upgrade_is_its_status() -> None:
    """A broker that is full answers with an HTTP error."""
    async with serve(lambda _: None, "127.0.0.1", 0, process_request=lambda s, _: s.respond(429, "no")) as running:  # type: ignore[arg-type,return-value]
        made = await greet(greeting(f"ws://127.0.0.1:{next(iter(running.sockets)).getsockname()[1]}/", {}), 5)
        with pytest.raises(TenantFailed, match="http_429"):
            await made.wait_welcome(5)
        made.leave()


def test_a_storm_is_attached_and_stays(tmp_path: Path) -> None:
    """A hundred handshakes with tokens, none lost; the memory of each is told."""
    file = tmp_path / "connect.json"
    arguments = ["connect", "--connections=100", "--at-once=16", "--hold=0.1", "--assert=attached_max<30s"]
    assert main([*arguments, "--output", str(file)]) == 0
    (subject,) = json.loads(file.read_text())["subjects"]
    assert {name: subject["series"][name]["n"] for name in ("connect", "welcome", "attached")} == {
        "connect": 100, "welcome": 100, "attached": 100,
    }  # fmt: skip
    facts = subject["facts"]
    assert (facts["attached"], facts["failures"], facts["lost while idle"]) == ("100 of 100", "none", 0)
    assert "memory of an idle socket (KiB)" in facts
