"""Observers read everything and move nothing; several controllers share one session."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.kit.broker import Broker, running_broker, started_broker
from tests.kit.client import Client, connected, contiguous, text_of
from tests.oracle import Oracle
from tests.waiting import eventually


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker."""
    config = {"session": {"detach_timeout_s": 1}, "pool": {"profiles": {"default": {"warm": 2}}}}
    with started_broker(tmp_path_factory.mktemp("observers"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


def place(session_id: str, mode: str = "open", **others: Any) -> dict[str, Any]:
    """Hello's fields."""
    return {"session": {"mode": mode, "id": session_id}, **others}


def observer(session_id: str, mode: str = "resume", **others: Any) -> dict[str, Any]:
    """The same for somebody who only reads."""
    return place(session_id, mode, role="observer", **others)


async def refused(broker: Broker, fields: dict[str, Any]) -> tuple[int, list[str]]:
    """The close code and the errors of a hello that is not welcome."""
    async with connected(broker.url) as client:
        with pytest.raises(ConnectionClosed):
            await client.hello(**fields)
        return await client.closed(), [frame["code"] for frame in client.of_type("broker.error")]


async def test_an_observer_reads_every_frame(broker: Broker) -> None:
    """What a controller gets by number, an observer gets, byte for byte; prompts and their outcome too."""
    async with connected(broker.url, hello=place("watched")) as client:
        async with connected(broker.url, hello=observer("watched")) as reader:
            assert (reader.welcome["role"], reader.welcome["start"]) == ("observer", "attached")
            assert reader.welcome["cli"]["session_id"] == client.welcome["cli"]["session_id"]
            await client.say('[[sim tool="Bash:touch x" tokens=5]] go', "m-1")
            prompt = await client.prompt()
            assert (await reader.prompt())["request_id"] == prompt["request_id"]
            await client.answer(prompt["request_id"], behavior="allow")
            await client.terminal("m-1")
            await reader.terminal("m-1")
            assert reader.of_type("broker.request_resolved")[0]["outcome"] == "allowed"
            assert contiguous(reader.numbered())
            numbered = [t for t, f in zip(client.texts, client.frames, strict=True) if f.get("seq", 0) > 0]
            seen = [t for t, f in zip(reader.texts, reader.frames, strict=True) if f.get("seq", 0) > 0]
            assert seen == numbered[-len(seen) :]
            assert text_of(reader.frames) == text_of(client.frames)


FORBIDDEN: dict[str, dict[str, Any]] = {
    "user_message": {"type": "user_message", "id": "m-x", "content": "hello"},
    "user": {"type": "user", "uuid": "m-y", "message": {"role": "user", "content": "hello"}},
    "cancel": {"type": "broker.cancel", "id": "m-z"},
    "control": {"type": "control_request", "request_id": "c-9", "request": {"subtype": "interrupt"}},
    "answer": {"type": "control_response", "response": {"subtype": "success", "request_id": "r", "response": {}}},
    "end": {"type": "broker.end"},
    "delete": {"type": "broker.delete"},
}


async def test_an_observer_moves_nothing(broker: Broker) -> None:
    """Anything but ping, history and keep_alive: not_controller naming the frame, and the connection stays."""
    async with connected(broker.url, hello=place("still")) as client:
        await client.turn("hello")
        await client.until(lambda frame: frame.get("subtype") == "session_state_changed")
        async with connected(broker.url, hello=observer("still")) as reader:
            head = client.last_seq
            for name, frame in FORBIDDEN.items():
                await reader.send(frame)
                error = await reader.error()
                assert error["code"] == "not_controller", name
                assert error["ref"] == {"user_message": "m-x", "user": "m-y", "cancel": "m-z", "control": "c-9",
                                        "answer": "r"}.get(name)  # fmt: skip
            await reader.send({"type": "keep_alive"})
            await reader.send({"type": "broker.history"})
            assert len((await reader.until_type("broker.history"))["frames"]) == 2
            await reader.sync()
            await client.sync()
            assert client.last_seq == head
            assert (await client.turn("still here"))["type"] == "broker.turn_completed"


async def test_an_observer_pushes_nobody_out(broker: Broker) -> None:
    """Under a controller's instance name it replaces no controller, and a second observer replaces the first."""
    name = {"name": "x", "instance": "tab-9"}
    async with connected(broker.url, hello=place("pushed", client=name)) as client:
        async with connected(broker.url, hello=observer("pushed", client=name)) as first:
            async with connected(broker.url, hello=observer("pushed", client=name)) as second:
                assert await first.closed() == 4509
                assert (await client.turn("hello", "m-1"))["type"] == "broker.turn_completed"
                await second.terminal("m-1")
            async with connected(broker.url, hello=place("pushed", client=name)) as again:
                assert await client.closed() == 4509
                await again.turn("hello")


async def test_an_observer_comes_to_what_exists_and_brings_nothing(broker: Broker) -> None:
    """Unknown: 4504, whatever the mode; new, fork and options: bad_options."""
    for mode in ("resume", "open"):
        assert await refused(broker, observer("nobody", mode)) == (4504, [])
    for mode in ("new", "fork"):
        assert await refused(broker, observer("nobody", mode)) == (4500, ["bad_options"])
    async with connected(broker.url, hello=place("there")):
        for options in ({"model": "opus"}, {"lazy": True}, {"permission_timeout_s": 5}):
            assert await refused(broker, observer("there", options=options)) == (4500, ["bad_options"])
        async with connected(broker.url, hello={"session": {"mode": "continue"}, "role": "observer"}) as reader:
            assert reader.welcome["session_id"] == "there"


async def test_a_token_that_may_only_observe(tmp_path: Path) -> None:
    """As a controller 4503; as an observer it reads its own subject's sessions."""
    both, reads = "brk_observers-both", "brk_observers-reads"
    entries = ", ".join(
        f'{{hash = "sha256:{hashlib.sha256(token.encode()).hexdigest()}", subject = "al", max_role = "{role}"}}'
        for token, role in ((both, "controller"), (reads, "observer"))
    )
    (tmp_path / "tenants.toml").write_text(f"[tenants.acme]\ntokens = [{entries}]\n")
    config = {"auth": {"mode": "tokens", "file": "tenants.toml"}, "pool": {"isolation": "none"}}
    async with running_broker(tmp_path, config) as broker:
        async with connected(broker.url, hello=place("own", auth={"token": both})) as client:
            assert await refused(broker, place("own", auth={"token": reads})) == (4503, [])
            async with connected(broker.url, hello=observer("own", auth={"token": reads})) as reader:
                await client.turn("hello", "m-1")
                assert (await reader.terminal("m-1"))["type"] == "broker.turn_completed"


async def test_an_observer_starts_no_process_and_keeps_the_one_there_is(broker: Broker) -> None:
    """It attaches to a hibernated session as it is; while it reads a live one, the session is not abandoned."""
    async with connected(broker.url, hello=place("sleeper")) as client:
        await client.turn("hello")
        reading = observer("sleeper")
        async with connected(broker.url, hello=reading) as reader:
            await client.socket.close()
            # Longer than session.detach_timeout_s: readers count as clients.
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await reader.until(lambda frame: frame.get("state") == "hibernated", 0.5)
            assert broker.pool()["leased"] >= 1
    await eventually(lambda: any(e["session"] == "sleeper" for e in broker.log_events("connection.closed")))
    await broker.wait_pool(leased=0, stopping=0, starting=0)
    async with connected(broker.url, hello=reading) as reader:
        assert (reader.welcome["start"], reader.welcome["ready_ms"]) == (None, None)
        await reader.sync()
        assert broker.pool()["leased"] == 0
        async with connected(broker.url, hello=place("sleeper")) as client:
            assert client.welcome["start"] == "restored"
            await client.turn("and now", "m-2")
            assert (await reader.terminal("m-2"))["type"] == "broker.turn_completed"
            assert reader.of_type("broker.state")[-1]["state"] == "restored"


async def test_an_observer_brings_no_dead_process_back(broker: Broker) -> None:
    """A process that dies while only observers read is started again when a controller comes."""
    async with connected(broker.url, hello=place("dead")) as client:
        await client.turn("hello")
        async with connected(broker.url, hello=observer("dead")) as reader:
            await client.say("[[sim tokens=400 itl_ms=5 die_after=60]] doomed", "m-1")
            await client.until_type("stream_event")
            await client.socket.close()
            assert (await reader.terminal("m-1"))["reason"] == "cli_exited"
            await broker.wait_pool(leased=0, stopping=0, starting=0)
            await reader.sync()
            assert not [f for f in reader.of_type("broker.state") if f.get("state") == "restored"]
            async with connected(broker.url, hello=place("dead")) as back:
                assert (await back.turn("again"))["type"] == "broker.turn_completed"


async def test_only_controllers_count_when_an_answer_fails(broker: Broker) -> None:
    """An error answer to a prompt counts when no other controller is attached, however many observers are."""
    async with connected(broker.url, hello=place("alone")) as client:
        async with connected(broker.url, hello=observer("alone")) as reader:
            await client.say('[[sim tool="Bash:touch x" tokens=2]] go', "m-1")
            prompt = await client.prompt()
            body = {"subtype": "error", "request_id": prompt["request_id"], "error": "no window"}
            await client.send({"type": "control_response", "response": body})
            resolved = await reader.until_type("broker.request_resolved")
            assert resolved["outcome"] == "denied"
            await client.terminal("m-1")


async def test_a_second_tab_sees_the_question_and_the_answer(broker: Broker) -> None:
    """Two controllers: both may speak, both see who said what, in one order."""
    tabs: list[Client] = []
    hello = place("shared", client={"name": "tabs", "instance": "tab-1"})
    other = place("shared", client={"name": "tabs", "instance": "tab-2"})
    async with connected(broker.url, hello=hello) as one, connected(broker.url, hello=other) as two:
        tabs = [one, two]
        await one.say("[[sim tokens=20 itl_ms=10]] from one", "m-1")
        await two.until_type("broker.message")
        await two.say("[[sim tokens=3]] from two", "m-2")
        for tab in tabs:
            await tab.terminal("m-1")
            await tab.terminal("m-2")
        said = [[(f["id"], f["state"], f["by"], f["content"]) for f in tab.of_type("broker.message")] for tab in tabs]
        assert said[0] == said[1]
        assert said[0][0] == ("m-1", "started", "tab-1", "[[sim tokens=20 itl_ms=10]] from one")
        assert ("m-2", "queued", "tab-2", "[[sim tokens=3]] from two") in said[0]
        common = {frame["seq"] for frame in one.numbered()} & {frame["seq"] for frame in two.numbered()}
        pick = [[t for t, f in zip(tab.texts, tab.frames, strict=True) if f.get("seq") in common] for tab in tabs]
        assert pick[0] == pick[1]
