"""broker.delete: the conversation ends, nothing of it stays on disk, and its id is free."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e.beside import no_bug
from tests.kit.broker import Broker, running_broker, started_broker
from tests.kit.client import Client, connected, text_of
from tests.oracle import Oracle
from tests.waiting import eventually

SECRET = "xyzzy-never-on-disk"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker."""
    with started_broker(tmp_path_factory.mktemp("delete"), {"session": {"detach_timeout_s": 0.3}}) as found:
        oracle.allow(pid=found.pid)
        yield found


def files_with(broker: Broker, text: str) -> list[Path]:
    """The files below the state directory that hold ``text``, or are named after it."""
    found = []
    for path in (broker.state / "sessions").rglob("*"):
        try:
            if text in path.name or (path.is_file() and text.encode() in path.read_bytes()):
                found.append(path)
        except OSError:
            continue
    return found


async def unknown(broker: Broker, session_id: str) -> bool:
    """Whether nothing answers to the id."""
    async with connected(broker.url) as client:
        with pytest.raises(ConnectionClosed):
            await client.hello(session={"mode": "resume", "id": session_id})
        return await client.closed() == 4504


async def gone(broker: Broker, client: Client) -> None:
    """Until nothing of the conversation is on disk, by its words and by its CLI's id."""
    own = client.welcome["cli"]["session_id"]
    await eventually(lambda: not files_with(broker, SECRET), 10)
    assert own == "" or not files_with(broker, own[:13])


def place(session_id: str, mode: str = "open") -> dict[str, dict[str, str]]:
    """Hello's fields."""
    return {"session": {"mode": mode, "id": session_id}}


async def test_an_idle_session_is_deleted(broker: Broker) -> None:
    """Every client is closed with 4507, by then nothing is on disk; the id begins a new conversation."""
    async with connected(broker.url, hello=place("idle")) as client, connected(broker.url, hello=place("idle")) as tab:
        await client.turn(f"remember {SECRET}")
        assert files_with(broker, SECRET)
        await client.send({"type": "broker.delete"})
        assert await client.closed() == 4507
        assert not files_with(broker, SECRET)
        assert await tab.closed() == 4507
    await gone(broker, client)
    async with connected(broker.url, hello=place("idle", "new")) as again:
        assert again.welcome["head_seq"] == 0
        await again.turn("who am I")
        assert text_of(again.frames).endswith("Earlier messages of yours: 0.")
    assert no_bug(broker)


async def test_in_a_running_turn(broker: Broker) -> None:
    """The turn and what waits behind it fail as cancelled, told before the close."""
    async with connected(broker.url, hello=place("turn")) as client:
        await client.turn(f"remember {SECRET}")
        await client.say("[[sim tokens=5000 itl_ms=10]] word", "m-1")
        await client.say("and then", "m-2")
        await client.until_type("stream_event")
        await client.send({"type": "broker.delete"})
        assert await client.closed() == 4507
        ends = [(f["id"], f["reason"], f["applied"]) for f in client.of_type("broker.turn_failed")]
        assert ends == [("m-1", "cancelled", "yes"), ("m-2", "cancelled", "no")]
    await gone(broker, client)
    assert await unknown(broker, "turn")


async def test_with_a_permission_pending(broker: Broker) -> None:
    """The prompt is withdrawn."""
    async with connected(broker.url, hello=place("prompt")) as client:
        await client.say(f'{SECRET} [[sim tool="Bash:touch x" tokens=2]] go', "m-1")
        await client.prompt()
        await client.send({"type": "broker.delete"})
        assert await client.closed() == 4507
        assert client.of_type("broker.request_resolved")[0]["outcome"] == "withdrawn"
    await gone(broker, client)


