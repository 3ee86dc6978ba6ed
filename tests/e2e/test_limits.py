"""A flood costs whoever makes it and nobody else: messages over the rate, and tenants that want more than theirs."""

import asyncio
import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.kit.broker import Broker, running_broker, started_broker
from tests.kit.client import Client, Frame, connected, terminals
from tests.kit.ledger import processes_of, said_to_cli, user_ids
from tests.oracle import Oracle
from tests.waiting import eventually

CONNECTIONS, MESSAGES = 20, 500
RATE, BURST = 20, 40
QUICK = "[[sim error=529]]"
"""The shortest turn there is."""
NEVER = 0.001
"""Messages per second: none comes back while a test runs."""

TENANTS: dict[str, dict[str, Any]] = {
    "sockets": {"tenant_connections": 2},
    "sessions": {"tenant_sessions": 2},
    "disk": {"tenant_disk_mb": 3},
    "processes": {"tenant_processes": 1},
    "waiting": {"tenant_waiting": 0},
    "cold": {"tenant_cold_starts_per_minute": 1},
    "talk": {"tenant_messages_per_second": 0.01, "messages_burst": 3, "messages_per_second": 3.5},
    "free": {},
}
COLD: Frame = {"options": {"tools": []}}
"""A hello for which no spare is kept."""


def bearer(tenant: str) -> dict[str, str]:
    """A tenant's token is its name."""
    return {"Authorization": f"Bearer {tenant}"}


def tenants_file(folder: Path) -> Path:
    """Every tenant with its limits."""
    text = ""
    for name, limits in TENANTS.items():
        text += f'[tenants.{name}]\ntokens = [{{hash = "sha256:{hashlib.sha256(name.encode()).hexdigest()}"}}]\n'
        text += f"[tenants.{name}.limits]\n" + "".join(f"{key} = {value}\n" for key, value in limits.items())
    file = folder / "tenants.toml"
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker that gives each tenant other limits."""
    folder = tmp_path_factory.mktemp("limits")
    config = {
        "auth": {"mode": "tokens", "file": str(tenants_file(folder))},
        "pool": {"isolation": "none", "profiles": {"default": {"warm": 2}}},
        "session": {"detach_timeout_s": 0},
    }
    with started_broker(folder, config) as found:
        oracle.allow(pid=found.pid)
        yield found


def slow(**limits: Any) -> dict[str, Any]:
    """A configuration where a connection's burst is all that it gets."""
    return {"limits": {"messages_per_second": NEVER, **limits}, "turn": {"queue": 2 * MESSAGES}}


def refusals(client: Client) -> list[Frame]:
    return [frame for frame in client.of_type("broker.error") if frame["code"] == "rate_limited"]


async def answered(client: Client, count: int) -> None:
    """Until so many messages were accepted or refused."""
    seen = 0
    while seen < count:
        seen += (await client.receive())["type"] in ("broker.accepted", "broker.error")


async def turned_away(client: Client, **hello: Any) -> tuple[int, Frame]:
    """The close code of a hello that is not welcome, and the error before it."""
    with pytest.raises(ConnectionClosed):
        await client.hello(**hello)
    code = await client.closed()
    return code, client.of_type("broker.error")[-1]


def refused(broker: Broker, limit: str) -> float:
    return broker.metric("broker_limits_refused_total", limit=limit)


# -- messages --------------------------------------------------------------------------------------------------------


