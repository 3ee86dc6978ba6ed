"""A broker that ends, in order or not, and the next one in its place: conversations, ids and costs go on."""

import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e.hook_scenes import guard, hooks, initialized, touching
from tests.e2e.test_scrub import script
from tests.kit.broker import Broker, running_broker
from tests.kit.client import Client, Frame, connected, contiguous, text_of
from tests.processes import read_process
from tests.waiting import eventually

ENDS = {"in order": signal.SIGTERM, "kill -9": signal.SIGKILL}


def place(session_id: str, mode: str = "open", **others: Any) -> Frame:
    """Hello's fields."""
    return {"session": {"mode": mode, "id": session_id, **others}}


async def said(client: Client, text: str, message_id: str) -> int:
    """How many earlier messages the CLI knew when it answered."""
    before = len(client.frames)
    end = await client.turn(text, message_id)
    assert (end["type"], end["is_error"]) == ("broker.turn_completed", False)
    return int(text_of(client.frames[before:]).rpartition("Earlier messages of yours: ")[2].rstrip("."))


async def ended(broker: Broker, number: int) -> None:
    """The broker's end, and that of everything below it."""
    below = [process.pid for process in broker.descendants()]
    await broker.stop(number)
    await eventually(lambda: not [pid for pid in below if read_process(pid)], 5)


def folders(broker: Broker) -> list[Path]:
    """The directories of sessions on disk."""
    return sorted((broker.state / "sessions").iterdir())


async def receipt(client: Client, text: str, message_id: str) -> Frame:
    """What a message is answered with."""
    await client.say(text, message_id)
    return await client.until(lambda frame: frame["type"] in ("broker.accepted", "broker.error"))


@pytest.mark.parametrize("number", ENDS.values(), ids=ENDS)
async def test_a_conversation_goes_on_in_the_next_run(number: int, tmp_path: Path) -> None:
    """Context, costs, ids and options are there; the log is new, and that is told."""
    options: Frame = {"options": {"permission_mode": "plan", "system_prompt": "You are a pirate."}}
    async with running_broker(tmp_path) as broker:
        async with connected(broker.url, hello={**place("kept"), **options}) as client:
            assert [await said(client, f"message {n}", f"m-{n}") for n in range(2)] == [0, 1]
            total, epoch, seen = client.frames[-1]["total"], client.welcome["epoch"], client.last_seq
            cli_id = client.welcome["cli"]["session_id"]
            await client.until(lambda frame: frame.get("state") == "idle")
        await ended(broker, number)
    async with running_broker(tmp_path) as broker:
        assert [path.name for path in folders(broker)].count(cli_id[:13]) == 1
        async with connected(broker.url, hello=place("kept", "resume", epoch=epoch, last_seq=seen)) as client:
            assert client.welcome["start"] == "restored"
            assert client.welcome["cli"]["session_id"] == cli_id
            assert client.welcome["lost"] == {"from": seen + 1, "to": None, "reason": "epoch_changed"}
            assert await receipt(client, "message 1", "m-1") == {
                "type": "broker.accepted", "id": "m-1", "queued": 0, "duplicate": True, "outcome": "completed",
            }  # fmt: skip
            assert (await receipt(client, "something else", "m-1"))["code"] == "id_conflict"
            assert await said(client, "message 2", "m-2") == 2
            after = client.frames[-1]["total"]
            assert (after["turns"], after["cost_usd"] > total["cost_usd"]) == (3, True)
            assert contiguous(client.numbered())
        bursts = [row["line"] for row in broker.ledger_rows("in") if "line" in row]
        assert sum('"set_permission_mode"' in line and '"plan"' in line for line in bursts) == 2
        assert sum("You are a pirate." in line for line in bursts) == 2


async def test_what_a_kill_cut_off_is_told_first(tmp_path: Path) -> None:
    """kill -9 in mid-stream, with one more in the queue: each has its one end, and nothing runs by itself."""
    async with running_broker(tmp_path) as broker:
        async with connected(broker.url, hello=place("cut")) as client:
            await said(client, "message 0", "m-0")
            await client.say("[[sim tokens=2000 itl_ms=20]] long", "m-1")
            await client.say("waits", "m-2")
            await client.until(lambda frame: frame.get("id") == "m-2" and frame.get("state") == "queued")
            await client.until_type("stream_event")
            epoch, seen = client.welcome["epoch"], client.last_seq
            await ended(broker, signal.SIGKILL)
    async with running_broker(tmp_path) as broker:
        async with connected(broker.url, hello=place("cut", "resume", epoch=epoch, last_seq=seen)) as client:
            first, second = await client.terminal("m-1"), await client.terminal("m-2")
            told = [(end["reason"], end["applied"], end["retryable"], end["seq"]) for end in (first, second)]
            assert told == [("broker_restarted", "unknown", False, 1), ("broker_restarted", "no", True, 2)]
            assert (await receipt(client, "waits", "m-2"))["outcome"] == "failed"
            assert await said(client, "message 3", "m-3") in (1, 2)  # the line that was cut off may have been written
            assert not [f for f in client.of_type("broker.turn_failed") if f["id"] not in ("m-1", "m-2")]


