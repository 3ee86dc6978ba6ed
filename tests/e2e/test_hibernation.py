"""Idle sessions give their processes back while their clients stay, and come back with the next message."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.kit.broker import Broker, running_broker, started_broker
from tests.kit.client import Client, connected, contiguous, text_of
from tests.oracle import Oracle
from tests.waiting import eventually

AFTER_S = 0.5


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker whose sessions rest after half a second."""
    config = {"session": {"hibernate_after_s": AFTER_S}}
    with started_broker(tmp_path_factory.mktemp("rest"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


def states(client: Client) -> list[Any]:
    """What was told of the session's own state."""
    return [frame["state"] for frame in client.of_type("broker.state") if "state" in frame]


async def said(client: Client, text: str) -> int:
    """How many earlier messages the CLI knew."""
    before = len(client.frames)
    assert (await client.turn(text))["type"] == "broker.turn_completed"
    return int(text_of(client.frames[before:]).rpartition("Earlier messages of yours: ")[2].rstrip("."))


async def test_an_idle_session_rests_and_wakes_with_the_next_message(broker: Broker) -> None:
    """Its client is told both, the numbers run on, the conversation too; its costs as well."""
    async with connected(broker.url) as client:
        await client.hello()
        assert await said(client, "one") == 0
        for number in range(1, 3):
            await client.until(lambda frame: frame.get("state") == "hibernated")
            await eventually(lambda: broker.pool()["leased"] == 0)
            assert await said(client, f"again {number}") == number
        assert states(client) == ["hibernated", "restored"] * 2
        assert client.frames[-1]["total"]["turns"] == 3
        assert contiguous(client.numbered())


async def test_what_is_at_work_does_not_rest(broker: Broker) -> None:
    """A turn that is silent, and a prompt that nobody has answered, keep the process."""
    async with connected(broker.url) as client:
        await client.hello()
        end = await client.turn(f"[[sim ttft_ms={3000 * AFTER_S:.0f} tokens=2]] slow")
        assert end["type"] == "broker.turn_completed"
        await client.say('[[sim tool="Bash:touch made" tokens=2]] ask', "m-2")
        prompt = await client.prompt()
        with pytest.raises(TimeoutError):
            await client.until(lambda frame: frame.get("state") == "hibernated", 3 * AFTER_S)
        await client.answer(prompt["request_id"], behavior="deny", message="no")
        assert (await client.terminal("m-2"))["type"] == "broker.turn_completed"
        assert "hibernated" not in states(client)


async def test_a_control_request_wakes_it_too(broker: Broker) -> None:
    """It is carried out by the next process, which is bound to all that held before."""
    async with connected(broker.url, hello={"options": {"system_prompt": "You are a pirate."}}) as client:
        await client.until(lambda frame: frame.get("state") == "hibernated")
        answer = await client.control("set_permission_mode", mode="plan")
        assert answer["subtype"] == "success"
        assert "restored" in states(client)


async def test_more_tenants_than_processes_are_all_served(tmp_path: Path) -> None:
    """Each keeps its socket open and speaks three times; who is idle makes room, nobody is refused or forgotten."""
    tenants, rounds, processes = 12, 3, 3
    config = {
        "pool": {"max_processes": processes, "profiles": {"default": {"warm": 0}}},
        "session": {"min_resident_s": 0},
    }
    async with running_broker(tmp_path, config) as broker, AsyncExitStack() as stack:
        together = asyncio.Barrier(tenants)

        async def speak(number: int) -> None:
            client = await stack.enter_async_context(connected(broker.url, hello={"session": {"id": f"t-{number}"}}))
            await together.wait()
            for turn in range(rounds):
                assert await said(client, f"tenant {number} turn {turn}") == turn
            assert contiguous(client.numbered())

        async with asyncio.TaskGroup() as group:
            for number in range(tenants):
                group.create_task(speak(number))
        assert sum(broker.pool()[state] for state in ("starting", "warm", "leased", "stopping")) <= processes
        assert len(broker.log_events("turn.ended")) == tenants * rounds


async def test_nobody_is_asked_before_its_time(tmp_path: Path) -> None:
    """Who has just got its process keeps it, idle or not; who waits is told its place, and then that there is none."""
    config = {
        "pool": {"max_processes": 1, "queue_timeout_s": 1, "profiles": {"default": {"warm": 1}}},
        "session": {"min_resident_s": 60},
    }
    async with running_broker(tmp_path, config) as broker, connected(broker.url) as first:
        await first.hello()
        async with connected(broker.url) as second:
            with pytest.raises(ConnectionClosed):
                await second.hello()
            assert second.of_type("broker.waiting")
            assert await second.closed() == 4005
        assert await said(first, "still here") == 0