async def test_a_burst_is_accepted_and_not_one_more(tmp_path: Path) -> None:
    """Of 60 messages at once the first 10 run, the others are told rate_limited, each by its id; the connection
    stays, welcome told the limits, and the metric counts."""
    async with running_broker(tmp_path, slow(messages_burst=10)) as broker:
        async with connected(broker.url, hello={}) as client, connected(broker.url, hello={}) as neighbour:
            limits = client.welcome["limits"]
            assert (limits["messages_per_second"], limits["messages_burst"]) == (NEVER, 10)
            ids = [f"m-{number}" for number in range(60)]
            for message_id in ids:
                await client.say(QUICK, message_id)
            await answered(client, len(ids))
            assert [frame["id"] for frame in client.of_type("broker.accepted")] == ids[:10]
            assert [frame["ref"] for frame in refusals(client)] == ids[10:]
            for frame in refusals(client):
                assert frame["retryable"] is True
                assert frame["retry_after_ms"] > 0
                assert "limits.messages_per_second = 0.001, limits.messages_burst = 10" in frame["message"]
            for message_id in ids[:10]:
                await client.terminal(message_id)
            await client.sync()
            assert (await neighbour.turn("hello"))["is_error"] is False
            assert len(terminals(client.frames)) == 10
        assert len(user_ids(broker.ledger_rows("in"))) == 11
        assert refused(broker, "messages_per_second") == 50
        assert broker.metric("broker_protocol_errors_total", reason="rate_limited") == 50


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_ten_thousand_messages_on_twenty_connections(tmp_path: Path) -> None:
    """Each connection gets its burst and its rate and no message more; a neighbour's turns run meanwhile."""
    pool = {"max_processes": CONNECTIONS + 2, "spawn_concurrency": 4,
            "profiles": {"default": {"warm": CONNECTIONS + 1}}}  # fmt: skip
    config = {"pool": pool, "turn": {"queue": 2 * MESSAGES}}  # the limits are the defaults

    async def flood(client: Client) -> float:
        """Returns how long it took until the last message was judged; seconds."""
        texts = [json.dumps({"type": "user_message", "id": f"m-{n}", "content": QUICK}) for n in range(MESSAGES)]
        began = time.monotonic()
        for text in texts:
            await client.socket.send(text)
        await answered(client, MESSAGES)
        return time.monotonic() - began

    async with running_broker(tmp_path, config) as broker, AsyncExitStack() as stack:
        await broker.wait_spares(CONNECTIONS + 1)
        clients = [await stack.enter_async_context(connected(broker.url, hello={})) for _ in range(CONNECTIONS)]
        neighbour = await stack.enter_async_context(connected(broker.url, hello={}))
        cpu_s = broker.cpu_s
        async with asyncio.TaskGroup() as group:
            floods = [group.create_task(flood(client)) for client in clients]
            for _ in range(3):
                assert (await neighbour.turn("hello", within_s=60))["is_error"] is False
        accepted = [len(client.of_type("broker.accepted")) for client in clients]
        times = [task.result() for task in floods]
        print(
            f"{sum(accepted)} of {CONNECTIONS * MESSAGES} accepted in {max(times):.2f} s, "
            f"{broker.cpu_s - cpu_s:.2f} s of the broker's processor: {sorted(accepted)}"
        )
        for client, count, took in zip(clients, accepted, times, strict=True):
            assert BURST <= count <= BURST + RATE * took
            assert count + len(refusals(client)) == MESSAGES
        for client in clients:
            for frame in client.of_type("broker.accepted"):
                await client.terminal(frame["id"], within_s=60)
        assert len(said_to_cli(broker.ledger_rows("in"), "user")) == sum(accepted) + 3
        assert refused(broker, "messages_per_second") == CONNECTIONS * MESSAGES - sum(accepted)


