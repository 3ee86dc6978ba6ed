"""A client that comes back goes on by epoch and last_seq, byte for byte, or is told exactly what it lost."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.broker import Broker, running_broker, started_broker
from tests.kit.client import Client, connected, contiguous, text_of
from tests.kit.ledger import seq_of
from tests.oracle import Oracle
from tests.waiting import eventually


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker that keeps enough for every test here."""
    with started_broker(tmp_path_factory.mktemp("resume"), {"session": {"detach_timeout_s": 5}}) as found:
        oracle.allow(pid=found.pid)
        yield found


def place(
    session_id: str, epoch: str | None = None, last_seq: int | None = None, mode: str = "resume"
) -> dict[str, Any]:
    """Hello's fields for a client that stopped reading there."""
    session = {"mode": mode, "id": session_id, "epoch": epoch, "last_seq": last_seq}
    return {"session": {key: value for key, value in session.items() if value is not None}}


async def idle(client: Client) -> None:
    """Until the CLI has said its last word on the turn."""
    await client.until(lambda frame: frame.get("subtype") == "session_state_changed" and frame["state"] == "idle")


async def until(moment: float) -> None:
    """Let time pass in which nobody looks; monotonic seconds."""
    await eventually(lambda: time.monotonic() >= moment, 20)


async def after_turns(broker: Broker, session_id: str, turns: int = 1, tokens: int = 50) -> Client:
    """A client that has held a conversation and left."""
    async with connected(broker.url, hello=place(session_id, mode="open")) as client:
        for _ in range(turns):
            await client.turn(f"[[sim tokens={tokens}]] said")
            await idle(client)
    return client


def numbered_texts(client: Client) -> list[str]:
    """The numbered frames as they were sent."""
    return [text for text in client.texts if seq_of(text) is not None]


