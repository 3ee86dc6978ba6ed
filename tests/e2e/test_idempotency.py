"""An id is used once: whoever repeats it, on whatever socket, gets the outcome and never a second turn."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.broker import Broker, started_broker
from tests.kit.client import TERMINALS, Client, Frame, connected, contiguous, terminals
from tests.kit.ledger import cli, processes_of, user_ids
from tests.oracle import Oracle
from tests.soak import LONG_S, size

IDS, SENDS, CHANGED = size(100, 1000), size(2, 10), size(10, 100)
"""Messages, how often each is sent, and how many of them once more with other content."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker whose sessions let more wait, and whose connections may send more, than this module ever sends."""
    config = {
        "turn": {"queue": 2 * IDS},
        "limits": {"messages_burst": IDS * SENDS + 1000},
        "session": {"detach_timeout_s": 3},
        "replay": {"frames": 100 * IDS, "bytes": 2**26},
    }
    with started_broker(tmp_path_factory.mktemp("idempotency"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


def opening(session_id: str, instance: str = "") -> dict[str, Any]:
    """Hello's fields for ``open``."""
    return {"session": {"mode": "open", "id": session_id}, "client": {"instance": instance}}


def ids_at_cli(broker: Broker, client: Client) -> list[str]:
    """The messages of the client's conversation that reached a CLI, in order."""
    rows = broker.ledger_rows()
    own = set(processes_of(rows, client.welcome["cli"]["session_id"]))
    return user_ids(row for row in rows if row["dir"] == "in" and cli(row) in own)


async def accepted(client: Client, text: str, message_id: str) -> Frame:
    """Send a message and return its receipt, without the type."""
    await client.say(text, message_id)
    found = await client.until(lambda frame: frame["type"] in ("broker.accepted", "broker.error"))
    return {key: value for key, value in found.items() if key != "type"}


def duplicate(message_id: str, outcome: str | None) -> Frame:
    """The receipt of a repeat."""
    return {"id": message_id, "queued": 0, "duplicate": True, "outcome": outcome}


async def test_a_repeat_is_told_what_became_of_the_first(broker: Broker) -> None:
    """While it runs, when it is completed, and when it failed; on the same socket and on another one."""
    async with connected(broker.url, hello=opening("repeat", "one")) as one:
        async with connected(broker.url, hello=opening("repeat", "two")) as two:
            assert not (await accepted(one, "[[sim ttft_ms=300]] hello", "m-1"))["duplicate"]
            assert not (await accepted(one, "waits", "m-2"))["duplicate"]
            await two.until(lambda frame: frame.get("id") == "m-2")
            for client in (one, two):
                assert await accepted(client, "[[sim ttft_ms=300]] hello", "m-1") == duplicate("m-1", None)
                assert await accepted(client, "waits", "m-2") == duplicate("m-2", None)
            await one.send({"type": "broker.cancel", "id": "m-2"})
            for client in (one, two):
                await client.terminal("m-1")
                await client.terminal("m-2")
                assert await accepted(client, "[[sim ttft_ms=300]] hello", "m-1") == duplicate("m-1", "completed")
                assert await accepted(client, "waits", "m-2") == duplicate("m-2", "failed")
            await one.sync()
            assert Counter(end["id"] for end in terminals(one.frames)) == {"m-1": 1, "m-2": 1}
            assert ids_at_cli(broker, one) == ["m-1"]


async def test_the_same_id_with_other_content_is_a_conflict(broker: Broker) -> None:
    """id_conflict names the id; the first message is not touched."""
    async with connected(broker.url, hello=opening("conflict")) as client:
        await client.turn("first", "m-1")
        error = await accepted(client, "second", "m-1")
        assert (error["code"], error["ref"], error["retryable"]) == ("id_conflict", "m-1", False)
        assert await accepted(client, "first", "m-1") == duplicate("m-1", "completed")
        blocks = [{"type": "text", "text": "first"}]
        await client.send({"type": "user", "uuid": "m-1", "message": {"role": "user", "content": blocks}})
        assert (await client.error())["code"] == "id_conflict"


async def test_both_shapes_of_a_message_share_their_ids(broker: Broker) -> None:
    """user with uuid repeats user_message with id, when the content is the same."""
    async with connected(broker.url, hello=opening("shapes")) as client:
        await client.turn("hello", "m-1")
        await client.send({"type": "user", "uuid": "m-1", "message": {"role": "user", "content": "hello"}})
        receipt = await client.until_type("broker.accepted")
        assert (receipt["duplicate"], receipt["outcome"]) == (True, "completed")


async def test_without_an_id_the_broker_makes_one(broker: Broker) -> None:
    """Each message is then its own: the same words twice are two turns."""
    async with connected(broker.url, hello=opening("made")) as client:
        ends = [await client.turn("hello") for _ in range(2)]
        receipts = [frame["id"] for frame in client.of_type("broker.accepted")]
        assert [end["id"] for end in ends] == receipts == ids_at_cli(broker, client)
        assert len(set(receipts)) == 2


async def test_a_repeat_after_a_reconnect_and_after_a_restored_process(broker: Broker) -> None:
    """The ids outlive the socket and the process."""
    async with connected(broker.url, hello=opening("back")) as client:
        await client.say("[[sim tokens=20 itl_ms=5]] hello", "m-1")
        await client.until_type("stream_event")
        client.socket.transport.abort()
    async with connected(broker.url, hello=opening("back")) as again:
        receipt = await accepted(again, "[[sim tokens=20 itl_ms=5]] hello", "m-1")
        assert (receipt["id"], receipt["duplicate"]) == ("m-1", True)
        if receipt["outcome"] is None:
            await again.terminal("m-1")
        await again.send({"type": "broker.end"})
        assert await again.closed() == 1000
    async with connected(broker.url, hello=opening("back")) as restored:
        assert restored.welcome["start"] == "restored"
        receipt = await accepted(restored, "[[sim tokens=20 itl_ms=5]] hello", "m-1")
        assert receipt == duplicate("m-1", "completed")
        await restored.turn("more", "m-2")
        assert ids_at_cli(broker, restored) == ["m-1", "m-2"]


async def test_a_message_that_was_refused_has_used_no_id(broker: Broker) -> None:
    """What was never accepted may be sent again under its id."""
    async with connected(broker.url, hello=opening("refused")) as client:
        assert (await accepted(client, "/clear", "m-1"))["code"] == "option_not_allowed"
        assert (await client.turn("hello", "m-1"))["type"] == "broker.turn_completed"


async def ended(client: Client) -> None:
    """Until every message of the race has its end."""
    count = len(terminals(client.frames))
    while count < IDS:
        count += (await client.receive(120))["type"] in TERMINALS


@pytest.mark.timeout(LONG_S)
async def test_ids_raced_over_two_sockets(broker: Broker) -> None:
    """Both sockets send every id, in an order of their own, again and again: each reaches the CLI once, every other
    send is told as a duplicate, and with other content it is a conflict."""
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    async with connected(broker.url, hello=opening("race", "one")) as one:
        async with connected(broker.url, hello=opening("race", "two")) as two:
            ids = [f"m-{number}" for number in range(IDS)]

            async def send_all(client: Client, order: list[str]) -> None:
                for message_id in order:
                    await client.say(f"[[sim tokens=2]] {message_id}", message_id)

            each = ids * (SENDS // 2)
            orders = [random.Random(seed + number).sample(each, len(each)) for number in range(2)]
            async with asyncio.TaskGroup() as group:
                for client, order in zip((one, two), orders, strict=True):
                    group.create_task(send_all(client, order))
            for client in (one, two):
                await ended(client)
                await client.sync()
                assert Counter(frame["id"] for frame in terminals(client.frames)) == Counter(ids)
                assert contiguous(client.frames)
            receipts = one.of_type("broker.accepted") + two.of_type("broker.accepted")
            assert Counter(frame["id"] for frame in receipts if not frame["duplicate"]) == Counter(ids)
            duplicates = [frame["id"] for frame in receipts if frame["duplicate"]]
            assert Counter(duplicates) == Counter(ids * (SENDS - 1))
            for message_id in random.Random(seed).sample(ids, CHANGED):
                assert (await accepted(two, f"[[sim tokens=2]] not {message_id}", message_id))["code"] == "id_conflict"
            assert Counter(ids_at_cli(broker, one)) == Counter(ids)
            started = [frame["id"] for frame in one.of_type("broker.message") if frame["state"] == "started"]
            assert started == ids_at_cli(broker, one)
            print(f"{IDS} ids x {SENDS} sends: {len(duplicates)} duplicates, {CHANGED} conflicts")