async def test_while_hibernated(broker: Broker) -> None:
    """Lazily attached, without starting a process for it."""
    async with connected(broker.url, hello=place("asleep")) as client:
        await client.turn(f"remember {SECRET}")
    await broker.wait_spares(2)
    assert broker.pool()["leased"] == 0
    started = broker.metric("broker_process_start_seconds_count")
    lazy = place("asleep", "resume") | {"options": {"lazy": True}}
    async with connected(broker.url, hello=lazy) as back:
        await back.send({"type": "broker.delete"})
        assert await back.closed() == 4507
    await gone(broker, client)
    assert await unknown(broker, "asleep")
    assert broker.metric("broker_process_start_seconds_count") == started


async def test_before_anything_was_said(broker: Broker) -> None:
    """A lazy session without a process, and a fresh one."""
    for hello in (place("fresh"), place("fresh") | {"options": {"lazy": True}}):
        async with connected(broker.url, hello=hello) as client:
            await client.send({"type": "broker.delete"})
            assert await client.closed() == 4507
        assert await unknown(broker, "fresh")
        await gone(broker, client)


async def test_while_a_process_is_bound_for_somebody_else(tmp_path: Path) -> None:
    """Who waits for the session's process is refused with 4507 as well; the process that was starting goes."""
    config = {"session": {"detach_timeout_s": 0.2}, "cli": {"env": {"SIMULATOR_FAULTS": "slow_start=1"}}}
    async with running_broker(tmp_path, config) as broker:
        async with connected(broker.url, hello=place("binding")) as client:
            await client.turn(f"remember {SECRET}")
        await broker.wait_pool(leased=0, stopping=0)
        lazy = place("binding", "resume") | {"options": {"lazy": True}}
        async with connected(broker.url, hello=lazy) as back, connected(broker.url) as arriving:
            await arriving.send({"type": "broker.hello", **place("binding", "resume")})
            await broker.wait_pool(starting=1)
            await back.send({"type": "broker.delete"})
            assert await back.closed() == 4507
            assert await arriving.closed() == 4507
        await gone(broker, client)
        await broker.wait_spares(2)
        assert not files_with(broker, client.welcome["cli"]["session_id"][:13])
        assert no_bug(broker)


async def test_a_restored_one(broker: Broker) -> None:
    """A session on its second process is wiped as thoroughly as on its first."""
    async with connected(broker.url, hello=place("second")) as client:
        await client.turn(f"remember {SECRET}")
    await broker.wait_pool(leased=0, stopping=0, starting=0)
    async with connected(broker.url, hello=place("second")) as back:
        assert back.welcome["start"] == "restored"
        await back.send({"type": "broker.delete"})
        assert await back.closed() == 4507
        assert not files_with(broker, SECRET)
    await gone(broker, client)


async def test_a_deleted_branch_leaves_its_parent(broker: Broker) -> None:
    """And the other way round."""
    async with connected(broker.url, hello=place("root")) as parent:
        await parent.turn("one")
        async with connected(broker.url, hello=place("root", "fork")) as child:
            await child.turn(f"mine: {SECRET}")
            await child.send({"type": "broker.delete"})
            assert await child.closed() == 4507
        await gone(broker, child)
        await parent.turn("two")
        assert text_of(parent.frames).endswith("Earlier messages of yours: 1.")
        async with connected(broker.url, hello=place("root", "fork")) as child:
            await parent.send({"type": "broker.delete"})
            assert await parent.closed() == 4507
            await child.turn("three")
            assert text_of(child.frames).endswith("Earlier messages of yours: 2.")


async def test_at_the_same_time_as_new(broker: Broker) -> None:
    """The id is free the moment the delete is heard; the old one's end does not touch the new one."""
    for _ in range(5):
        async with connected(broker.url, hello=place("again")) as old, connected(broker.url) as client:
            await old.say("[[sim tokens=50 itl_ms=5]] word", "m-1")
            await old.until_type("stream_event")
            await old.send({"type": "broker.delete"})
            await old.terminal("m-1")
            await client.hello(**place("again", "new"))
            assert (await client.turn("hello"))["type"] == "broker.turn_completed"
            assert await old.closed() == 4507
            await client.send({"type": "broker.delete"})
            assert await client.closed() == 4507
