"""An interrupt ends the running turn whenever it comes, and nothing but that turn."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.broker import Broker, started_broker
from tests.kit.client import Client, Frame, connected, terminals, text_of
from tests.kit.ledger import cli, processes_of, user_ids
from tests.oracle import Oracle
from tests.waiting import eventually

LONG = "[[sim ttft_ms=50 tokens=3000 itl_ms=10]] word"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with the defaults of the configuration, but that lets go of abandoned processes."""
    with started_broker(tmp_path_factory.mktemp("interrupt"), {"session": {"detach_timeout_s": 3}}) as found:
        oracle.allow(pid=found.pid)
        yield found


async def stopped(client: Client, message_id: str = "m-1") -> Frame:
    """The terminal of an interrupted turn; the conversation then goes on."""
    end = await client.terminal(message_id)
    assert (end["type"], end["stopped"], end["error"]) == ("broker.turn_completed", True, None), end
    assert len(terminals(client.frames, message_id)) == 1
    before = len(client.frames)
    assert (await client.turn("hello", f"after-{message_id}"))["is_error"] is False
    assert text_of(client.frames[before:]).startswith("You said: hello")
    return end


async def first_delta(client: Client) -> Frame:
    """Until the first words of a turn."""
    return await client.until(lambda f: f["type"] == "stream_event" and f["event"]["type"] == "content_block_delta")


def interrupt(**payload: object) -> Frame:
    """The frame of an interrupt."""
    request = {"subtype": "interrupt", **payload}
    return {"type": "control_request", "request_id": "i-1", "request": request}


@pytest.mark.parametrize("round_", range(10))
async def test_in_one_burst_with_the_message(broker: Broker, round_: int) -> None:
    """Sent right behind the message it is held until the turn has begun, and is not lost."""
    async with connected(broker.url, hello={}) as client:
        if round_ % 2:  # a process that has been through a turn, and one that has not
            await client.turn("hello")
        await client.say(LONG, "m-1")
        await client.send(interrupt())
        end = await stopped(client)
        assert end["duration_ms"] < 5000
        answers = client.of_type("control_response")
        assert [answer["response"]["subtype"] for answer in answers] == ["success"]
        # A CLI that hears of it before the turn's init may answer success and lose it.
        process = processes_of(broker.ledger_rows("meta"), client.welcome["cli"]["session_id"])[0]
        lines = [row["line"] for row in broker.ledger_rows() if cli(row) == process and "line" in row]
        inits = [n for n, line in enumerate(lines) if '"subtype":"init"' in line]
        assert inits[round_ % 2] < next(n for n, line in enumerate(lines) if '"subtype":"interrupt"' in line)


async def test_with_the_hello(broker: Broker) -> None:
    """Hello, message and interrupt in one go, before anything is bound."""
    async with connected(broker.url) as client:
        await client.send({"type": "broker.hello"})
        await client.say(LONG, "m-1")
        await client.send(interrupt())
        await client.until_type("broker.welcome")
        await stopped(client)


async def test_at_init(broker: Broker) -> None:
    """Between the turn's init and its first token."""
    async with connected(broker.url, hello={}) as client:
        await client.say(LONG, "m-1")
        await client.until(lambda frame: frame.get("subtype") == "init")
        assert (await client.control("interrupt"))["subtype"] == "success"
        assert (await stopped(client))["ttft_ms"] is None


async def test_in_mid_stream(broker: Broker) -> None:
    """What was said so far stays: the partial text arrives as an assistant message, then the word about the user."""
    async with connected(broker.url, hello={}) as client:
        await client.say(LONG, "m-1")
        await first_delta(client)
        await client.control("interrupt")
        end = await stopped(client)
        assert end["subtype"] == "error_during_execution"
        said = text_of(client.frames[: client.frames.index(end)])
        partial = client.of_type("assistant")[0]["message"]["content"][0]["text"]
        assert said.startswith("word0 ")
        assert partial.startswith("word0 ")
        assert "[Request interrupted by user]" in str(client.of_type("user"))


