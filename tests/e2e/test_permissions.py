"""Permission prompts: who may answer, what an answer does, and that no prompt stays open for ever."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.broker import Broker, started_broker
from tests.kit.client import Client, Frame, connected, terminals
from tests.kit.ledger import processes_of, said_to_cli
from tests.oracle import Oracle
from tests.waiting import eventually

RULE = {"toolName": "Bash", "ruleContent": "touch *"}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with the default policy."""
    with started_broker(tmp_path_factory.mktemp("permissions"), {"session": {"detach_timeout_s": 3}}) as found:
        oracle.allow(pid=found.pid)
        yield found


def opening(session_id: str, instance: str, **options: Any) -> dict[str, Any]:
    """Hello's fields for ``open``."""
    session = {"mode": "open", "id": session_id}
    return {"session": session, "client": {"instance": instance}, "options": options}


def touching(file: Path) -> str:
    """A message whose turn wants to make ``file``, which no mode allows unasked."""
    return f'[[sim tool="Bash:touch {file}" tokens=3]] please'


async def asked(client: Client, file: Path, message_id: str = "m-1") -> str:
    """Start such a turn; the id of its prompt."""
    await client.say(touching(file), message_id)
    return prompt_id(await client.prompt())


def prompt_id(prompt: Frame) -> str:
    """The id of a prompt, which has to be one for a tool."""
    assert prompt["request"]["subtype"] == "can_use_tool"
    found: str = prompt["request_id"]
    return found


def outcomes(client: Client) -> list[tuple[str, str | None]]:
    """How prompts were settled, and by whom."""
    return [(frame["outcome"], frame["by"]) for frame in client.of_type("broker.request_resolved")]


def tool_result(client: Client) -> Frame:
    """What the model was told of its last call."""
    results = [frame for frame in client.of_type("user") if isinstance(frame["message"]["content"], list)]
    found: Frame = results[-1]["message"]["content"][0]
    return found


async def test_an_allowed_tool_runs(broker: Broker, tmp_path: Path) -> None:
    """The prompt carries seq, tool and input; allow runs it, everybody is told who allowed it."""
    async with connected(broker.url, hello=opening("allow", "tab")) as client:
        await client.say(touching(tmp_path / "made"), "m-1")
        prompt = await client.prompt()
        assert prompt["seq"] > 0
        assert (prompt["request"]["tool_name"], prompt["request"]["input"]["command"]) == (
            "Bash", f"touch {tmp_path / 'made'}",
        )  # fmt: skip
        assert not (tmp_path / "made").exists()
        await client.answer(prompt_id(prompt), behavior="allow")
        end = await client.terminal("m-1")
        assert (end["subtype"], end["is_error"]) == ("success", False)
        assert (tmp_path / "made").exists()
        assert outcomes(client) == [("allowed", "tab")]


async def test_an_allowed_tool_runs_with_the_input_that_was_given(broker: Broker, tmp_path: Path) -> None:
    """updatedInput replaces what the model wanted."""
    async with connected(broker.url, hello=opening("input", "tab")) as client:
        found = await asked(client, tmp_path / "wanted")
        await client.answer(found, behavior="allow", updatedInput={"command": f"touch {tmp_path / 'given'}"})
        await client.terminal("m-1")
        assert [path.name for path in tmp_path.iterdir()] == ["given"]


async def test_a_denied_tool_does_not_run(broker: Broker, tmp_path: Path) -> None:
    """deny reaches the model with its message, the turn goes on to its result."""
    async with connected(broker.url, hello=opening("deny", "tab")) as client:
        await client.answer(await asked(client, tmp_path / "made"), behavior="deny", message="not on my watch")
        assert (await client.terminal("m-1"))["type"] == "broker.turn_completed"
        assert not (tmp_path / "made").exists()
        assert "not on my watch" in str(tool_result(client))
        assert outcomes(client) == [("denied", "tab")]
        assert (await client.turn("hello"))["is_error"] is False


async def test_the_first_answer_wins(broker: Broker, tmp_path: Path) -> None:
    """Later answers get already_answered, unknown ids unknown_request; the CLI hears one answer."""
    async with connected(broker.url, hello=opening("first", "one")) as one:
        async with connected(broker.url, hello=opening("first", "two")) as two:
            found = await asked(one, tmp_path / "made")
            assert prompt_id(await two.prompt()) == found
            await two.answer(found, behavior="deny", message="two was first")
            await one.until_type("broker.request_resolved")
            await one.answer(found, behavior="allow")
            late = await one.error()
            assert (late["code"], late["ref"]) == ("already_answered", found)
            await one.answer("never-asked", behavior="allow")
            assert (await one.error())["code"] == "unknown_request"
            await one.terminal("m-1")
            assert not (tmp_path / "made").exists()
            assert outcomes(one) == [("denied", "two")]
    said = said_to_cli(broker.ledger_rows("in"), "control_response")
    assert len([line for _, line in said if line["response"]["request_id"] == found]) == 1


def failure(request_id: str) -> Frame:
    """An answer of a client that cannot ask anybody."""
    body = {"subtype": "error", "error": "no user interface", "request_id": request_id}
    return {"type": "control_response", "response": body}


async def test_an_error_answer_counts_only_from_the_last_controller(broker: Broker, tmp_path: Path) -> None:
    """With another controller attached an error answer waits for that one; alone it is a deny."""
    async with connected(broker.url, hello=opening("error", "one")) as one:
        async with connected(broker.url, hello=opening("error", "two")) as two:
            found = await asked(one, tmp_path / "made")
            await one.send(failure(found))
            await one.sync()
            assert outcomes(one) == []
            await two.answer(found, behavior="allow")
            await one.terminal("m-1")
            assert (tmp_path / "made").exists()
        await eventually(lambda: broker.metric("broker_connections", state="open") == 1)
        found = await asked(one, tmp_path / "second", "m-2")
        await one.send(failure(found))
        await one.terminal("m-2")
        assert outcomes(one) == [("allowed", "two"), ("denied", "one")]
        assert not (tmp_path / "second").exists()


