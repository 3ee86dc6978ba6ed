"""Conversations on the real CLI: memory over everything that may happen to a process, forks, history, deletion."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from simulator.messages_api import MessagesApi
from tests.e2e.real import EITHER, options, posts, real_broker
from tests.kit.broker import Broker
from tests.kit.client import Client, Frame, connected, text_of
from tests.processes import read_process
from tests.waiting import eventually

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(180), pytest.mark.slow]


def place(session_id: str, mode: str = "open", **others: Any) -> dict[str, Any]:
    """Hello's fields, with a credential."""
    return {"session": {"mode": mode, "id": session_id}, "options": options("t", **others)}


async def said(client: Client, text: str, message_id: str | None = None) -> str:
    """The answer to ``text``: the stand-in counts what the request says that the user said before."""
    before = len(client.frames)
    end = await client.turn(text, message_id, within_s=60)
    assert end["type"] == "broker.turn_completed"
    assert not end["is_error"], end
    return text_of(client.frames[before:])


async def idle(client: Client) -> None:
    """Until the CLI has said its last word on the turn."""
    await client.until(lambda frame: frame.get("subtype") == "session_state_changed" and frame["state"] == "idle")


async def history(client: Client, **fields: Any) -> Frame:
    """One page of what was said."""
    await client.send({"type": "broker.history", **fields})
    return await client.until_type("broker.history")