async def test_conversations_are_found_again(tmp_path: Path) -> None:
    """In the list, by continue, by the CLI's id, read by an observer; a branch branches; the deleted one is gone."""
    cli_id = name = ""
    async with running_broker(tmp_path) as broker:
        for name in ("one", "two", "three"):
            async with connected(broker.url, hello=place(name)) as client:
                await said(client, f"this is {name}", "m-1")
                cli_id = client.welcome["cli"]["session_id"]
                if name == "two":
                    await client.send({"type": "broker.delete"})
                    assert await client.closed() == 4507
        before = broker.get("/v1/sessions")[1]
        await ended(broker, signal.SIGTERM)
    async with running_broker(tmp_path) as broker:
        listed = [row | {"state": ""} for row in broker.json("/v1/sessions")["data"]]
        assert [row["id"] for row in listed] == ["three", "one"]
        assert all(str(row["last_activity"]) in before.decode() for row in listed)
        async with connected(
            broker.url, hello={"session": {"mode": "resume", "id": "one"}, "role": "observer"}
        ) as reader:
            await reader.send({"type": "broker.history"})
            page = await reader.until_type("broker.history")
            assert page["frames"][0]["message"]["content"] == "this is one"
            assert broker.pool()["leased"] == 0
        async with connected(broker.url, hello={"session": {"mode": "continue"}}) as client:
            assert (client.welcome["session_id"], client.welcome["cli"]["session_id"]) == ("three", cli_id)
        async with connected(broker.url, hello=place(cli_id, "resume")) as client:
            assert client.welcome["session_id"] == "three"
        async with connected(broker.url, hello=place("one", "fork")) as branch:
            assert await said(branch, "a branch", "m-1") == 1
            name = branch.welcome["session_id"]
        with pytest.raises(ConnectionClosed) as closed:
            async with connected(broker.url, hello=place("two", "resume")):
                pass
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4504
        await ended(broker, signal.SIGKILL)
    async with running_broker(tmp_path) as broker:
        async with connected(broker.url, hello=place(name, "resume")) as branch:
            assert await said(branch, "and on", "m-2") == 2
            assert (await receipt(branch, "a branch", "m-1"))["duplicate"]


async def test_what_is_secret_is_asked_for_again(tmp_path: Path) -> None:
    """A credential, which lay in memory alone: nothing is started without one."""
    hello = place("secret") | {"options": {"credentials": {"oauth_token": "canary-of-a-token"}}}
    async with running_broker(tmp_path, cli=script(tmp_path)) as broker:
        async with connected(broker.url, hello=hello) as client:
            await said(client, "hello", "m-1")
        await ended(broker, signal.SIGTERM)
        kept = b"".join(path.read_bytes() for path in broker.state.glob("index.db*"))
        assert b"secret" in kept
        assert b"canary-of-a-token" not in kept
    async with running_broker(tmp_path, cli=script(tmp_path)) as broker:
        async with connected(broker.url) as client:
            with pytest.raises(ConnectionClosed):
                await client.hello(**place("secret", "resume"))
            assert client.of_type("broker.error")[0]["code"] == "credentials_required"
            assert await client.closed() == 4506
        assert broker.pool()["leased"] == 0
        async with connected(broker.url, hello=hello) as client:
            assert await said(client, "again", "m-2") == 1


async def test_a_guard_is_asked_for_again(tmp_path: Path) -> None:
    """Hooks of a client are not kept: no message is written before they are declared once more."""
    hello = place("guarded") | {"client": {"instance": "owner"}, "options": {"initialize": "client"}}
    async with running_broker(tmp_path) as broker:
        async with connected(broker.url, hello=hello) as owner:
            host = await initialized(owner, hooks=hooks())
            host.answers["hook_callback"] = guard("deny")
            await host.turn(touching("first"), "m-1")
        await ended(broker, signal.SIGKILL)
    async with running_broker(tmp_path, {"pool": {"bind_timeout_s": 1}}) as broker:
        async with connected(broker.url, hello=place("guarded") | {"client": {"instance": "owner"}}) as owner:
            await owner.say(touching("second"), "m-2")
            assert (await owner.error())["code"] == "initialize_required"
            host = await initialized(owner, hooks=hooks())
            host.answers["hook_callback"] = guard("deny")
            await host.until(lambda frame: frame["type"] == "broker.turn_completed", 20)
            assert host.events() == ["PreToolUse"]
    assert not list((tmp_path / "state").glob("sessions/*/work/*"))