async def test_a_replay_is_exact_from_every_position(broker: Broker) -> None:
    """From any last_seq the very same bytes follow, numbered on, and welcome says from where to where."""
    client = await after_turns(broker, "exact")
    head, epoch, texts = client.last_seq, client.welcome["epoch"], numbered_texts(client)
    for last_seq in (0, 1, head // 2, head - 1, head):
        async with connected(broker.url, hello=place("exact", epoch, last_seq)) as back:
            while back.last_seq < head and last_seq < head:
                await back.receive()
            await back.sync()
            assert numbered_texts(back) == texts[last_seq:]
            replay = {"from": last_seq + 1, "to": head} if last_seq < head else None
            told = {key: back.welcome[key] for key in ("replay", "lost", "resumed", "head_seq")}
            assert told == {"replay": replay, "lost": None, "resumed": True, "head_seq": head}
            assert back.frames[0]["type"] == "broker.welcome"


async def test_without_last_seq_only_what_is_new_comes(broker: Broker) -> None:
    """No last_seq is live only; last_seq 0 without an epoch is all that is kept."""
    client = await after_turns(broker, "live")
    async with connected(broker.url, hello=place("live")) as live:
        await live.sync()
        assert live.numbered() == []
        assert (live.welcome["replay"], live.welcome["resumed"]) == (None, False)
    async with connected(broker.url, hello=place("live", None, 0)) as everything:
        await everything.sync()
        assert numbered_texts(everything) == numbered_texts(client)


async def test_a_turn_runs_on_while_its_client_is_away(broker: Broker) -> None:
    """A cut in mid-stream loses nothing: what came before and after it is the whole turn, once."""
    async with connected(broker.url, hello=place("away", mode="open")) as client:
        await client.say("[[sim tokens=150 itl_ms=2]] word", "m-1")
        while len(client.of_type("stream_event")) < 40:
            await client.receive()
        client.socket.transport.abort()
    async with connected(broker.url, hello=place("away", client.welcome["epoch"], client.last_seq)) as back:
        assert back.welcome["start"] == "attached"
        assert back.welcome["turn"]["id"] == "m-1"
        assert (await back.terminal())["id"] == "m-1"
        frames = client.numbered() + back.numbered()
        assert contiguous(frames)
        assert frames[0]["seq"] == 1
        assert text_of(frames) == "".join(f"word{n} " for n in range(150))


@pytest.mark.parametrize("epoch", ["own", "other"])
async def test_a_position_that_never_was(broker: Broker, epoch: str) -> None:
    """Above head: future_seq, then live. Another epoch: epoch_changed, then all of the new log."""
    client = await after_turns(broker, f"never-{epoch}")
    head = client.last_seq
    position = (client.welcome["epoch"], head + 100) if epoch == "own" else ("not-this-one", 7)
    async with connected(broker.url, hello=place(f"never-{epoch}", *position)) as back:
        await back.sync()
        assert back.welcome["resumed"] is False
        if epoch == "own":
            assert back.welcome["lost"] == {"from": head + 1, "to": head + 100, "reason": "future_seq"}
            assert back.numbered() == []
        else:
            assert back.welcome["lost"] == {"from": 8, "to": None, "reason": "epoch_changed"}
            assert numbered_texts(back) == numbered_texts(client)


@pytest.mark.parametrize("bound", [{"frames": 30}, {"bytes": 12000}], ids=str)
async def test_what_lies_beyond_the_bounds_is_told(bound: dict[str, int], tmp_path: Path) -> None:
    """Behind the log: too_far_behind with the range that is gone, then everything that is kept, without a gap."""
    async with running_broker(tmp_path, {"replay": bound}) as broker:
        client = await after_turns(broker, "bounds", turns=2)
        head, texts = client.last_seq, numbered_texts(client)
        async with connected(broker.url, hello=place("bounds", client.welcome["epoch"], 3)) as back:
            await back.sync()
            lost, replay = back.welcome["lost"], back.welcome["replay"]
            assert (lost["from"], lost["reason"]) == (4, "too_far_behind")
            assert (replay["from"], replay["to"]) == (lost["to"] + 1, head)
            kept = numbered_texts(back)
            assert kept == texts[-len(kept) :]
            if "frames" in bound:
                assert len(kept) == bound["frames"]
            else:
                # Each frame counts with its header of 4 bytes.
                assert sum(len(text.encode()) + 4 for text in kept) <= bound["bytes"]
                assert sum(len(text.encode()) + 4 for text in texts[-len(kept) - 1 :]) > bound["bytes"]
        async with connected(broker.url, hello=place("bounds", client.welcome["epoch"], lost["to"])) as just:
            assert just.welcome["lost"] is None
        async with connected(broker.url, hello=place("bounds", None, 0)) as everything:
            assert everything.welcome["lost"] is None
            assert everything.welcome["replay"] == replay


async def test_the_newest_frame_is_kept_whatever_its_size(tmp_path: Path) -> None:
    """A frame larger than replay.bytes reaches a client that is attached; older ones make room for it."""
    async with running_broker(tmp_path, {"replay": {"bytes": 20000}}) as broker:
        async with connected(broker.url, hello=place("newest", mode="open")) as client:
            await client.turn("[[sim huge_line=300000]] hello")
            assert contiguous(client.numbered())
            assert max(map(len, client.texts)) >= 300000
        # Nor does it push out what is around it.
        async with connected(broker.url, hello=place("newest", client.welcome["epoch"], 1)) as back:
            await back.sync()
            assert back.welcome["lost"] is None
            assert numbered_texts(back)[: client.last_seq - 1] == numbered_texts(client)[1:]


async def test_a_replay_expires_after_its_time(tmp_path: Path) -> None:
    """replay.seconds after the later of detach and terminal the log is emptied: expired is told, seq goes on."""
    async with running_broker(tmp_path, {"replay": {"seconds": 0.3}}) as broker:
        client = await after_turns(broker, "old")
        head, epoch = client.last_seq, client.welcome["epoch"]

        async def lost() -> Any:
            async with connected(broker.url, hello=place("old", epoch, 3)) as back:
                return back.welcome["lost"]

        assert await lost() is None
        # Each look is a client, and the clock runs from the last one that left: look more and more seldom.
        told, pause = None, 0.3
        while told is None and pause < 10:
            pause *= 1.5
            await until(time.monotonic() + pause)
            told = await lost()
        assert told == {"from": 4, "to": head, "reason": "expired"}
        async with connected(broker.url, hello=place("old", epoch, head)) as back:
            assert back.welcome["lost"] is None
            await back.turn("hello")
            assert back.numbered()[0]["seq"] == head + 1


async def test_an_abandoned_session_stops_its_process_and_keeps_its_conversation(tmp_path: Path) -> None:
    """After session.detach_timeout_s the process ends; a later resume is restored, same epoch, with its memory."""
    config = {"session": {"detach_timeout_s": 0.3}, "pool": {"profiles": {"default": {"warm": 1}}}}
    async with running_broker(tmp_path, config) as broker:
        client = await after_turns(broker, "left", turns=2)
        await broker.wait_pool(leased=0, stopping=0, starting=0)
        for said in range(2, 4):
            hello = place("left", client.welcome["epoch"], client.last_seq)
            async with connected(broker.url, hello=hello) as back:
                assert (back.welcome["start"], back.welcome["lost"]) == ("restored", None)
                assert back.welcome["epoch"] == client.welcome["epoch"]
                await back.turn("hello")
                await idle(back)
                assert text_of(back.frames).endswith(f"Earlier messages of yours: {said}.")
                assert contiguous(client.numbered()[-1:] + back.numbered())
            client = back
            await broker.wait_pool(leased=0, stopping=0, starting=0)


async def test_a_running_turn_is_not_abandoned(tmp_path: Path) -> None:
    """detach_timeout_s does not touch a running turn, and the broker does not spin while it waits for its end."""
    async with running_broker(tmp_path, {"session": {"detach_timeout_s": 0.1}}) as broker:
        async with connected(broker.url, hello=place("busy", mode="open")) as client:
            await client.say("[[sim ttft_ms=2000 tokens=3]] word", "m-1")
            await client.until_type("system")
        before = broker.cpu_s
        await eventually(lambda: broker.log_events("turn.ended"), 10)
        assert broker.cpu_s - before < 0.2
        async with connected(broker.url, hello=place("busy", client.welcome["epoch"], client.last_seq)) as back:
            assert (await back.terminal())["type"] == "broker.turn_completed"
            assert contiguous(client.numbered() + back.numbered())