async def test_a_refused_message_is_sent_again_under_its_id(tmp_path: Path) -> None:
    """Whoever waits as told is let through, and the message runs once; a repeat of an accepted one is no way around
    the limit: it is told to wait, too, and then what became of the first."""
    config = {"limits": {"messages_per_second": 2, "messages_burst": 1}}

    async def receipt(*message_ids: str) -> Frame:
        """The answer to the first of these messages, which are sent at once."""
        for message_id in message_ids:
            await client.say(QUICK, message_id)
        return await client.until(lambda frame: frame["type"] in ("broker.accepted", "broker.error"))

    async def until_accepted(message_id: str) -> Frame:
        while (found := await receipt(message_id))["type"] == "broker.error":
            assert (found["code"], found["ref"]) == ("rate_limited", message_id)
            assert 0 < found["retry_after_ms"] <= 500
            await asyncio.sleep(found["retry_after_ms"] / 1000)
        return found

    async with running_broker(tmp_path, config) as broker:
        async with connected(broker.url, hello={}) as client:
            assert (await receipt("m-1", "m-2"))["type"] == "broker.accepted"
            assert (await client.error())["ref"] == "m-2"
            assert (await until_accepted("m-2"))["duplicate"] is False
            await client.terminal("m-2")
            repeats = [await receipt("m-1") for _ in range(20)]
            assert "broker.error" in {frame["type"] for frame in repeats}
            repeat = await until_accepted("m-1")
            assert (repeat["duplicate"], repeat["outcome"]) == (True, "completed")
        assert user_ids(broker.ledger_rows("in")) == ["m-1", "m-2"]


async def test_who_goes_on_flooding_is_closed(tmp_path: Path) -> None:
    """One more than limits.refused_messages: told, and closed with 4003; what was accepted runs to its end."""
    config = slow(messages_burst=1, refused_messages=5)
    opening = {"session": {"mode": "open", "id": "flood"}}
    async with running_broker(tmp_path, config) as broker:
        async with connected(broker.url, hello=opening) as client, connected(broker.url, hello=opening) as beside:
            await client.say("[[sim ttft_ms=200]] hello", "m-1")
            for number in range(20):
                await client.say("hello", f"more-{number}")
            assert await client.closed() == 4003
            last = refusals(client)[-1]
            assert "limits.refused_messages = 5 in 10 s" in last["message"]
            assert [frame["ref"] for frame in refusals(client)] == [f"more-{number}" for number in range(6)]
            assert (await beside.terminal("m-1"))["is_error"] is False
            assert (await beside.turn("hello", "m-2"))["is_error"] is False, "the session's other client is unaffected"
        assert refused(broker, "refused_messages") == 1
        assert refused(broker, "messages_per_second") == 5
        assert broker.metric("broker_disconnects_total", reason="rate_limited") == 1


async def test_a_tenants_connections_share_its_rate(broker: Broker) -> None:
    """tenant_messages_per_second holds over all sockets, also new ones; another tenant has its own."""
    async with connected(broker.url, headers=bearer("talk"), hello={}) as one:
        assert (one.welcome["limits"]["messages_per_second"], one.welcome["limits"]["messages_burst"]) == (3.5, 3)
        assert (await one.turn(QUICK, "m-1"))["type"] == "broker.turn_completed"
        async with connected(broker.url, headers=bearer("talk"), hello={}) as two:
            await two.say(QUICK, "m-1")
            error = await two.error()
        assert (error["code"], error["ref"]) == ("rate_limited", "m-1")
        assert "limits.tenant_messages_per_second = 0.01" in error["message"]
        async with connected(broker.url, headers=bearer("free"), hello={}) as free:
            assert (await free.turn(QUICK))["type"] == "broker.turn_completed"
    assert refused(broker, "tenant_messages_per_second") == 1


# -- tenants ---------------------------------------------------------------------------------------------------------


async def test_connections_over_the_cap_are_refused_before_the_upgrade(broker: Broker) -> None:
    """429 with Retry-After where the handshake has the token; 4003 where hello brings it; room again when one left."""
    before = refused(broker, "tenant_connections")
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connected(broker.url, headers=bearer("sockets"), hello={})),
            await stack.enter_async_context(connected(broker.url, hello={"auth": {"token": "sockets"}})),
        ]
        with pytest.raises(InvalidStatus) as caught:
            async with connected(broker.url, headers=bearer("sockets")):
                pass
        response = caught.value.response
        assert response.status_code == 429
        assert response.headers["Retry-After"] == "5"
        assert b"limits.tenant_connections = 2" in (response.body or b"")
        async with connected(broker.url) as client:
            code, error = await turned_away(client, auth={"token": "sockets"})
        assert (code, error["code"], error["retryable"]) == (4003, "quota_exceeded", True)
        assert error["retry_after_ms"] > 0
        assert "limits.tenant_connections = 2" in error["message"]
        assert refused(broker, "tenant_connections") == before + 2
        async with connected(broker.url, headers=bearer("free"), hello={}):
            pass
        await clients[0].socket.close()
        async with connected(broker.url, headers=bearer("sockets"), hello={}):
            pass