def words(frames: list[Frame]) -> list[tuple[str, str]]:
    """Who said what."""
    found = []
    for frame in frames:
        content = frame["message"]["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        found += [(frame["type"], block["text"]) for block in blocks if block["type"] == "text"]
    return found


def on_disk(broker: Broker, session_id: str) -> dict[str, bytes]:
    """The transcripts of a CLI's session id, by path."""
    found = (broker.state / "sessions").glob(f"*/home/.claude/projects/*/{session_id}.jsonl")
    return {str(path): path.read_bytes() for path in found}


def last_request(api: MessagesApi) -> str:
    """What the stand-in was sent last, as text."""
    return str(posts(api)[-1])


def cli_pid(broker: Broker, client: Client) -> int:
    """The process of this client's conversation: its working directory names it."""
    own = client.welcome["cli"]["session_id"][:13]
    return min(p.pid for p in broker.descendants() if own in _folder(p.pid))


def _folder(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


@pytest.mark.parametrize("version", EITHER)
async def test_a_conversation_outlives_its_processes(version: str, tmp_path: Path) -> None:
    """Turns, a reconnect, kill -9, hibernation and continue: each request holds what was said before."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, {"session": {"detach_timeout_s": 1}}) as broker:
            async with connected(broker.url, hello=place("kept")) as client:
                await said(client, "word-one")
                await said(client, "word-two")
                assert "word-one" in last_request(api)
                await idle(client)
            async with connected(broker.url, hello=place("kept")) as client:
                assert client.welcome["start"] == "attached"
                await said(client, "word-three")
                assert "word-two" in last_request(api)
                # Claude Code 2.1.197 writes an answer up to 0.1 s after its result; who kills it before, loses it.
                await eventually(
                    lambda: any("word-three" in str(text) for text in on_disk(broker, own(client)).values()), 5
                )
                pid = cli_pid(broker, client)
                os.kill(pid, signal.SIGKILL)
                await eventually(lambda: read_process(pid) is None)
                asked = len(posts(api))
                await said(client, "word-four")
                assert "word-three" in last_request(api)
                assert len(posts(api)) == asked + 1  # nothing ran by itself
                await idle(client)
            await broker.wait_pool(60, leased=0, stopping=0)
            async with connected(
                broker.url, hello={"session": {"mode": "continue"}, "options": options("t")}
            ) as client:
                assert (client.welcome["session_id"], client.welcome["start"]) == ("kept", "restored")
                await said(client, "word-five")
                assert all(f"word-{n}" in last_request(api) for n in ("one", "two", "three", "four"))


@pytest.mark.parametrize("version", EITHER)
async def test_a_conversation_outlives_the_broker(version: str, tmp_path: Path) -> None:
    """Stopped in order, then killed in mid-turn: the next run goes on with its context, once a credential is there."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker:
            async with connected(broker.url, hello=place("kept", system_prompt="You are a pirate.")) as client:
                await said(client, "word-one", "m-1")
                await idle(client)
            await broker.stop()
        async with real_broker(tmp_path, version, api) as broker:
            async with connected(broker.url) as client:
                with pytest.raises(ConnectionClosed):
                    await client.hello(session={"mode": "resume", "id": "kept"})
                assert client.of_type("broker.error")[0]["code"] == "credentials_required"
            async with connected(broker.url, hello=place("kept")) as client:
                await said(client, "word-two", "m-2")
                assert "word-one" in last_request(api)
                assert "You are a pirate." in last_request(api)
                await idle(client)
                await client.say("[[sim tokens=300 itl_ms=20]] doomed", "m-3")
                await eventually_on_disk(broker, client, "doomed")
                below = [process.pid for process in broker.descendants()]
                await broker.stop(signal.SIGKILL)
                await eventually(lambda: not [pid for pid in below if read_process(pid)])
        asked = len(posts(api))
        async with real_broker(tmp_path, version, api) as broker:
            async with connected(broker.url, hello=place("kept", "resume")) as client:
                assert client.welcome["start"] == "restored"
                await said(client, "word-three", "m-4")
                assert len(posts(api)) == asked + 1, "nothing ran by itself"
                assert all(word in last_request(api) for word in ("word-one", "word-two"))


def own(client: Client) -> str:
    """The CLI's session id."""
    found: str = client.welcome["cli"]["session_id"]
    return found


@pytest.mark.parametrize("version", EITHER)
async def test_a_killed_turn_is_not_run_again(version: str, tmp_path: Path) -> None:
    """kill -9 in the second turn: the restored process waits for the user, and asks the API nothing by itself."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker:
            async with connected(broker.url, hello=place("killed")) as client:
                await said(client, "word-one")
                await idle(client)
                await client.say("[[sim tokens=300 itl_ms=20]] doomed", "m-doomed")
                await eventually_on_disk(broker, client, "doomed")
                os.kill(cli_pid(broker, client), signal.SIGKILL)
                assert (await client.terminal("m-doomed"))["reason"] == "cli_exited"
                asked = len(posts(api))
                await client.until(lambda frame: frame.get("state") == "restored", 60)
                with pytest.raises(TimeoutError):
                    await client.until(lambda frame: frame["type"] in ("stream_event", "assistant"), 1.5)
                assert len(posts(api)) == asked
                await said(client, "word-two")
                assert words((await history(client))["frames"])[-2][1] == "word-two"


async def eventually_on_disk(broker: Broker, client: Client, text: str) -> None:
    """Until the transcript holds ``text``; what the client is sent meanwhile is read."""
    deadline = time.monotonic() + 10
    while not any(text in str(found) for found in on_disk(broker, own(client)).values()):
        assert time.monotonic() < deadline
        await client.receive()


def is_untouched(now: dict[str, bytes], before: dict[str, bytes]) -> bool:
    """Nothing of the parent is gone or changed; its own process may still have added a line of its own."""
    kept = all(now[path].startswith(data) for path, data in before.items())
    return kept and not any(word in data for data in now.values() for word in (b"only-a", b"only-b"))


@pytest.mark.parametrize("version", EITHER)
async def test_two_branches_diverge_and_the_parent_is_untouched(version: str, tmp_path: Path) -> None:
    """A and B know what the parent knew at the fork, then each its own; the parent's bytes stay, and it goes on."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, {"pool": {"max_processes": 8}}) as broker:
            parents = place("root", system_prompt="You are the parent.")
            async with connected(broker.url, hello=parents) as parent:
                await said(parent, "word-root")
                await said(parent, "word-two", "m-2")
                await idle(parent)
                page = await history(parent)  # waits until an answer is written
                before = on_disk(broker, own(parent))
                assert len(before) == 1
                fork = place("root", "fork")
                other = place("root", "fork", system_prompt="You are the branch.")
                async with connected(broker.url, hello=fork) as a, connected(broker.url, hello=other) as b:
                    assert len({own(client) for client in (parent, a, b)}) == 3
                    assert a.welcome["start"] == b.welcome["start"] == "restored"
                    for client in (a, b):
                        assert words((await history(client))["frames"]) == words(page["frames"])
                    async with asyncio.TaskGroup() as group:
                        group.create_task(said(a, "only-a", "m-2"))  # an id that the copied transcript knows
                        group.create_task(said(b, "only-b", "m-2"))
                    assert is_untouched(on_disk(broker, own(parent)), before)
                    requests = [str(post) for post in posts(api)]
                    of_a = next(text for text in requests if "only-a" in text)
                    of_b = next(text for text in requests if "only-b" in text)
                    assert all("word-root" in text and "word-two" in text for text in (of_a, of_b))
                    assert "only-b" not in of_a
                    assert "only-a" not in of_b
                    assert "You are the parent." in of_a
                    assert "You are the branch." in of_b
                    assert "You are the parent." not in of_b
                    for client, mine in ((a, "only-a"), (b, "only-b")):
                        shown = words((await history(client))["frames"])
                        assert shown[: len(words(page["frames"]))] == words(page["frames"])
                        assert ("user", mine) in shown
                    total = a.of_type("broker.turn_completed")[0]["total"]
                    assert total["turns"] == 1
                    assert total["cost_usd"] == pytest.approx(a.of_type("broker.turn_completed")[0]["cost_usd"])
                assert is_untouched(on_disk(broker, own(parent)), before)
                await said(parent, "word-three")
                assert "only-a" not in last_request(api)
                assert "only-b" not in last_request(api)


@pytest.mark.full
@pytest.mark.parametrize("version", EITHER)
async def test_a_fork_of_a_running_turn(version: str, tmp_path: Path) -> None:
    """The branch begins with what was said and runs nothing by itself; the parent's turn ends as if nothing was."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker:
            async with connected(broker.url, hello=place("busy")) as parent:
                await said(parent, "word-one")
                await parent.say("[[sim tokens=300 itl_ms=20]] running", "m-1")
                await parent.until(lambda f: f["type"] == "stream_event" and "delta" in f["event"], 60)
                await eventually_on_disk(broker, parent, "running")
                asked = len(posts(api))
                async with connected(broker.url, hello=place("busy", "fork")) as child:
                    assert child.welcome["turn"] is None
                    assert len(posts(api)) == asked
                    await said(child, "mine")
                    assert "word-one" in last_request(api)
                    assert len(posts(api)) == asked + 1
                assert (await parent.terminal("m-1", 60))["is_error"] is False


@pytest.mark.full
@pytest.mark.parametrize("version", EITHER)
async def test_a_fork_of_a_hibernated_parent_counts_its_own_costs(version: str, tmp_path: Path) -> None:
    """A parent that was stopped has its costs in its transcript; the branch's first turn costs what that turn costs."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, {"session": {"detach_timeout_s": 0.5}}) as broker:
            async with connected(broker.url, hello=place("asleep")) as parent:
                for number in range(3):
                    await said(parent, f"word {number}")
                first = parent.of_type("broker.turn_completed")[0]["cost_usd"]
                await idle(parent)
            await broker.wait_pool(60, leased=0, stopping=0)
            async with connected(broker.url, hello=place("asleep", "fork")) as child:
                await said(child, "mine")
                end = child.of_type("broker.turn_completed")[0]
                assert end["cost_usd"] < 2.5 * first
                assert end["total"]["cost_usd"] == pytest.approx(end["cost_usd"])
                assert end["total"]["turns"] == 1


@pytest.mark.parametrize("version", EITHER)
async def test_the_history_is_what_was_said(version: str, tmp_path: Path) -> None:
    """Equal in count and text, live and hibernated, page by page; tools, an interrupt, a subagent, an image."""
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": pixel}}
    task = "Agent" if version == "2.1.329" else "Task"
    agent = '{\\"description\\":\\"d\\",\\"prompt\\":\\"dig [[sim text=found-it]]\\",\\"subagent_type\\":\\"helper\\"}'
    agents = {"helper": {"description": "helps", "prompt": "You help."}}
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, {"session": {"detach_timeout_s": 1}}) as broker:
            async with connected(broker.url, hello=place("told", agents=agents)) as client:
                texts: list[Any] = [
                    "hello", '[[sim tool="Bash:echo hi" tokens=2]] tool', "[[sim thinking tokens=2]] think",
                    [{"type": "text", "text": "look [[sim tokens=2]]"}, image],
                    f'[[sim tool="{task}:{agent}" tokens=2]] go',
                ]  # fmt: skip
                for number, text in enumerate(texts):
                    await said(client, text, f"m-{number}")
                await client.until(lambda frame: frame.get("state") == "idle")
                await client.say("[[sim tokens=400 itl_ms=20]] long", "m-stop")
                await client.until_type("stream_event")
                await client.control("interrupt")
                await client.terminal("m-stop")
                page, until = await history(client, limit=200), time.monotonic() + 10
                while "m-stop" not in str(page["frames"]):  # an old CLI writes what was interrupted some time later
                    assert time.monotonic() < until
                    page = await history(client, limit=200)
                shown = page["frames"]
                assert page["more"] is False
                ids = [frame["uuid"] for frame in shown if frame["type"] == "user" and "tool_result" not in str(frame)]
                assert [uuid for uuid in ids if uuid.startswith("m-")] == [*(f"m-{n}" for n in range(5)), "m-stop"]
                told = [f for f in client.frames if f["type"] == "assistant" and f["parent_tool_use_id"] is None]
                assert [f["uuid"] for f in shown if f["type"] == "assistant"] == [f["uuid"] for f in told]
                assert [f["message"]["content"] for f in shown if f["type"] == "assistant"] == [
                    f["message"]["content"] for f in told
                ]
                asked = [f["message"]["content"] for f in shown if f["uuid"] in ids][: len(texts)]
                assert asked == texts
                assert str(tmp_path) not in str(
                    [f for f in shown if f["type"] == "user" and "tool_result" not in str(f)]
                )
                keys = {"type", "message", "uuid", "session_id", "timestamp", "parent_tool_use_id"}
                assert all(set(frame) == keys for frame in shown)
            await broker.wait_pool(60, leased=0, stopping=0)
            async with connected(
                broker.url, hello={"session": {"mode": "resume", "id": "told"}, "role": "observer"}
            ) as o:
                frames: list[Frame] = []
                page = {"more": True}
                while page["more"]:
                    page = await history(o, limit=4, **({"before": frames[0]["uuid"]} if frames else {}))
                    frames = page["frames"] + frames
                assert frames == shown
                assert broker.pool()["leased"] == 0


@pytest.mark.full
async def test_after_clear_only_the_new_conversation_is_shown(tmp_path: Path) -> None:
    """/clear, where a policy lets it through, begins another conversation of the CLI: the old words are not shown."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, "2.1.197", api, {"policy": {"slash_commands": True}}) as broker:
            async with connected(broker.url, hello=place("clear")) as client:
                await said(client, "old word")
                await client.turn("/clear", within_s=60)
                answer = await said(client, "new word")
                assert words((await history(client))["frames"]) == [("user", "new word"), ("assistant", answer)]


@pytest.mark.full
@pytest.mark.parametrize("version", EITHER)
async def test_a_deleted_conversation_leaves_nothing(version: str, tmp_path: Path) -> None:
    """In a running turn with a tool at work: closed with 4507, and no file, no process and no record is left."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker:
            async with connected(broker.url, hello=place("gone")) as client:
                await said(client, "remember xyzzy")
                await client.say('[[sim tool="Bash:sleep 60" tokens=2]] go', "m-1")
                await client.until_type("assistant")
                pid = cli_pid(broker, client)
                folder = Path(_folder(pid)).parent
                assert folder.name == own(client)[:13]
                await client.send({"type": "broker.delete"})
                assert await client.closed() == 4507
            assert read_process(pid) is None
            await eventually(lambda: not folder.exists(), 10)
            await broker.wait_spares(2, 60)
            left = [path for path in broker.state.rglob("*") if path.is_file() and b"xyzzy" in path.read_bytes()]
            assert left == []
            assert not folder.exists()
            async with connected(broker.url, hello=place("gone", "new")) as again:
                await said(again, "hello")
                assert "xyzzy" not in last_request(api)
