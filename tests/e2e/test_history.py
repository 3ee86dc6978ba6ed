"""broker.history: what was said, from the transcript, page by page, whoever asks and whatever became of the process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.beside import no_bug, rss_mb, welcomed
from tests.kit.broker import Broker, running_broker, started_broker
from tests.kit.client import Client, Frame, connected, terminals, text_of
from tests.kit.raw import raw_connection
from tests.oracle import Oracle
from tests.waiting import eventually

KEYS = {"type", "message", "uuid", "session_id", "timestamp", "parent_tool_use_id"}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker."""
    config = {"session": {"detach_timeout_s": 30}}
    with started_broker(tmp_path_factory.mktemp("history"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


def place(session_id: str, mode: str = "open", **others: Any) -> dict[str, Any]:
    """Hello's fields."""
    return {"session": {"mode": mode, "id": session_id}, **others}


async def history(client: Client, **fields: Any) -> Frame:
    """One page."""
    await client.send({"type": "broker.history", **fields})
    return await client.until_type("broker.history")


def words(frames: list[Frame]) -> list[tuple[str, str]]:
    """Who said what: the text of each frame that has one."""
    found = []
    for frame in frames:
        content = frame["message"]["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        found += [(frame["type"], block["text"]) for block in blocks if block["type"] == "text"]
    return found


async def conversation(client: Client, count: int, name: str = "word") -> list[tuple[str, str]]:
    """Hold a conversation; what was said in it."""
    said = []
    for number in range(count):
        before = len(client.frames)
        await client.turn(f"{name} {number}", f"{name}-{number}")
        said += [("user", f"{name} {number}"), ("assistant", text_of(client.frames[before:]))]
    return said


async def test_the_history_is_what_was_said(broker: Broker) -> None:
    """Every message and every answer, in order, with the client's own ids, and nothing of the transcript's rest."""
    async with connected(broker.url, hello=place("said")) as client:
        empty = await history(client)
        assert (empty["frames"], empty["more"]) == ([], False)
        said = await conversation(client, 3)
        page = await history(client)
        assert words(page["frames"]) == said
        assert page["more"] is False
        assert "seq" not in page
        assert all(set(frame) == KEYS for frame in page["frames"])
        assert [f["uuid"] for f in page["frames"] if f["type"] == "user"] == ["word-0", "word-1", "word-2"]
        assert {frame["session_id"] for frame in page["frames"]} == {client.welcome["cli"]["session_id"]}
        told = [frame for frame in client.frames if frame["type"] == "assistant"]
        shown = [frame for frame in page["frames"] if frame["type"] == "assistant"]
        assert [frame["uuid"] for frame in shown] == [frame["uuid"] for frame in told]
        assert [frame["message"]["content"] for frame in shown] == [frame["message"]["content"] for frame in told]


async def test_pages_lead_back_to_the_beginning(broker: Broker) -> None:
    """``before`` the oldest frame known, again and again, gives everything once."""
    async with connected(broker.url, hello=place("pages")) as client:
        said = await conversation(client, 5)
        frames: list[Frame] = []
        page: Frame = {"more": True}
        while page["more"]:
            page = await history(client, limit=3, **({"before": frames[0]["uuid"]} if frames else {}))
            assert len(page["frames"]) <= 3
            frames = page["frames"] + frames
        assert words(frames) == said
        page = await history(client, before=frames[0]["uuid"])
        assert (page["frames"], page["more"]) == ([], False)


async def test_a_tool_call_and_its_result_are_part_of_it(broker: Broker) -> None:
    """As on the CLI's stdout: the call, the result as the user's, the answer."""
    async with connected(broker.url, hello=place("tools")) as client:
        await client.turn('[[sim tool="Bash:echo hi" tokens=2]] go')
        kinds = [(f["type"], block["type"]) for f in (await history(client))["frames"]
                 for block in f["message"]["content"] if isinstance(block, dict)]  # fmt: skip
        assert kinds == [("assistant", "tool_use"), ("user", "tool_result"), ("assistant", "text")]


async def test_an_unknown_position_is_an_error(broker: Broker) -> None:
    """``unknown_message`` naming it; the connection stays."""
    async with connected(broker.url, hello=place("unknown")) as client:
        await conversation(client, 1)
        await client.send({"type": "broker.history", "before": "never-said"})
        error = await client.error()
        assert (error["code"], error["ref"]) == ("unknown_message", "never-said")
        assert len((await history(client))["frames"]) == 2


async def test_in_a_running_turn_it_is_what_there_is(broker: Broker) -> None:
    """The question is there, the answer follows; the turn is not disturbed."""
    async with connected(broker.url, hello=place("running")) as client:
        await conversation(client, 1)
        await client.say("[[sim tokens=60 itl_ms=20]] slow", "m-slow")
        await client.until_type("stream_event")
        page = await history(client)
        assert [frame["uuid"] for frame in page["frames"] if frame["type"] == "user"] == ["word-0", "m-slow"]
        assert (await client.terminal("m-slow"))["type"] == "broker.turn_completed"
        assert words((await history(client))["frames"])[-1][0] == "assistant"


async def test_a_client_that_asks_at_once_gets_its_pages_in_order(broker: Broker) -> None:
    """Requests in one burst are answered one after another, and the connection serves others meanwhile."""
    async with connected(broker.url, hello=place("burst")) as client, connected(broker.url, hello=place("x")) as other:
        await conversation(client, 3)
        for limit in range(1, 7):
            await client.send({"type": "broker.history", "limit": limit})
        await other.sync()
        pages = [await client.until_type("broker.history") for _ in range(6)]
        assert [len(page["frames"]) for page in pages] == [1, 2, 3, 4, 5, 6]


async def test_pages_do_not_pile_up_for_a_client_that_reads_nothing(broker: Broker) -> None:
    """A thousand requests for a large page hold one page in memory, not a thousand."""
    async with connected(broker.url, hello=place("pile")) as client:
        for number in range(4):
            await client.turn("x" * 500_000 + f" [[sim tokens=1]] {number}")
        before = rss_mb(broker)
        async with raw_connection(broker.port) as raw:
            await welcomed(raw, "pile")
            for _ in range(1000):
                await raw.send({"type": "broker.history"})
            await client.sync()
            assert len((await history(client))["frames"]) == 8
            assert rss_mb(broker) - before < 60
    assert no_bug(broker)


async def test_it_outlives_the_process(tmp_path: Path) -> None:
    """Hibernated, killed, restored and forked: the same words; an observer reads them without waking anything."""
    async with running_broker(tmp_path, {"session": {"detach_timeout_s": 0.2}}) as broker:
        async with connected(broker.url, hello=place("kept")) as client:
            said = await conversation(client, 2)
        await broker.wait_pool(leased=0, stopping=0, starting=0)
        async with connected(broker.url, hello=place("kept", role="observer")) as observer:
            assert words((await history(observer))["frames"]) == said
            assert broker.pool()["leased"] == 0
        async with connected(broker.url, hello=place("kept", options={"lazy": True})) as lazy:
            assert words((await history(lazy))["frames"]) == said
            assert broker.pool()["leased"] == 0
        async with connected(broker.url, hello=place("kept")) as client:
            assert client.welcome["start"] == "restored"
            assert words((await history(client))["frames"]) == said
            await client.say("[[sim tokens=50 die_after=3]] doomed", "m-doomed")
            assert (await client.terminal("m-doomed"))["reason"] == "cli_exited"
            said += await conversation(client, 1, "after")
            found = words((await history(client))["frames"])
            assert [text for text in found if text in said] == said
            async with connected(broker.url, hello=place("kept", "fork")) as child:
                assert words((await history(child))["frames"]) == found
                more = await conversation(child, 1, "mine")
                assert words((await history(child))["frames"]) == found + more
            assert words((await history(client))["frames"]) == found
        assert len(terminals(client.frames)) == 2


async def test_a_damaged_transcript_shows_what_is_whole(tmp_path: Path) -> None:
    """A torn last line, garbage and a foreign line cost themselves alone."""
    async with running_broker(tmp_path, {}) as broker:
        async with connected(broker.url, hello=place("torn")) as client:
            said = await conversation(client, 2)
            name = f"*/home/.claude/projects/*/{client.welcome['cli']['session_id']}.jsonl"
            path = await eventually(lambda: next((broker.state / "sessions").glob(name), None))
            whole = path.read_bytes()
            path.write_bytes(whole + b'\xff\xfe\n[1,2]\n{"type":"user","uuid":"torn","message":{"role":"us')
            assert words((await history(client))["frames"]) == said