async def test_sockets_that_race_do_not_pass_the_cap(broker: Broker) -> None:
    """Of 20 at once two stay; when all have gone, nothing of them is counted."""

    async def arrive() -> str:
        try:
            client = await stack.enter_async_context(connected(broker.url, headers=bearer("sockets")))
            await client.hello()
        except (InvalidStatus, ConnectionClosed) as error:
            return type(error).__name__
        return "welcome"

    async with AsyncExitStack() as stack:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(arrive()) for _ in range(20)]
        assert [task.result() for task in tasks].count("welcome") == 2
    await eventually(lambda: broker.metric("broker_connections", state="open") == 0)
    async with connected(broker.url, headers=bearer("sockets"), hello={}):
        async with connected(broker.url, headers=bearer("sockets"), hello={}):
            pass


async def test_sessions_over_the_cap(broker: Broker) -> None:
    """The third of two is quota_exceeded, 4004, a fork too; whoever deletes one may open another."""
    headers = bearer("sessions")
    async with connected(broker.url, headers=headers, hello={"session": {"id": "s-1"}}) as one:
        await one.turn("hello")
        async with connected(broker.url, headers=headers, hello={"session": {"id": "s-2"}}) as two:
            await two.turn("hello")
            for session in ({"id": "s-3"}, {"mode": "fork", "id": "s-1"}):
                async with connected(broker.url, headers=headers) as client:
                    code, error = await turned_away(client, session=session)
                assert (code, error["code"], error["retryable"]) == (4004, "quota_exceeded", True)
                assert "limits.tenant_sessions = 2" in error["message"]
            async with connected(broker.url, headers=headers, hello={"session": {"mode": "open", "id": "s-1"}}):
                pass
            await two.send({"type": "broker.delete"})
            assert await two.closed() == 4507
        async with connected(broker.url, headers=headers, hello={"session": {"id": "s-3"}}):
            pass
    assert refused(broker, "tenant_sessions") == 2


async def test_disk_over_the_cap(broker: Broker) -> None:
    """An agent has filled it: no conversation begins and none is branched, until a look finds room again; those that
    are there go on."""
    headers = bearer("disk")
    disk = {"session": {"mode": "open", "id": "d-1"}, "options": {"permission_mode": "default"}}

    async def bash(client: Client, command: str) -> None:
        await client.say(f'[[sim tokens=1 tool="Bash:{command}"]]')
        await client.answer((await client.prompt())["request_id"], behavior="allow", updatedInput={"command": command})
        assert (await client.terminal())["type"] == "broker.turn_completed"

    async def begins(wanted: bool) -> None:
        """Until that is the answer: a figure is good for some seconds."""
        deadline, is_welcome = time.monotonic() + 30, not wanted
        while is_welcome != wanted:
            assert time.monotonic() < deadline
            async with connected(broker.url, headers=headers) as client:
                try:
                    await client.hello(session={"mode": "new"}, options={"lazy": True})
                    is_welcome = True
                except ConnectionClosed:
                    is_welcome = False

    async with connected(broker.url, headers=headers, hello=disk) as one:
        await bash(one, "head -c 4000000 /dev/urandom > big")
        await begins(wanted=False)
        for session in ({"id": "d-2"}, {"mode": "fork", "id": "d-1"}):
            async with connected(broker.url, headers=headers) as client:
                code, error = await turned_away(client, session=session)
            assert (code, error["code"]) == (4004, "quota_exceeded")
            assert error["message"] == "the tenant has reached limits.tenant_disk_mb = 3"
        async with connected(broker.url, headers=headers, hello={"session": {"mode": "resume", "id": "d-1"}}) as again:
            assert (await again.turn("hello"))["is_error"] is False
        await bash(one, "rm big")
        await begins(wanted=True)
    assert refused(broker, "tenant_disk_mb") >= 3