async def test_while_a_tool_runs(broker: Broker, tmp_path: Path) -> None:
    """The command is killed, and what it would have done later does not happen."""
    options = {"allowed_tools": ["Bash"]}
    async with connected(broker.url, hello={"options": options}) as client:
        mark, late = tmp_path / "mark", tmp_path / "late"
        await client.say(f'[[sim tool="Bash:touch {mark}; sleep 30; touch {late}"]] please', "m-1")
        await eventually(mark.exists, 10)
        await client.control("interrupt")
        assert (await stopped(client))["duration_ms"] < 10000
        assert not late.exists()


async def test_the_queue_stays_or_goes_as_asked(broker: Broker) -> None:
    """Without cancel_queued what waits runs next; with it each waiting message ends unwritten."""
    async with connected(broker.url, hello={}) as client:
        for message_id, text in (("m-1", LONG), ("m-2", LONG), ("m-3", "never")):
            await client.say(text, message_id)
        await first_delta(client)
        kept = await client.control("interrupt")
        assert kept["response"] == {"still_queued": ["m-2", "m-3"], "cancelled": []}
        assert (await client.terminal("m-1"))["stopped"] is True
        await first_delta(client)
        gone = await client.control("interrupt", cancel_queued=True)
        assert gone["response"] == {"still_queued": [], "cancelled": ["m-3"]}
        withdrawn = await client.terminal("m-3")
        assert (withdrawn["reason"], withdrawn["applied"], withdrawn["retryable"]) == ("cancelled", "no", True)
        await stopped(client, "m-2")
        ids = [frame["id"] for frame in terminals(client.frames)]
        assert sorted(ids) == ["after-m-2", "m-1", "m-2", "m-3"]
        assert "never" not in str([row.get("line") for row in broker.ledger_rows("in")])
        assert user_ids(broker.ledger_rows("in"))[-1] == "after-m-2"


async def test_one_for_a_turn_that_is_over_stops_no_other(broker: Broker) -> None:
    """turn guards: a stale one is answered as stale, and the turn that runs now runs on."""
    async with connected(broker.url, hello={}) as client:
        await client.turn("hello", "m-1")
        await client.say("[[sim tokens=60 itl_ms=5]] word", "m-2")
        await first_delta(client)
        answer = await client.control("interrupt", turn="m-1")
        assert answer["response"] == {"stale": True}
        end = await client.terminal("m-2")
        assert (end["stopped"], end["subtype"]) == (False, "success")
        await client.say(LONG, "m-3")
        await first_delta(client)
        await client.control("interrupt", turn="m-3")
        await stopped(client, "m-3")


async def test_when_nothing_runs(broker: Broker) -> None:
    """The broker answers by itself; the CLI hears nothing, and the next turn is not stopped."""
    async with connected(broker.url, hello={}) as client:
        for _ in range(2):
            answer = await client.control("interrupt")
            assert answer["response"] == {"still_queued": [], "cancelled": []}
            assert (await client.control("interrupt", turn="m-0"))["response"] == {"stale": True}
            assert (await client.turn("[[sim tokens=5]] word"))["stopped"] is False


async def test_twice_is_once(broker: Broker) -> None:
    """Several interrupts of one turn stop that turn, and not the one that waits behind it."""
    async with connected(broker.url, hello={}) as client:
        await client.say(LONG, "m-1")
        await client.say("[[sim tokens=30 itl_ms=5]] word", "m-2")
        await first_delta(client)
        for number in range(5):
            await client.ask("interrupt", f"i-{number}", turn="m-1")
        assert (await client.terminal("m-1"))["stopped"] is True
        end = await client.terminal("m-2")
        assert (end["stopped"], end["subtype"]) == (False, "success")


async def test_a_cli_that_ignores_it_is_killed(broker: Broker) -> None:
    """No result within 5 s of an interrupt: turn_failed interrupted, the process is replaced, the next turn works."""
    async with connected(broker.url, hello={}) as client:
        await client.say("[[sim hang=1]] word", "m-1")
        await first_delta(client)
        await client.control("interrupt")
        end = await client.terminal("m-1")
        assert (end["type"], end["reason"], end["applied"]) == ("broker.turn_failed", "interrupted", "yes")
        assert (await client.turn("hello"))["is_error"] is False
        assert len(terminals(client.frames, "m-1")) == 1
