"""Messages that are handed to the CLI while a turn runs: folded into it or run behind it, each with one end."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.kit.broker import Broker, started_broker
from tests.kit.client import Client, Frame, connected, terminals
from tests.kit.ledger import said_to_cli
from tests.oracle import Oracle
from tests.waiting import eventually

SLOW = "[[sim tokens=40 itl_ms=20]]"
TOOL = '[[sim tool="Bash:sleep 0.4" tokens=2]]'
ASKS = '[[sim tool="Bash:touch steered" tokens=2]]'


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with the defaults of the configuration, but that lets go of abandoned processes."""
    config = {"session": {"detach_timeout_s": 3}, "turn": {"queue": 3}, "pool": {"profiles": {"default": {"warm": 2}}}}
    with started_broker(tmp_path_factory.mktemp("steer"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


async def steer(client: Client, text: str, message_id: str) -> None:
    await client.send({"type": "user_message", "id": message_id, "content": text, "steer": True})


def told_of(frame: Frame) -> tuple[str, str]:
    return frame["id"], frame["state"]


async def ends(client: Client, *message_ids: str) -> list[tuple[str, str | None]]:
    """The type of each message's terminal and whose turn it was folded into, in the order of the ids."""
    found = [await client.terminal(message_id) for message_id in message_ids]
    return [(frame["type"].removeprefix("broker.turn_"), frame.get("folded_into")) for frame in found]


async def one_end_each(client: Client, *message_ids: str) -> None:
    """Nothing more comes for any of them."""
    await client.sync()
    assert {message_id: len(terminals(client.frames, message_id)) for message_id in message_ids} == dict.fromkeys(
        message_ids, 1
    )


async def test_a_steered_message_is_folded_at_the_next_tool(broker: Broker) -> None:
    """One result; the turn's own terminal comes first and counts the cost, then that of the folded message."""
    async with connected(broker.url, hello={"session": {"id": "fold"}}) as client:
        await client.say(TOOL, "m-1")
        await client.until(lambda frame: frame["type"] == "assistant")
        await steer(client, "and then this", "m-2")
        assert await ends(client, "m-1", "m-2") == [("completed", None), ("completed", "m-1")]
        types = [frame["type"] for frame in client.frames]
        assert types.count("result") == 1
        order = [frame["id"] for frame in terminals(client.frames)]
        assert order == ["m-1", "m-2"]
        own, folded = terminals(client.frames)
        assert own["cost_usd"] > 0
        assert (folded["cost_usd"], folded["usage"], folded["frames"], folded["ttft_ms"]) == (None, None, 0, None)
        assert folded["total"] == own["total"]
        assert (own["total"]["turns"], own["total"]["cost_usd"]) == (1, own["cost_usd"])
        told = [told_of(frame) for frame in client.of_type("broker.message")]
        assert told == [("m-1", "started"), ("m-2", "queued"), ("m-2", "started")]
        [folded_at] = [
            frame["seq"] for frame in client.of_type("broker.message") if told_of(frame) == ("m-2", "started")
        ]
        assert client.of_type("user")[0]["seq"] < folded_at < own["seq"], "when the tool has answered"
        assert [frame["queued"] for frame in client.of_type("broker.accepted")] == [0, 0]
        await one_end_each(client, "m-1", "m-2")
    lines = [line for _, line in said_to_cli(broker.ledger_rows(), "user") if line["uuid"] in ("m-1", "m-2")]
    assert [line.get("priority") for line in lines] == [None, "next"]


async def test_without_a_tool_it_is_the_next_turn(broker: Broker) -> None:
    """Its own result, its own terminal, its own first token; a queued message waits until after it."""
    async with connected(broker.url, hello={"session": {"id": "next"}}) as client:
        await client.say(f"first {SLOW}", "m-1")
        await client.until_type("stream_event")
        await client.say("queued [[sim tokens=2]]", "m-3")
        await steer(client, "steered [[sim tokens=2]]", "m-2")
        assert await ends(client, "m-1", "m-2", "m-3") == [("completed", None)] * 3
        assert [frame["id"] for frame in terminals(client.frames)] == ["m-1", "m-2", "m-3"]
        [began] = [frame for frame in client.of_type("broker.message") if told_of(frame) == ("m-2", "started")]
        assert began["seq"] == terminals(client.frames, "m-1")[0]["seq"] + 1, "its turn begins where the other ends"
        assert all(frame["ttft_ms"] > 0 and frame["cost_usd"] > 0 for frame in terminals(client.frames))
        assert terminals(client.frames, "m-2")[0]["queue_ms"] > 100, "it waited in the CLI"
        await one_end_each(client, "m-1", "m-2", "m-3")


async def test_several_that_are_left_share_a_turn(broker: Broker) -> None:
    """The CLI runs them together: the first has the turn, the second is folded into it."""
    async with connected(broker.url, hello={"session": {"id": "share"}}) as client:
        await client.say(f"first {SLOW}", "m-1")
        await client.until_type("stream_event")
        await steer(client, "second [[sim tokens=2]]", "m-2")
        await steer(client, "third", "m-3")
        assert await ends(client, "m-1", "m-2", "m-3") == [
            ("completed", None),
            ("completed", None),
            ("completed", "m-2"),
        ]
        await one_end_each(client, "m-1", "m-2", "m-3")


async def test_without_a_turn_it_is_an_ordinary_message(broker: Broker) -> None:
    """Nothing runs, or what runs is being stopped: it is queued and written like any other."""
    async with connected(broker.url, hello={"session": {"id": "ordinary"}}) as client:
        await steer(client, "hello [[sim tokens=2]]", "m-1")
        assert await ends(client, "m-1") == [("completed", None)]
        await client.say(f"first {SLOW}", "m-2")
        await client.until_type("stream_event")
        await client.ask("interrupt", "c-1")
        await steer(client, "after [[sim tokens=2]]", "ordinary-3")
        assert (await client.terminal("m-2"))["stopped"] is True
        assert await ends(client, "ordinary-3") == [("completed", None)]
        told = [(f["id"], f["state"]) for f in client.of_type("broker.message") if f["id"] == "ordinary-3"]
        assert told == [("ordinary-3", "queued"), ("ordinary-3", "started")]
    ids = [line["uuid"] for _, line in said_to_cli(broker.ledger_rows(), "user") if "priority" in line]
    assert "ordinary-3" not in ids


async def test_in_the_sdk_shape_and_while_a_prompt_is_open(broker: Broker) -> None:
    """The turn waits for a person: the message is folded once the tool has run.  Another client sees the same."""
    hello = {"session": {"mode": "open", "id": "prompt"}}
    async with connected(broker.url, hello=hello) as client, connected(broker.url, hello=hello) as other:
        await client.say(ASKS, "m-1")
        prompt = await client.prompt()
        await client.send(
            {"type": "user", "uuid": "m-2", "message": {"role": "user", "content": "also"}, "steer": True}
        )
        await client.until(lambda frame: frame["type"] == "broker.message" and frame["id"] == "m-2")
        async with connected(broker.url, hello=hello) as late:
            assert late.welcome["turn"]["id"] == "m-1"
            assert (late.welcome["turn"]["steered"], late.welcome["queued"]) == (["m-2"], [])
        await client.answer(prompt["request_id"], behavior="allow")
        assert await ends(client, "m-1", "m-2") == [("completed", None), ("completed", "m-1")]
        assert await ends(other, "m-1", "m-2") == [("completed", None), ("completed", "m-1")]


async def test_a_repeat_is_told_its_end(broker: Broker) -> None:
    """The id works as for any message, whether it is sent again with ``steer`` or without."""
    async with connected(broker.url, hello={"session": {"id": "repeat"}}) as client:
        await client.say(TOOL, "m-1")
        await client.until(lambda frame: frame["type"] == "assistant")
        await steer(client, "also", "m-2")
        await steer(client, "also", "m-2")
        await client.terminal("m-2")
        await client.say("also", "m-2")
        await steer(client, "something else", "m-2")
        assert (await client.error())["code"] == "id_conflict"
        found = [(f["duplicate"], f["outcome"]) for f in client.of_type("broker.accepted") if f["id"] == "m-2"]
        assert found == [(False, None), (True, None), (True, "completed")]
        await one_end_each(client, "m-1", "m-2")


async def test_the_queue_bounds_what_is_steered(broker: Broker) -> None:
    """Beyond ``turn.queue`` a steered message is refused like a queued one, and a steered one cannot be withdrawn."""
    async with connected(broker.url, hello={"session": {"id": "bound"}}) as client:
        await client.say(f"first {SLOW}", "m-1")
        await client.until_type("stream_event")
        for number in (2, 3, 4):
            await steer(client, "more", f"m-{number}")
        await steer(client, "too much", "m-5")
        error = await client.error()
        assert (error["code"], error["ref"]) == ("queue_full", "m-5")
        await client.send({"type": "broker.cancel", "id": "m-2"})
        assert (await client.error())["code"] == "already_started"
        assert [kind for kind, _ in await ends(client, "m-1", "m-2", "m-3", "m-4")] == ["completed"] * 4


async def test_an_interrupt_leaves_what_was_steered(broker: Broker) -> None:
    """The turn is stopped and the message that waits behind it runs; the receipt tells of it."""
    async with connected(broker.url, hello={"session": {"id": "stop"}}) as client:
        await client.say(f"first {SLOW}", "m-1")
        await client.until_type("stream_event")
        await steer(client, "second [[sim tokens=2]]", "m-2")
        receipt = (await client.control("interrupt"))["response"]
        assert receipt == {"still_queued": ["m-2"], "cancelled": []}
        assert (await client.terminal("m-1"))["stopped"] is True
        second = await client.terminal("m-2")
        assert (second["type"], second["stopped"], second["folded_into"]) == ("broker.turn_completed", False, None)
        await one_end_each(client, "m-1", "m-2")


async def test_an_interrupt_may_withdraw_what_was_steered(broker: Broker) -> None:
    """With ``cancel_queued`` the CLI forgets it: it was never read, and may be sent again."""
    async with connected(broker.url, hello={"session": {"id": "withdraw"}}) as client:
        await client.say(f"first {SLOW}", "m-1")
        await client.until_type("stream_event")
        await steer(client, "second", "m-2")
        await client.say("third", "m-3")
        receipt = (await client.control("interrupt", cancel_queued=True))["response"]
        assert receipt == {"still_queued": ["m-2"], "cancelled": ["m-3"]}
        for message_id in ("m-2", "m-3"):
            end = await client.terminal(message_id)
            assert (end["type"], end["reason"], end["applied"], end["retryable"]) == (
                "broker.turn_failed", "cancelled", "no", True
            )  # fmt: skip
        assert (await client.terminal("m-1"))["stopped"] is True
        await one_end_each(client, "m-1", "m-2", "m-3")
        assert (await client.turn("next [[sim tokens=2]]", "m-4"))["is_error"] is False


async def test_an_interrupt_may_name_a_folded_message(broker: Broker) -> None:
    """The turn that it guards is the one that took the message in."""
    async with connected(broker.url, hello={"session": {"id": "named"}}) as client:
        await client.say('[[sim tool="Bash:sleep 0.3"]]', "m-1")
        await client.until(lambda frame: frame["type"] == "assistant")
        await steer(client, f"and then {SLOW}", "m-2")
        assert (await client.control("interrupt", turn="m-2"))["response"] == {"stale": True}
        await client.until(lambda frame: frame["type"] == "user")
        await client.until_type("stream_event")
        assert "stale" not in (await client.control("interrupt", turn="m-2"))["response"]
        assert await ends(client, "m-1", "m-2") == [("completed", None), ("completed", "m-1")]
        assert [frame["stopped"] for frame in terminals(client.frames)] == [True, True]


async def test_a_crash_ends_every_written_message_once(broker: Broker) -> None:
    """Killed in mid-turn: what was folded surely counts, what waited in the CLI is unknown, what was queued is not."""
    async with connected(broker.url, hello={"session": {"id": "crash"}}) as client:
        await client.say('[[sim tool="Bash:sleep 0.2"]]', "m-1")
        await client.until(lambda frame: frame["type"] == "assistant")
        await steer(client, f"second {SLOW}", "m-2")
        await client.until(lambda frame: frame["type"] == "user")
        await client.until_type("stream_event")
        await steer(client, "third", "m-3")
        await client.say("fourth", "m-4")
        await client.sync()
        session = client.welcome["cli"]["session_id"]
        [pid] = {
            row["pid"]
            for row in broker.ledger_rows()
            if row["dir"] == "meta" and f"--session-id={session}" in row["argv"]
        }
        os.kill(pid, signal.SIGKILL)
        found = [await client.terminal(f"m-{number}") for number in (1, 2, 3, 4)]
        assert [(f["reason"], f["applied"], f["retryable"]) for f in found] == [
            ("cli_exited", "yes", False), ("cli_exited", "yes", False), ("cli_exited", "unknown", False),
            ("cancelled", "no", True),
        ]  # fmt: skip
        assert (await client.turn("again [[sim tokens=2]]", "m-5"))["is_error"] is False
        await one_end_each(client, "m-1", "m-2", "m-3", "m-4", "m-5")


async def test_nobody_is_awaited_for_a_folded_message(broker: Broker) -> None:
    """Spares may start again at once: no first token is counted as due when everything has ended."""
    async with connected(broker.url, hello={"session": {"id": "awaited"}}) as client:
        for number in range(3):
            await client.say(TOOL, f"a-{number}")
            await client.until(lambda frame: frame["type"] == "assistant")
            await steer(client, "fold", f"b-{number}")
            await client.terminal(f"b-{number}")
    await eventually(lambda: broker.metric("broker_pool_processes", pool="default", state="warm") >= 2, 20)