async def test_an_unanswered_prompt_is_denied_in_time(broker: Broker, tmp_path: Path) -> None:
    """After permission_timeout_s the CLI gets a valid deny and everybody is told that it expired; the turn ends."""
    async with connected(broker.url, hello=opening("late", "tab", permission_timeout_s=0.3)) as client:
        found = await asked(client, tmp_path / "made")
        assert (await client.terminal("m-1"))["type"] == "broker.turn_completed"
        assert outcomes(client) == [("expired", None)]
        assert not (tmp_path / "made").exists()
        assert "nobody answered" in str(tool_result(client))
        await client.answer(found, behavior="allow")
        assert (await client.error())["code"] == "already_answered"


async def test_an_interrupt_withdraws_the_prompt(broker: Broker, tmp_path: Path) -> None:
    """The turn ends as stopped, the prompt is withdrawn, a late answer changes nothing, the next turn works."""
    async with connected(broker.url, hello=opening("interrupt", "tab")) as client:
        found = await asked(client, tmp_path / "made")
        await client.control("interrupt")
        end = await client.terminal("m-1")
        assert (end["type"], end["stopped"]) == ("broker.turn_completed", True)
        assert outcomes(client) == [("withdrawn", None)]
        await client.answer(found, behavior="allow")
        assert (await client.error())["code"] == "already_answered"
        assert (await client.turn("hello"))["is_error"] is False
        assert not (tmp_path / "made").exists()


async def test_a_crash_withdraws_the_prompt(broker: Broker, tmp_path: Path) -> None:
    """A prompt of a dead process is nobody's: withdrawn, and gone from the next welcome."""
    async with connected(broker.url, hello=opening("crash", "tab")) as client:
        await asked(client, tmp_path / "made")
        os.kill(processes_of(broker.ledger_rows("meta"), client.welcome["cli"]["session_id"])[-1].pid, signal.SIGKILL)
        assert (await client.terminal("m-1"))["reason"] == "cli_exited"
        assert outcomes(client) == [("withdrawn", None)]
        async with connected(broker.url, hello=opening("crash", "other")) as other:
            assert other.welcome["pending"] == []


async def test_a_client_that_comes_later_is_shown_what_is_pending(broker: Broker, tmp_path: Path) -> None:
    """welcome.pending holds the very prompt, and only while it is open; its answer counts."""
    async with connected(broker.url, hello=opening("later", "one")) as one:
        await one.say(touching(tmp_path / "made"), "m-1")
        prompt = await one.prompt()
        one.socket.transport.abort()
    place = {"mode": "resume", "id": "later", "epoch": one.welcome["epoch"], "last_seq": one.last_seq}
    async with connected(broker.url, hello={"session": place}) as two:
        assert two.welcome["pending"] == [prompt]
        assert two.welcome["turn"]["id"] == "m-1"
        await two.answer(prompt_id(prompt), behavior="allow")
        await two.terminal("m-1")
        assert (tmp_path / "made").exists()
        async with connected(broker.url, hello=opening("later", "three")) as three:
            assert three.welcome["pending"] == []
    assert len(terminals(one.frames + two.frames, "m-1")) == 1


@pytest.mark.parametrize(
    "update",
    [
        {"type": "addRules", "rules": [RULE], "behavior": "allow", "destination": "userSettings"},
        {"type": "addRules", "rules": [RULE], "behavior": "allow", "destination": "session"},
        {"type": "setMode", "mode": "bypassPermissions", "destination": "session"},
        {"type": "addDirectories", "directories": ["/"], "destination": "session"},
    ],
    ids=lambda update: f"{update['type']}-{update['destination']}",
)
async def test_an_answer_cannot_change_the_rules(broker: Broker, tmp_path: Path, update: Frame) -> None:
    """updatedPermissions is refused by the default policy, the prompt waits on, and the next call asks again."""
    session = f"rules-{update['type']}-{update['destination']}"
    async with connected(broker.url, hello=opening(session, "tab")) as client:
        found = await asked(client, tmp_path / "one")
        await client.answer(found, behavior="allow", updatedPermissions=[update])
        error = await client.error()
        assert (error["code"], error["ref"]) == ("option_not_allowed", found)
        assert outcomes(client) == []
        await client.answer(found, behavior="allow")
        await client.terminal("m-1")
        await client.answer(await asked(client, tmp_path / "two", "m-2"), behavior="deny")
        await client.terminal("m-2")
        assert [path.name for path in tmp_path.iterdir()] == ["one"]
    said = said_to_cli(broker.ledger_rows("in"), "control_response")
    assert "updatedPermissions" not in str([line for _, line in said])


@pytest.mark.parametrize(
    "response",
    [{}, {"behavior": "ask"}, {"behavior": "allow", "other": 1}, {"behavior": "allow", "updatedInput": "text"}],
    ids=str,
)
async def test_a_malformed_answer_leaves_the_prompt_open(broker: Broker, tmp_path: Path, response: Frame) -> None:
    """bad_frame with the path is told; the prompt waits for a proper answer."""
    async with connected(broker.url, hello={}) as client:
        found = await asked(client, tmp_path / "made")
        await client.answer(found, **response)
        assert (await client.error())["code"] == "bad_frame"
        await client.answer(found, behavior="allow")
        await client.terminal("m-1")
        assert (tmp_path / "made").exists()
