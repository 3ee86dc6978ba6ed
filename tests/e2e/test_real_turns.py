"""A turn on the real CLI: tools, interrupts, errors of the API, what a policy forbids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator.messages_api import MessagesApi
from tests.e2e.real import VERSIONS, options, posts, real_broker
from tests.kit.client import Client, Frame, connected

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(120)]


def answer(request_id: str, payload: dict[str, Any]) -> dict[str, Any]:
    """A client's answer to a permission prompt."""
    body = {"subtype": "success", "request_id": request_id, "response": payload}
    return {"type": "control_response", "response": body}


async def prompt(client: Client, command: str) -> dict[str, Any]:
    """Ask for a command and return the permission prompt."""
    await client.say(f'[[sim tokens=3 tool="Bash:{command}"]]')
    return await client.until_type("control_request", 60)


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_allowed_prompt_runs_the_tool_and_a_denied_one_does_not(version: str, tmp_path: Path) -> None:
    """The effect of the command is looked at, not the CLI's word for it."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker:
            async with connected(broker.url, hello={"options": options("t")}) as client:
                for allow in (True, False):
                    target = tmp_path / f"made-{allow}"
                    asked = await prompt(client, f"touch {target}")
                    payload = {"behavior": "allow"} if allow else {"behavior": "deny", "message": "no"}
                    await client.send(answer(asked["request_id"], payload))
                    end = await client.terminal(within_s=60)
                    assert end["type"] == "broker.turn_completed"
                    assert target.exists() is allow
                resolved = [f["outcome"] for f in client.frames if f["type"] == "broker.request_resolved"]
                assert resolved == ["allowed", "denied"]


def _begins(kind: str) -> Callable[[Frame], bool]:
    return lambda frame: frame["type"] == kind and frame.get("subtype") in (None, "init")


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_interrupt_ends_the_turn_at_any_moment(version: str, tmp_path: Path) -> None:
    """Sent with the message, at init and in mid-stream: the turn ends as stopped and the next one works."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker:
            async with connected(broker.url, hello={"options": options("t")}) as client:
                for number, moment in enumerate(("at once", "system", "stream_event")):
                    await client.say(f"[[sim tokens=400 itl_ms=20]] {moment}")
                    if moment != "at once":
                        await client.until(_begins(moment), 60)
                    request = {"subtype": "interrupt"}
                    await client.send({"type": "control_request", "request_id": f"i{number}", "request": request})
                    end = await client.terminal(within_s=30)
                    assert end["type"] == "broker.turn_completed", end
                    assert end["stopped"], end
                    assert end["error"] is None
                    after = await client.turn("[[sim tokens=2]] go on", within_s=60)
                    assert not after["is_error"], after


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("status", "error"), [(401, "upstream_auth"), (529, "upstream_overloaded")])
async def test_an_error_of_the_api_is_told_and_counted_once(
    version: str, status: int, error: str, tmp_path: Path
) -> None:
    """The result came, so the turn is completed; it carries the error, and one failure is counted."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker:
            async with connected(broker.url, hello={"options": options("t")}) as client:
                end = await client.turn(f"[[sim error={status}]]", within_s=60)
                assert (end["type"], end["is_error"], end["error"]) == ("broker.turn_completed", True, error)
                assert broker.metric("broker_stream_failures_total") == 1
                assert broker.metric("broker_stream_failures_total", reason=error) == 1


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_answer_cannot_write_settings(version: str, tmp_path: Path) -> None:
    """updatedPermissions to userSettings is refused, nothing is written, and the next command asks again."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker:
            async with connected(broker.url, hello={"options": options("t")}) as client:
                asked = await prompt(client, f"touch {tmp_path}/one")
                rule = {"type": "addRules", "rules": [{"toolName": "Bash"}], "behavior": "allow"}
                updates = [{**rule, "destination": "userSettings"}]
                await client.send(answer(asked["request_id"], {"behavior": "allow", "updatedPermissions": updates}))
                assert (await client.until_type("broker.error"))["code"] == "option_not_allowed"
                await client.send(answer(asked["request_id"], {"behavior": "allow"}))
                await client.terminal(within_s=60)
                again = await prompt(client, f"touch {tmp_path}/two")
                await client.send(answer(again["request_id"], {"behavior": "deny", "message": "no"}))
                await client.terminal(within_s=60)
            assert not list(broker.state.rglob("settings*.json"))


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_slash_command_is_refused(version: str, tmp_path: Path) -> None:
    """/clear would change the session's id: it never reaches the CLI, and the conversation goes on."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker:
            async with connected(broker.url, hello={"options": options("t")}) as client:
                for text in ("/clear", "  /model opus", [{"type": "text", "text": "/cost"}]):
                    await client.say(text)
                    assert (await client.until_type("broker.error"))["code"] == "option_not_allowed"
                end = await client.turn("[[sim tokens=2]] hello", within_s=60)
                assert not end["is_error"]
            assert len(posts(api)) == 1