async def test_processes_over_the_cap(broker: Broker) -> None:
    """A second process is quota_exceeded, 4004, although spares are warm; a lazy session's message ends unwritten and
    may be sent again; another tenant is served."""
    await broker.wait_spares(2)
    headers = bearer("processes")
    async with connected(broker.url, headers=headers, hello={"session": {"id": "p-1"}}) as one:
        async with connected(broker.url, headers=headers) as client:
            code, error = await turned_away(client)
        assert (code, error["code"], error["retryable"]) == (4004, "quota_exceeded", True)
        assert error["retry_after_ms"] > 0
        assert "limits.tenant_processes = 1" in error["message"]
        async with connected(broker.url, headers=headers, hello={"options": {"lazy": True}}) as lazy:
            end = await lazy.turn("hello", "m-1")
            assert (end["reason"], end["applied"], end["retryable"]) == ("cancelled", "no", True)
            assert lazy.of_type("broker.error")[-1]["code"] == "quota_exceeded"
            async with connected(broker.url, headers=bearer("free"), hello={}) as free:
                assert (await free.turn("hello"))["is_error"] is False
            await one.send({"type": "broker.end"})
            assert await one.closed() == 1000
            assert (await lazy.turn("hello", "m-2"))["is_error"] is False
    assert refused(broker, "tenant_processes") == 2


async def test_a_crash_is_no_second_process(broker: Broker) -> None:
    """At the cap, a conversation whose process was killed gets its next one."""
    hello = {"session": {"id": "p-2"}}
    async with connected(broker.url, headers=bearer("processes"), hello=hello) as client:
        await client.turn("hello", "m-1")
        [process, *_] = processes_of(broker.ledger_rows(), client.welcome["cli"]["session_id"])
        os.kill(process.pid, signal.SIGKILL)
        await client.until(lambda frame: frame.get("state") == "restored")
        assert (await client.turn("hello", "m-2"))["is_error"] is False
        assert client.of_type("broker.error") == []


async def test_who_may_not_wait_is_told_at_once(broker: Broker) -> None:
    """With tenant_waiting = 0 a warm process is given, and one that had to be started is quota_exceeded, 4004."""
    await broker.wait_spares(2)
    async with connected(broker.url, headers=bearer("waiting"), hello={}) as client:
        assert client.welcome["start"] == "warm"
    async with connected(broker.url, headers=bearer("waiting")) as client:
        code, error = await turned_away(client, **COLD)
    assert (code, error["code"]) == (4004, "quota_exceeded")
    assert "limits.tenant_waiting = 0" in error["message"]
    assert error["retry_after_ms"] > 0
    assert refused(broker, "tenant_waiting") == 1


async def test_cold_starts_over_the_cap(broker: Broker) -> None:
    """The second within a minute is quota_exceeded, 4004, and is told when; warm starts and other tenants go on."""
    async with connected(broker.url, headers=bearer("cold"), hello=COLD) as first:
        assert first.welcome["start"] == "cold"
        async with connected(broker.url, headers=bearer("cold")) as client:
            code, error = await turned_away(client, **COLD)
        assert (code, error["code"], error["retryable"]) == (4004, "quota_exceeded", True)
        assert 0 < error["retry_after_ms"] <= 60_000
        assert "limits.tenant_cold_starts_per_minute = 1" in error["message"]
        await broker.wait_spares(2)
        async with connected(broker.url, headers=bearer("cold"), hello={}) as warm:
            assert warm.welcome["start"] == "warm"
        async with connected(broker.url, headers=bearer("free"), hello=COLD) as free:
            assert free.welcome["start"] == "cold"
    assert refused(broker, "tenant_cold_starts_per_minute") == 1
