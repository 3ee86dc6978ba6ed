"""Readers that do not keep up: the stalled one is cut in time, the slow one is served, and what was missed is told."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from bench.server_bytes import PING
from tests.e2e.beside import neighbour, no_bug, rss_mb, welcomed
from tests.kit.broker import Broker, started_broker
from tests.kit.client import Client, connected, contiguous
from tests.kit.raw import Cut, RawClient, client_frame, raw_connection
from tests.kit.sipper import Sipper, sipper
from tests.oracle import Oracle
from tests.waiting import eventually

SEND_DEADLINE_S = 2.0
CUT_WITHIN_S = SEND_DEADLINE_S + 2
REPLAY_FRAMES = 5000
HUGE_BYTES = 12_000_000
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker that gives a stalled reader two seconds."""
    config = {
        "server": {"send_deadline_s": SEND_DEADLINE_S},
        "replay": {"frames": REPLAY_FRAMES},
        "pool": {"profiles": {"default": {"warm": 2}}},
    }
    with started_broker(tmp_path_factory.mktemp("slow"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


async def cut_after(client: Sipper, asked_at: float) -> float:
    """Seconds from ``asked_at`` until the broker has ended the connection."""
    await eventually(client.is_cut, 20)
    return asyncio.get_running_loop().time() - asked_at


def resumed(session: str, epoch: str, last_seq: int) -> dict[str, Any]:
    """Hello's fields to go on behind ``last_seq``."""
    return {"session": {"mode": "resume", "id": session, "epoch": epoch, "last_seq": last_seq}}


def has_ended(broker: Broker, session: str) -> bool:
    """Whether a turn of that session has ended."""
    return any(line["session"] == session for line in broker.log_events("turn.ended"))


def is_honest(client: Client, last_seq: int) -> bool:
    """Whether what came after welcome begins where it was said to, and has no gap."""
    welcome, numbered = client.welcome, client.numbered()
    first = welcome["lost"]["to"] + 1 if welcome["lost"] else last_seq + 1
    return numbered[0]["seq"] == first and contiguous(numbered)


@pytest.mark.parametrize("pings", [False, True], ids=["silent", "pinging"])
async def test_a_stalled_reader_is_cut_and_may_come_back(broker: Broker, pings: bool) -> None:
    """Who takes no byte for send_deadline_s is cut, also when it goes on talking; then it is told what it lost."""
    name = f"stalled-{pings}"
    async with neighbour(broker):
        async with sipper(broker, name) as client:
            epoch = client.frames[-1]["epoch"]
            await client.say({"type": "user_message", "id": "m-1", "content": "[[sim tokens=16000 itl_ms=0.1]] much"})
            began = asyncio.get_running_loop().time()
            if pings:
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(cut_after(client, began))
                    await eventually(lambda: _pinged(client, watch), 20)
                taken = watch.result()
            else:
                taken = await cut_after(client, began)
            assert taken < CUT_WITHIN_S
        async with connected(broker.url, hello=resumed(name, epoch, 0)) as back:
            assert (await back.terminal("m-1"))["type"] == "broker.turn_completed"
            assert back.welcome["lost"] is None or back.welcome["lost"]["reason"] == "too_far_behind"
            assert is_honest(back, 0)
    assert {"tenant": "local", "session": name}.items() <= broker.log_events("connection.stalled")[-1].items()
    assert no_bug(broker)


def _pinged(client: Sipper, watch: "asyncio.Task[float]") -> bool:
    """Send one ping without waiting; True once the connection is over."""
    try:
        client._socket.send(client_frame(b"still here", PING))
    except OSError:
        return True
    return watch.done()


async def test_a_slow_reader_gets_a_huge_line_whole(broker: Broker) -> None:
    """A reader that takes a little at a time is never cut, although 12 MB take it longer than the deadline."""
    async with neighbour(broker) as other, sipper(broker, "slow", 65536) as client:
        await client.say({"type": "user_message", "id": "m-1", "content": f"[[sim huge_line={HUGE_BYTES} tokens=3]] a"})
        loop = asyncio.get_running_loop()
        began, start, sips = loop.time(), len(other.frames), 0
        while not any(b'"broker.turn_completed"' in text[:40] for text in client.texts):
            assert await client.sip(32768)
            sips += 1
            await eventually(lambda: len(other.frames) > start + sips)  # noqa: B023 - at most one for each of its frames
        assert loop.time() - began > SEND_DEADLINE_S
        huge = next(text for text in client.texts if len(text) > MEBIBYTE)
        assert len(huge) == HUGE_BYTES + len(b',"seq":%d' % json.loads(huge)["seq"])
        assert set(json.loads(huge)["summary"]) == {"x"}
        assert contiguous(client.frames)
    assert no_bug(broker)


async def test_a_reader_that_falls_off_the_log_is_told(broker: Broker) -> None:
    """A reader that is slower than the log is long is closed with 4001, and a resume says what is lost."""
    async with sipper(broker, "behind") as client:
        epoch = client.frames[-1]["epoch"]
        await client.say({"type": "user_message", "id": "m-1", "content": "[[sim tokens=20000 burst]] a"})
        await eventually(lambda: has_ended(broker, "behind"), 20)
        while await client.sip():
            pass
        assert client.close_code == 4001
        last = max(frame.get("seq", 0) for frame in client.frames)
        assert contiguous(client.frames)
        async with connected(broker.url, hello=resumed("behind", epoch, last)) as back:
            assert back.welcome["lost"]["from"] == last + 1
            assert back.welcome["lost"]["reason"] == "too_far_behind"
            await back.until_type("broker.turn_completed")
            assert is_honest(back, last)
    assert no_bug(broker)


PINGS = client_frame(b"x" * 125, PING) * 500


async def flood(raw: RawClient, chunk: bytes, total: int) -> int:
    """Send until ``total`` bytes are out or the broker ends it; the bytes sent."""
    sent = 0
    try:
        while sent < total:
            await raw.send_raw(chunk)
            sent += len(chunk)
    except Cut:
        pass
    return sent


@pytest.mark.parametrize("hello", [False, True], ids=["before-hello", "after-hello"])
async def test_a_ping_flood_is_cut(broker: Broker, hello: bool) -> None:
    """Pings whose pongs nobody reads end the connection long before they fill the broker's memory."""
    async with neighbour(broker):
        before = rss_mb(broker)
        async with raw_connection(broker.port) as raw:
            if hello:
                await welcomed(raw)
            async with asyncio.timeout(20):
                sent = await flood(raw, PINGS, 100 * MEBIBYTE)
            assert sent < 100 * MEBIBYTE
        assert rss_mb(broker) - before < 20
    assert no_bug(broker)


async def test_questions_without_readers_are_cut(broker: Broker) -> None:
    """A client that asks for ever and reads no answer is stopped by its own full buffer, then cut."""
    ask = client_frame(b'{"type":"broker.ping","t":1}') * 1000
    async with neighbour(broker):
        before, closed = rss_mb(broker), len(broker.log_events("connection.closed"))
        async with raw_connection(broker.port) as raw:
            await welcomed(raw)
            async with asyncio.timeout(CUT_WITHIN_S + 10):
                assert await flood(raw, ask, 100 * MEBIBYTE) < 100 * MEBIBYTE
        assert rss_mb(broker) - before < 20
        await eventually(lambda: len(broker.log_events("connection.closed")) > closed, 10)  # it holds no process
    assert no_bug(broker)
