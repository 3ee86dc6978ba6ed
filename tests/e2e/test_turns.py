"""What every client relies on: hello and welcome, turns and their terminals, the queue, several clients at once."""

from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed

from tests.kit.broker import Broker, started_broker
from tests.kit.client import Client, Frame, connected, contiguous, terminals, text_of
from tests.kit.ledger import cli, from_cli, meant_for_clients, processes_of, user_ids
from tests.oracle import Oracle
from tests.waiting import eventually

SLOW = "[[sim tokens=2000 itl_ms=10]] slow"
QUEUE = 16


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with the defaults of the configuration, but that lets go of abandoned processes."""
    config = {"session": {"detach_timeout_s": 3}, "pool": {"profiles": {"default": {"warm": 3}}}}
    with started_broker(tmp_path_factory.mktemp("turns"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


def opening(session_id: str, instance: str = "", **fields: object) -> dict[str, object]:
    """Hello's fields for ``open``."""
    return {"session": {"mode": "open", "id": session_id}, "client": {"instance": instance}, **fields}


async def refused(broker: Broker, **hello: object) -> tuple[int, list[Frame]]:
    """The close code of a hello that is not welcome, and the frames before it."""
    async with connected(broker.url) as client:
        with pytest.raises(ConnectionClosed):
            await client.hello(**hello)
        return await client.closed(), client.frames


async def test_welcome_says_everything_a_client_has_to_know(broker: Broker) -> None:
    """Every field of the protocol's section 3 is there, and only those; a spare makes the start warm."""
    await broker.wait_spares(3)
    async with connected(broker.url, hello={"session": {"id": "welcome-1"}}) as client:
        welcome = client.welcome
        cli, limits = welcome.pop("cli"), welcome.pop("limits")
        assert welcome.pop("epoch")
        assert 0 < welcome.pop("ready_ms") < 5000
        assert cli.keys() == {"version", "simulated", "session_id"}
        assert cli["simulated"] is True
        assert limits["max_message_bytes"] == 8388608
        assert limits["max_frame_bytes"] == 16777216
        assert (limits["queue"], limits["replay_frames"], limits["replay_bytes"]) == (QUEUE, 10000, 8388608)
        assert limits["replay_seconds"] == 120
        assert (limits["messages_per_second"], limits["messages_burst"]) == (20, 40)
        assert welcome == {
            "type": "broker.welcome", "protocol": 1, "session_id": "welcome-1", "head_seq": 0, "resumed": False,
            "replay": None, "lost": None, "start": "warm", "miss_reason": None, "role": "controller", "view": "cli",
            "options_ignored": [], "turn": None, "queued": [], "pending": [],
            "last_close": None,
        }  # fmt: skip


async def test_modes_new_open_and_resume(broker: Broker) -> None:
    """new is refused (4505) where the id is taken, resume (4504) where it is not; open takes what it finds."""
    assert (await refused(broker, session={"mode": "resume", "id": "modes-1"}))[0] == 4504
    async with connected(broker.url, hello={"session": {"mode": "new", "id": "modes-1"}}) as first:
        assert (await refused(broker, session={"mode": "new", "id": "modes-1"}))[0] == 4505
        async with connected(broker.url, hello=opening("modes-1")) as second:
            assert second.welcome["start"] == "attached"
            assert second.welcome["epoch"] == first.welcome["epoch"]
        by_cli_id = {"mode": "resume", "id": first.welcome["cli"]["session_id"]}
        async with connected(broker.url, hello={"session": by_cli_id}) as third:
            assert third.welcome["session_id"] == "modes-1"
    async with connected(broker.url, hello={}) as unnamed:
        assert len(unnamed.welcome["session_id"]) == 36


async def test_a_turn_from_accepted_to_its_terminal(broker: Broker) -> None:
    """accepted comes before every frame of the turn, the terminal is the last word on it, content equals the ledger."""
    async with connected(broker.url, hello={}) as client:
        end = await client.turn("[[sim tokens=20]] hello", "m-1")
        kinds = [frame["type"] for frame in client.frames]
        assert kinds.index("broker.accepted") < kinds.index("broker.message") < kinds.index("stream_event")
        accepted = client.frames[kinds.index("broker.accepted")]
        assert accepted == {
            "type": "broker.accepted", "id": "m-1", "queued": 0, "duplicate": False, "outcome": None,
        }  # fmt: skip
        told = client.frames[kinds.index("broker.message")]
        assert (told["id"], told["state"], told["content"]) == ("m-1", "started", "[[sim tokens=20]] hello")
        assert text_of(client.frames) == "".join(f"hello{n} " for n in range(20))
        assert (end["type"], end["id"], end["subtype"]) == ("broker.turn_completed", "m-1", "success")
        assert (end["is_error"], end["error"], end["stopped"], end["origin"]) == (False, None, False, "client")
        assert end["ttft_ms"] > 0
        assert end["duration_ms"] >= end["ttft_ms"]
        assert end["usage"]["output_tokens"] > 0
        assert contiguous(client.frames)
        session = client.welcome["cli"]["session_id"]
        await client.until(lambda frame: frame.get("state") == "idle")
        await eventually(lambda: from_cli(client.texts) == meant_for_clients(broker.ledger_rows(), session))


