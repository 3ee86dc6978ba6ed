"""Two views of one session, and what ``verbose`` adds to them."""

import json
from collections.abc import Iterator

import pytest

from protocol.text import TextAssembler, TurnText
from protocol.traces import TRACES
from tests.kit.broker import Broker, started_broker
from tests.kit.client import Client, Frame, connected, contiguous
from tests.oracle import Oracle

EVENTS = {
    "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
    "message_stop",
}  # fmt: skip


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker where every tenant may ask for verbose sessions."""
    config = {"policy": {"options": ["verbose"]}, "pool": {"profiles": {"default": {"warm": 2}}}}
    with started_broker(tmp_path_factory.mktemp("views"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


def hello(session: str, view: str = "cli", **ref: object) -> dict[str, object]:
    return {"session": {"mode": "open", "id": session, **ref}, "view": view}


def unwrapped(frame: Frame) -> Frame:
    """A frame of the view ``cli`` as the view ``messages`` shows it."""
    if frame["type"] == "stream_event" and frame["parent_tool_use_id"] is None:
        return {**frame["event"], "seq": frame["seq"]}
    return frame


async def until(client: Client, message_id: str) -> list[Frame]:
    """Everything numbered, up to the terminal of a message."""
    await client.terminal(message_id)
    return client.numbered()


async def test_two_clients_with_a_view_each(broker: Broker) -> None:
    """The same frames with the same numbers; what one gets in an envelope, the other gets alone, ``seq`` last."""
    async with (
        connected(broker.url, hello=hello("two")) as first,
        connected(broker.url, hello=hello("two", "messages")) as second,
    ):
        assert (first.welcome["view"], second.welcome["view"]) == ("cli", "messages")
        await second.say('[[sim tokens=5 thinking tool="Bash:echo hi"]] hello', "m-1")
        plain, events = await until(first, "m-1"), await until(second, "m-1")
        assert events == [unwrapped(frame) for frame in plain]
        assert contiguous(events)
        assert {frame["type"] for frame in events} >= EVENTS
        assert "stream_event" not in {frame["type"] for frame in events}
        texts = [text for text in second.texts if json.loads(text)["type"] in EVENTS]
        assert all(list(json.loads(text))[-1] == "seq" for text in texts)


async def test_a_view_may_change_at_each_hello(broker: Broker) -> None:
    """What was missed is replayed in the view that the new connection asks for."""
    async with connected(broker.url, hello=hello("change")) as client:
        await client.say("[[sim tokens=60 itl_ms=10]] hello", "m-1")
        await client.until_type("stream_event")
        seen, epoch = client.last_seq, client.welcome["epoch"]
        early = client.numbered()
    async with connected(broker.url, hello=hello("change", "messages", epoch=epoch, last_seq=seen)) as client:
        later = await until(client, "m-1")
        assert [frame["seq"] for frame in later] == list(range(seen + 1, later[-1]["seq"] + 1))
        assert "content_block_delta" in {frame["type"] for frame in later}
    async with connected(broker.url, hello=hello("change", "cli", epoch=epoch, last_seq=0)) as client:
        whole = await until(client, "m-1")
        assert whole[: len(early)] == early
        assert [unwrapped(frame) for frame in whole[seen:]] == later


async def test_only_the_words(broker: Broker) -> None:
    """A program that feeds what it receives, in either view and over a reconnect, has the text of each turn."""
    words, found = TextAssembler(), []
    async with connected(broker.url, hello=hello("words")) as client:
        await client.turn("[[sim tokens=3]] one", "m-1")
        await client.say("[[sim tokens=40 itl_ms=10]] two", "m-2")
        while len(client.of_type("stream_event")) < 20:
            await client.receive()
        found += [part for text in client.texts for part in words.feed(text)]
    again = hello("words", "messages", epoch=words.epoch, last_seq=words.last_seq)
    async with connected(broker.url, hello=again) as client:
        await client.terminal("m-2")
        found += [part for text in client.texts for part in words.feed(text)]
    turns = [part for part in found if isinstance(part, TurnText)]
    assert turns == [
        TurnText("m-1", "".join(f"one{n} " for n in range(3))),
        TurnText("m-2", "".join(f"two{n} " for n in range(40))),
    ]
    assert "".join(part.text for part in found if not isinstance(part, TurnText)) == "".join(t.text for t in turns)


def traces(frames: list[Frame]) -> set[str]:
    """Which frames of the table were seen."""
    names = {f"{f['type']}/{f['subtype']}" if f["type"] == "system" else f["type"] for f in frames}
    return names & set(TRACES)


async def test_a_session_is_quiet_unless_it_is_verbose(broker: Broker) -> None:
    """The traces are left out before they get a number, and counted; ``verbose`` shows all that the CLI says."""
    async with connected(broker.url, hello=hello("quiet")) as client:
        quiet = await until(client, (await client.turn("[[sim tokens=3 thinking]] hello", "m-1"))["id"])
        assert traces(quiet) == set()
        assert contiguous(quiet)
        subtypes = {frame["subtype"] for frame in quiet if frame["type"] == "system"}
        assert {"init", "session_state_changed"} <= subtypes
    counted = broker.metric("broker_cli_frames_quieted_total", type="system/status")
    assert counted >= 1
    async with connected(broker.url, hello={**hello("loud"), "options": {"verbose": True}}) as client:
        loud = await until(client, (await client.turn("[[sim tokens=3 thinking]] hello", "m-1"))["id"])
        assert {"system/status", "command_lifecycle"} <= traces(loud)
        assert contiguous(loud)
    assert broker.metric("broker_cli_frames_quieted_total", type="system/status") == counted
