"""Messages that clients have not sent to their end: bounded in all, paid for by whoever holds most, ended when they
stand still."""

import hashlib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.e2e.beside import forget_peak, no_bug, peak_mb
from tests.kit.broker import Broker, running_broker
from tests.kit.client import connected
from tests.kit.raw import Cut, RawClient, client_frame, raw_connection
from tests.waiting import eventually

MEBIBYTE = 2**20
QUIET = {"env": {"SIMULATOR_LEDGER": ""}}
WATCHING = {"type": "broker.hello", "session": {"mode": "resume", "id": "one"}, "role": "observer"}
SMALL: dict[str, Any] = {"max_inbound_bytes": 150_000, "max_message_bytes": 150_000}


def message(size: int) -> bytes:
    """The text of one of a little more than ``size`` bytes."""
    return b'{"type":"user_message","content":"' + b"x" * size + b'"}'


def half(size: int) -> bytes:
    """Its frame without the last byte."""
    return client_frame(message(size))[:-1]


def refused(broker: Broker, limit: str = "max_inbound_bytes") -> float:
    """How often a socket was closed because all of them held too much."""
    return broker.metric("broker_limits_refused_total", limit=limit)


async def watching(stack: AsyncExitStack, broker: Broker, **hello: Any) -> RawClient:
    """One more connection to the session."""
    raw = await stack.enter_async_context(raw_connection(broker.port))
    await raw.send({**WATCHING, **hello})
    await raw.receive()
    return raw


async def close_code(raw: RawClient) -> int | None:
    """By which it was ended, and it takes its leave as it should."""
    try:
        while True:
            await raw.receive()
    except Cut as cut:
        return cut.code


async def test_messages_on_their_way_are_bounded_in_all(tmp_path: Path) -> None:
    """Of clients that stop in the middle of a large message those with the largest share are closed with 4003; one
    that says little is served, and a large message still goes through."""
    config: dict[str, Any] = {"cli": QUIET, "server": {"max_inbound_bytes": 16 * MEBIBYTE}}
    async with running_broker(tmp_path, config) as broker, AsyncExitStack() as stack:
        other = await stack.enter_async_context(connected(broker.url, hello={"session": {"id": "one"}}))
        resident, raws = forget_peak(broker), []
        for number in range(5):
            raws.append(await watching(stack, broker))
            # Half of them in one frame that does not end, half in a fragment.
            data = client_frame(message(6 * MEBIBYTE + number), final=number % 2 == 0)
            await raws[-1].send_raw(data if number % 2 else data[:-1])
            await eventually(lambda: refused(broker) >= max(0, number - 1))  # noqa: B023 - at once
            await other.sync()
        assert refused(broker) == 3
        assert peak_mb(broker) - resident < 60
        await eventually(lambda: broker.metric("broker_disconnects_total", reason="rate_limited") == 3)
        assert (await other.turn("x" * (4 * MEBIBYTE), "m-1"))["is_error"] is False
        assert no_bug(broker)


async def test_one_tenant_cannot_have_anothers_messages_refused(tmp_path: Path) -> None:
    """Many half messages of one, each smaller than the whole message of another: the first one pays."""
    file = tmp_path / "tenants.toml"
    file.write_text("".join(
        f'[tenants.{name}]\ntokens = [{{hash = "sha256:{hashlib.sha256(name.encode()).hexdigest()}"}}]\n'
        for name in ("acme", "globex")
    ))  # fmt: skip
    config: dict[str, Any] = {"auth": {"mode": "tokens", "file": str(file)}, "pool": {"isolation": "none"}}
    config |= {"cli": QUIET, "server": {"max_inbound_bytes": 8 * MEBIBYTE}}
    headers = {"Authorization": "Bearer globex"}
    async with running_broker(tmp_path, config) as broker, AsyncExitStack() as stack:
        url, acme = broker.url, {"auth": {"token": "acme"}}
        await stack.enter_async_context(connected(url, hello={"session": {"id": "one"}, **acme}))
        for _ in range(15):
            await (await watching(stack, broker, **acme)).send_raw(half(MEBIBYTE // 2))
        other = await stack.enter_async_context(connected(url, headers=headers, hello={}))
        assert refused(broker) == 0
        assert (await other.turn("x" * (4 * MEBIBYTE), "m-1"))["is_error"] is False
        assert refused(broker) >= 6
        assert no_bug(broker)


async def test_a_message_that_stands_still_is_ended(tmp_path: Path) -> None:
    """4003 after server.send_deadline_s, and told when the client is back; a message that comes on goes through."""
    async with running_broker(tmp_path, {"server": {"send_deadline_s": 1}}) as broker, AsyncExitStack() as stack:
        going = await stack.enter_async_context(raw_connection(broker.port))
        await going.send({"type": "broker.hello", "session": {"id": "one"}})
        await going.receive()
        data = client_frame(message(200_000))
        await going.send_raw(data[:100_000])
        still = await watching(stack, broker, client={"name": "t", "instance": "i"})
        await still.send_raw(half(200_000))
        sent = 100_000
        while not refused(broker, "send_deadline_s"):
            await going.send_raw(data[sent : sent + 1])
            sent += 1
        assert await close_code(still) == 4003
        await going.send_raw(data[sent:])
        while "broker.turn_completed" not in await going.receive():
            pass
        back = await stack.enter_async_context(raw_connection(broker.port))
        await back.send({**WATCHING, "client": {"name": "t", "instance": "i"}})
        assert (await back.frame())["last_close"] == "rate_limited"
        assert refused(broker, "send_deadline_s") == 1
        assert no_bug(broker)


async def test_a_message_that_is_refused_with_its_last_byte(tmp_path: Path) -> None:
    """The read that completes it wakes whoever takes it, and is the one that is too much: closed with 4003, no bug."""
    async with running_broker(tmp_path, {"server": SMALL}) as broker, AsyncExitStack() as stack:
        await stack.enter_async_context(connected(broker.url, hello={"session": {"id": "one"}}))
        await (await watching(stack, broker)).send_raw(half(80_000))
        raw, data = await watching(stack, broker), client_frame(message(101_000))
        await raw.send_raw(data[:60_000])
        await raw.send_raw(data[60_000:])
        assert await close_code(raw) == 4003
        assert refused(broker) == 1
        assert no_bug(broker)
        assert broker.metric("broker_disconnects_total", reason="rate_limited") == 1


async def test_a_socket_that_was_full_is_gone_at_once(tmp_path: Path) -> None:
    """Nobody took its messages while it waited for a process: closed with 4003, and its leave is heard."""
    config = {"server": SMALL, "pool": {"max_processes": 1, "profiles": {"default": {"warm": 1}}}}
    async with running_broker(tmp_path, config) as broker, AsyncExitStack() as stack:
        await stack.enter_async_context(connected(broker.url, hello={"session": {"id": "one"}}))
        raw = await stack.enter_async_context(raw_connection(broker.port))
        await raw.send({"type": "broker.hello", "session": {"id": "two"}})
        await raw.send_raw(client_frame(message(12_000)) * 30)
        assert await close_code(raw) == 4003
        await eventually(lambda: broker.metric("broker_connections", state="open") == 1, 5)
        assert refused(broker) == 1
        assert no_bug(broker)