def _damage(index: Path, damage: str) -> None:
    whole = index.read_bytes()
    match damage:
        case "missing":
            index.unlink()
        case "unreadable":
            with closing(sqlite3.connect(index)) as db, db:
                db.execute("UPDATE conversation SET record = X'7b7d'")
        case _:
            index.write_bytes({"cut": whole[: len(whole) // 2 + 100], "rubbish": b"x" * len(whole)}.get(damage, b""))


@pytest.mark.parametrize("damage", ["cut", "rubbish", "empty", "missing", "unreadable"])
async def test_what_a_damaged_index_does_not_name_is_kept(damage: str, tmp_path: Path) -> None:
    """The broker starts, says what it has lost, and moves aside what it cannot name; later starts leave it there."""
    async with running_broker(tmp_path) as broker:
        async with connected(broker.url, hello=place("lost")) as client:
            await said(client, "hello", "m-1")
            folder = client.welcome["cli"]["session_id"][:13]
        await ended(broker, signal.SIGTERM)
    _damage(tmp_path / "state" / "index.db", damage)
    for run in range(2):
        async with running_broker(tmp_path) as broker:
            broker.expects("store.incomplete", "store.damaged", "session.unreadable")
            kept = broker.state / "unknown-1" / folder
            assert list(kept.glob("home/.claude/projects/*/*.jsonl"))
            if run == 0:
                [told] = broker.log_events("store.incomplete")
                assert told["folders"] == str(kept.parent)
                assert len(broker.log_events("store.damaged")) == (damage in ("cut", "rubbish"))
                assert len(broker.log_events("session.unreadable")) == (damage == "unreadable")
                async with connected(broker.url, hello=place("new")) as client:
                    assert client.welcome["start"] == "warm"
                    assert await said(client, "hello", "m-1") == 0
            await ended(broker, signal.SIGTERM)


async def test_an_index_that_is_gone_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    """Removed under a running broker: no message is accepted that the next run would not know."""
    async with running_broker(tmp_path) as broker, connected(broker.url, hello=place("kept")) as client:
        broker.expects("store.failed")
        await said(client, "hello", "m-1")
        (broker.state / "index.db").unlink()
        await client.say("and now", "m-2")
        refused = await client.until_type("broker.error")
        assert (refused["code"], refused["retryable"]) == ("storage_failed", True)
        assert broker.metric("broker_store_failures_total", operation="accept") >= 1
        assert "removed or replaced" in str(broker.log_events("store.failed"))


async def test_another_programs_lock_holds_nobody_up(tmp_path: Path) -> None:
    """A write lock on the index: the message is refused in a moment, others go on, and then it works again."""
    async with (
        running_broker(tmp_path) as broker,
        connected(broker.url, hello=place("kept")) as client,
        connected(broker.url, hello=place("other")) as other,
    ):
        broker.expects("store.failed")
        await said(client, "hello", "m-1")
        with closing(sqlite3.connect(broker.state / "index.db", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            await client.say("and now", "m-2")
            assert (await client.until_type("broker.error"))["code"] == "storage_failed"
            await other.sync()
            assert time.monotonic() - began < 2, "SQLite's own five seconds"
            db.execute("ROLLBACK")
        assert await said(client, "and now", "m-2") == 1


async def test_two_brokers_never_share_a_directory(tmp_path: Path) -> None:
    """No file in it holds the lock, so none that is removed gives it away."""
    async with running_broker(tmp_path / "one", {"state": {"dir": str(tmp_path / "state")}}) as broker:
        assert not (tmp_path / "state" / "lock").exists()
        with pytest.raises(AssertionError, match="itself with 78"):
            async with running_broker(tmp_path / "two", {"state": {"dir": str(tmp_path / "state")}}):
                pass
        async with connected(broker.url, hello={}) as client:
            await client.turn("hello")


async def test_what_nobody_uses_is_deleted_in_the_end(tmp_path: Path) -> None:
    """``session.retain_days``: a conversation that was not used for so long is gone, its folder too."""
    async with running_broker(tmp_path) as broker:
        async with connected(broker.url, hello=place("old")) as client:
            await said(client, "hello", "m-1")
            folder = client.welcome["cli"]["session_id"][:13]
        await ended(broker, signal.SIGTERM)
    async with running_broker(tmp_path, {"session": {"retain_days": 0.00001}}) as broker:
        await eventually(lambda: broker.json("/v1/sessions")["data"] == [], 10)
        await eventually(lambda: folder not in [path.name for path in folders(broker)], 10)
