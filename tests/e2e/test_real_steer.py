"""Messages into a running turn of the real CLI, in both pinned versions: folded, run behind it, stopped, lost."""

import os
import signal
from pathlib import Path

import pytest

from simulator.messages_api import MessagesApi
from tests.e2e.real import EITHER, options, posts, real_broker
from tests.e2e.test_real_crash import cli_pid
from tests.kit.client import Client, Frame, connected, terminals

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(180)]

SLOW = "[[sim tokens=40 itl_ms=25]]"
TOOL = '[[sim tool="Bash:sleep 1" tokens=3]]'
HELLO = {"options": options("t")}


async def steer(client: Client, text: str, message_id: str) -> None:
    await client.send({"type": "user_message", "id": message_id, "content": text, "steer": True})


def is_assistant(frame: Frame) -> bool:
    return bool(frame["type"] == "assistant")


async def ends(client: Client, *message_ids: str) -> list[tuple[str, str | None]]:
    """The type of each message's terminal and whose turn it was folded into; exactly one for each."""
    for message_id in message_ids:
        await client.terminal(message_id, 60)
    await client.sync()
    found = [terminals(client.frames, message_id) for message_id in message_ids]
    assert [len(frames) for frames in found] == [1] * len(message_ids)
    return [(frame["type"].removeprefix("broker.turn_"), frame.get("folded_into")) for [frame] in found]


@pytest.mark.parametrize("version", EITHER)
async def test_a_steered_message_is_folded_or_run(version: str, tmp_path: Path) -> None:
    """During a tool it joins the turn (one result), during text it is the next turn; two of them share one.

    The API sees the folded words in the same turn; what only 2.1.197 says again does not reach the client.
    """
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker, connected(broker.url, hello=HELLO) as client:
            await client.say(TOOL, "m-1")
            await client.until(is_assistant, 60)
            await steer(client, "steered into the tool", "m-2")
            assert await ends(client, "m-1", "m-2") == [("completed", None), ("completed", "m-1")]
            assert len(client.of_type("result")) == 1
            assert "steered into the tool" in str(posts(api)[-1]["messages"])

            await client.say(f"text {SLOW}", "m-3")
            await client.until_type("stream_event", 60)
            await client.say("queued", "m-6")
            await steer(client, "behind the text [[sim tokens=2]]", "m-4")
            await steer(client, "and with it", "m-5")
            assert await ends(client, "m-3", "m-4", "m-5", "m-6") == [
                ("completed", None), ("completed", None), ("completed", "m-4"), ("completed", None)
            ]  # fmt: skip
            assert [frame["id"] for frame in terminals(client.frames)] == [f"m-{n}" for n in (1, 2, 3, 4, 5, 6)]
            assert len(client.of_type("result")) == 4
            assert not [frame for frame in client.frames if frame.get("isReplay")]
            assert not client.of_type("command_lifecycle")
        costs = [frame["cost_usd"] for frame in terminals(client.frames)]
        assert [cost is None for cost in costs] == [False, True, False, False, True, False]
        total = terminals(client.frames)[-1]["total"]
        assert total["turns"] == 4
        assert total["cost_usd"] == pytest.approx(sum(cost or 0 for cost in costs), abs=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("version", EITHER)
async def test_what_waits_runs_after_an_interrupt_or_is_withdrawn(version: str, tmp_path: Path) -> None:
    """In text and in a tool: the turn stops and the steered message runs; with ``cancel_queued`` the CLI forgets it."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker, connected(broker.url, hello=HELLO) as client:
            for number, work in enumerate((f"text {SLOW}", '[[sim tool="Bash:sleep 5"]]')):
                await client.say(work, f"a-{number}")
                await client.until(is_assistant if "Bash" in work else lambda f: f["type"] == "stream_event", 60)
                await steer(client, "after that [[sim tokens=2]]", f"b-{number}")
                receipt = (await client.control("interrupt"))["response"]
                assert receipt == {"still_queued": [f"b-{number}"], "cancelled": []}
                assert await ends(client, f"a-{number}", f"b-{number}") == [("completed", None)] * 2
                assert [f["stopped"] for f in terminals(client.frames)[-2:]] == [True, False]

            await client.say(f"text {SLOW}", "c-1")
            await client.until_type("stream_event", 60)
            await steer(client, "forget this", "c-2")
            await client.control("interrupt", cancel_queued=True)
            assert await ends(client, "c-1", "c-2") == [("completed", None), ("failed", None)]
            [withdrawn] = terminals(client.frames, "c-2")
            assert (withdrawn["reason"], withdrawn["applied"], withdrawn["retryable"]) == ("cancelled", "no", True)
            assert (await client.turn("hello [[sim tokens=2]]", "c-3", 60))["is_error"] is False
        assert "forget this" not in str([post["messages"] for post in posts(api)])


@pytest.mark.parametrize("version", EITHER)
async def test_a_prompt_is_answered_before_the_message_is_folded(version: str, tmp_path: Path) -> None:
    """A steered message does not answer for the person; the tool runs, then the turn takes the message in."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker, connected(broker.url, hello=HELLO) as client:
            await client.say('[[sim tool="Bash:touch made"]]', "m-1")
            prompt = await client.until_type("control_request", 60)
            await steer(client, "one more thing", "m-2")
            await client.sync()
            assert not terminals(client.frames)
            await client.answer(prompt["request_id"], behavior="allow")
            assert await ends(client, "m-1", "m-2") == [("completed", None), ("completed", "m-1")]
            [result] = client.of_type("user")
            assert not result["message"]["content"][0].get("is_error")


@pytest.mark.full
@pytest.mark.parametrize("version", EITHER)
async def test_a_kill_ends_what_was_steered(version: str, tmp_path: Path) -> None:
    """Folded: it counts.  Waiting in the CLI: unknown.  The conversation goes on with the next process."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker, connected(broker.url, hello=HELLO) as client:
            assert (await client.turn("hello [[sim tokens=2]]", "m-0", 60))["is_error"] is False
            await client.say('[[sim tool="Bash:sleep 0.5"]]', "m-1")
            await client.until(is_assistant, 60)
            await steer(client, f"second {SLOW}", "m-2")
            await client.until(lambda f: f["type"] == "user", 60)
            await client.until_type("stream_event", 60)
            await steer(client, "third", "m-3")
            await client.sync()
            os.kill(cli_pid(broker, client), signal.SIGKILL)
            assert [kind for kind, _ in await ends(client, "m-1", "m-2", "m-3")] == ["failed"] * 3
            found = [terminals(client.frames, f"m-{number}")[0]["applied"] for number in (1, 2, 3)]
            assert found == ["yes", "yes", "unknown"]
            assert (await client.turn("again [[sim tokens=2]]", "m-4", 60))["is_error"] is False