async def test_usage_and_cost_are_those_of_each_turn(broker: Broker) -> None:
    """The CLI tells a running total; the terminals tell differences that add up to it."""
    async with connected(broker.url, hello={}) as client:
        ends = [await client.turn(f"[[sim tokens={20 * n}]] a", f"m-{n}") for n in (1, 2, 3)]
        totals = [frame["total_cost_usd"] for frame in client.of_type("result")]
        assert sum(end["cost_usd"] for end in ends) == pytest.approx(totals[-1], abs=1e-9)
        assert [end["usage"]["output_tokens"] for end in ends] == [20, 40, 60]


async def test_an_upstream_failure_is_a_completed_turn_with_its_error(broker: Broker) -> None:
    """A result came, so the turn is completed; its error is told by name, and the next turn works."""
    async with connected(broker.url, hello={}) as client:
        for status, name in ((401, "upstream_auth"), (429, "upstream_rate_limited"), (529, "upstream_overloaded")):
            end = await client.turn(f"[[sim error={status}]]")
            assert (end["type"], end["is_error"], end["error"]) == ("broker.turn_completed", True, name)
        assert (await client.turn("hello"))["is_error"] is False


async def test_a_second_controller_sees_everything_and_may_speak(broker: Broker) -> None:
    """Two clients of one session receive the same numbered frames, whoever asked; accepted goes to the asker alone."""
    async with connected(broker.url, hello=opening("two-1", "tab-a")) as one:
        async with connected(broker.url, hello=opening("two-1", "tab-b")) as two:
            await one.say("from one", "m-1")
            await two.terminal("m-1")
            await two.say("from two", "m-2")
            for client in (one, two):
                await client.terminal("m-2")
                await client.until(lambda frame: frame.get("state") == "idle")
            assert one.numbered() == two.numbered()
            assert [frame["by"] for frame in two.of_type("broker.message")] == ["tab-a", "tab-b"]
            assert [frame["id"] for frame in one.of_type("broker.accepted")] == ["m-1"]
            assert [frame["id"] for frame in two.of_type("broker.accepted")] == ["m-2"]


async def test_a_connection_of_the_same_instance_replaces_the_first(broker: Broker) -> None:
    """A reconnect never fights its own dead socket: the old one is closed with 4509, another instance stays."""
    async with connected(broker.url, hello=opening("inst-1", "other")) as other:
        async with connected(broker.url, hello=opening("inst-1", "tab")) as old:
            async with connected(broker.url, hello=opening("inst-1", "tab")) as new:
                assert await old.closed() == 4509
                assert (await new.turn("hello"))["type"] == "broker.turn_completed"
                await other.terminal()


async def test_ping_is_answered_and_keep_alive_is_ignored(broker: Broker) -> None:
    """broker.pong carries the ping's t; keep_alive changes nothing."""
    async with connected(broker.url, hello={}) as client:
        await client.send({"type": "keep_alive"})
        await client.send({"type": "broker.ping", "t": 17.5})
        assert await client.receive() == {"type": "broker.pong", "t": 17.5}


async def test_the_sdk_shape_of_a_message(broker: Broker) -> None:
    """user with uuid and blocks is the same as user_message with id; unknown fields are dropped."""
    async with connected(broker.url, hello={}) as client:
        blocks = [{"type": "text", "text": "hello"}, {"type": "text", "text": "[[sim text=fine]]"}]
        message = {"role": "user", "content": blocks}
        await client.send({"type": "user", "uuid": "u-1", "message": message, "session_id": "", "extra": 1})
        assert (await client.terminal("u-1"))["type"] == "broker.turn_completed"
        assert text_of(client.frames) == "fine"


async def test_sixteen_messages_wait_and_the_next_is_refused(broker: Broker) -> None:
    """The queue is told by position, bounded, listed in welcome, served in order; each message ends exactly once."""
    async with connected(broker.url, hello=opening("queue-1")) as client:
        await client.say("[[sim ttft_ms=600]] first", "first")
        for number in range(QUEUE + 1):
            await client.say(f"waiting {number}", f"q-{number}")
        error = await client.error()
        assert (error["code"], error["retryable"], error["ref"]) == ("queue_full", True, f"q-{QUEUE}")
        assert [frame["queued"] for frame in client.of_type("broker.accepted")] == list(range(QUEUE + 1))
        async with connected(broker.url, hello=opening("queue-1")) as late:
            assert late.welcome["turn"]["id"] == "first"
            assert late.welcome["turn"]["state"] == "running"
            assert late.welcome["queued"] == [f"q-{n}" for n in range(QUEUE)]
        await client.terminal(f"q-{QUEUE - 1}")
        ids = ["first", *(f"q-{number}" for number in range(QUEUE))]
        assert [frame["id"] for frame in terminals(client.frames)] == ids
        states = [(frame["id"], frame["state"]) for frame in client.of_type("broker.message")]
        assert [found for found in states if found[1] == "queued"] == [(found, "queued") for found in ids[1:]]
        assert [found for found in states if found[1] == "started"] == [(found, "started") for found in ids]
        assert client.frames[-1]["queue_ms"] > 300


async def test_a_queued_message_can_be_withdrawn(broker: Broker) -> None:
    """broker.cancel ends a waiting message unwritten; one that runs, ended or never was is told apart."""
    async with connected(broker.url, hello={}) as client:
        await client.say(SLOW, "m-1")
        await client.say("never", "m-2")
        await client.until_type("stream_event")
        await client.send({"type": "broker.cancel", "id": "m-2"})
        end = await client.terminal("m-2")
        assert (end["type"], end["reason"]) == ("broker.turn_failed", "cancelled")
        assert (end["applied"], end["retryable"]) == ("no", True)
        for message_id, code in (("m-1", "already_started"), ("m-2", "already_started"), ("x", "unknown_message")):
            await client.send({"type": "broker.cancel", "id": message_id})
            error = await client.error()
            assert (error["code"], error["ref"]) == (code, message_id)
        await client.control("interrupt")
        assert (await client.terminal("m-1"))["stopped"] is True
        own = set(processes_of(broker.ledger_rows("meta"), client.welcome["cli"]["session_id"]))
        assert user_ids(row for row in broker.ledger_rows("in") if cli(row) in own) == ["m-1"]


async def model_of(client: Client) -> str:
    """The model of the next turn, from its init."""
    await client.say("which model")
    init = await client.until(lambda frame: frame.get("subtype") == "init")
    await client.terminal()
    model: str = init["model"]
    return model


async def test_late_options_change_at_the_next_hello(broker: Broker) -> None:
    """On a live session changed late-bound options hold from the next turn on; others are named and not applied."""
    first = {"model": "sonnet", "system_prompt": "You are a pirate.", "permission_mode": "default"}
    async with connected(broker.url, hello=opening("late-1", options=first)) as client:
        assert client.welcome["options_ignored"] == []
        assert "sonnet" in await model_of(client)
        second = {**first, "model": "opus", "system_prompt": "You are a judge.", "append_system_prompt": "Be brief."}
        async with connected(broker.url, hello=opening("late-1", options=second)) as other:
            assert sorted(other.welcome["options_ignored"]) == ["append_system_prompt", "system_prompt"]
            assert "opus" in await model_of(other)
            async with connected(broker.url, hello=opening("late-1", options=first)) as third:
                assert third.welcome["options_ignored"] == []
                assert "sonnet" in await model_of(third)


async def test_end_stops_the_process_and_keeps_the_conversation(broker: Broker) -> None:
    """broker.end closes every client with 1000; a later resume starts a process that remembers, in the same epoch."""
    async with connected(broker.url, hello=opening("end-1", "a")) as one:
        async with connected(broker.url, hello=opening("end-1", "b")) as two:
            await one.turn("first")
            await one.send({"type": "broker.end"})
            assert await one.closed() == 1000
            assert await two.closed() == 1000
            assert two.of_type("broker.state")[-1]["state"] == "ended"
        place = {"mode": "resume", "id": "end-1", "epoch": one.welcome["epoch"], "last_seq": one.last_seq}
    async with connected(broker.url, hello={"session": place}) as back:
        assert (back.welcome["start"], back.welcome["lost"]) == ("restored", None)
        assert back.welcome["epoch"] == one.welcome["epoch"]
        await back.turn("second")
        assert text_of(back.frames).endswith("Earlier messages of yours: 1.")
        assert contiguous(one.numbered() + back.numbered())
        states = [frame for frame in back.of_type("broker.state") if frame.get("state") == "restored"]
        assert [frame["reason"] for frame in states] == ["resumed"]


async def test_end_in_mid_turn_ends_every_message(broker: Broker) -> None:
    """What runs and what waits gets its terminal before the close, and a later resume works."""
    async with connected(broker.url, hello=opening("end-2")) as client:
        await client.say(SLOW, "m-1")
        await client.say("waiting", "m-2")
        await client.until_type("stream_event")
        await client.send({"type": "broker.end"})
        assert await client.closed() == 1000
        assert [(frame["id"], frame["applied"]) for frame in terminals(client.frames)] == [
            ("m-1", "yes"),
            ("m-2", "no"),
        ]
    async with connected(broker.url, hello={"session": {"mode": "resume", "id": "end-2"}}) as back:
        assert (await back.turn("hello"))["type"] == "broker.turn_completed"
