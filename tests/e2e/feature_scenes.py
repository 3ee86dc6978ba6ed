"""Scenes of agents, prompts and modes: what a tenant sees of them, the same on the simulated and on the real CLI.

Callers: ``test_features.py``, ``test_real_features.py``.
"""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.kit.broker import Broker
from tests.kit.client import Client, Frame, connected

Scene = Callable[[Broker, Frame, Path], Awaitable[None]]
LONG_S = 60.0


def init(client: Client) -> Frame:
    """The latest ``system/init``."""
    found: Frame = [f for f in client.of_type("system") if f["subtype"] == "init"][-1]
    return found


def tool_results(client: Client) -> str:
    """Every tool result, as text."""
    return json.dumps([f["message"]["content"] for f in client.of_type("user")])


async def touched(client: Client, file: Path, *, answer: str | None = None) -> bool:
    """Have the model make ``file``; ``answer`` settles the prompt, None: there must be none."""
    before = len(client.of_type("control_request"))
    await client.say(f'[[sim tool="Write:{file}" tokens=2]] please', file.name)
    if answer is not None:
        prompt = await client.until(lambda f: f["type"] == "control_request", LONG_S)
        await client.answer(prompt["request_id"], behavior=answer, **({} if answer == "allow" else {"message": "no"}))
    end = await client.terminal(file.name, LONG_S)
    assert end["type"] == "broker.turn_completed", end
    assert len(client.of_type("control_request")) - before == (answer is not None)
    return file.exists()


async def modes_are_switched_live(broker: Broker, options: Frame, folder: Path) -> None:
    """``default`` asks, ``acceptEdits`` does not; each switch is told to everybody and shown by the next ``init``."""
    async with connected(broker.url, hello={"options": options}) as client:
        await client.turn("where [[sim tokens=1]]", within_s=LONG_S)
        work = Path(init(client)["cwd"])
        assert init(client)["permissionMode"] == "default"
        assert not await touched(client, work / "asked-and-denied", answer="deny")
        assert await touched(client, work / "asked-and-allowed", answer="allow")
        assert (await client.control("set_permission_mode", mode="acceptEdits"))["subtype"] == "success"
        state = await client.until(lambda f: f["type"] == "broker.state", LONG_S)
        assert state["permission_mode"] == "acceptEdits"
        assert await touched(client, work / "unasked")
        assert init(client)["permissionMode"] == "acceptEdits"
        await client.ask("set_permission_mode", "forbidden", mode="bypassPermissions")
        assert (await client.error())["code"] == "option_not_allowed"
        assert (await client.control("set_permission_mode", mode="plan"))["subtype"] == "success"
        await client.turn("plan [[sim tokens=1]]", within_s=LONG_S)
        assert init(client)["permissionMode"] == "plan"


async def an_unanswered_prompt_is_denied_in_time(broker: Broker, options: Frame, folder: Path) -> None:
    """After ``permission_timeout_s`` the CLI has its answer, the turn ends, and everybody is told."""
    hello: dict[str, Any] = {"options": {**options, "permission_timeout_s": 0.5}}
    async with connected(broker.url, hello=hello) as client:
        end = await client.turn('[[sim tool="Bash:touch late" tokens=2]] please', within_s=LONG_S)
        assert (end["type"], end["is_error"]) == ("broker.turn_completed", False)
        assert [f["outcome"] for f in client.of_type("broker.request_resolved")] == ["expired"]
        assert "nobody answered in time" in tool_results(client)


async def an_agent_of_the_tenant_works(broker: Broker, options: Frame, folder: Path) -> None:
    """An agent that hello declares is listed, is started by the model's call, and reports back into the turn."""
    agents = {"digger": {"description": "digs", "prompt": "You are the digger.", "model": "haiku"}}
    given = {"description": "dig", "prompt": "dig deep [[sim text=found]]", "subagent_type": "digger"}
    call = json.dumps({**given, "run_in_background": False}).replace('"', '\\"')
    async with connected(broker.url, hello={"options": {**options, "agents": agents}}) as client:
        end = await client.turn(f'[[sim tool="Task:{call}" text=done]] go', within_s=LONG_S)
        assert (end["type"], end["is_error"]) == ("broker.turn_completed", False), end
        assert "digger" in init(client)["agents"]
        assert "found" in tool_results(client)
        assert [f for f in client.frames if f.get("parent_tool_use_id")], "its frames are told beside the turn's"


ALL: tuple[Scene, ...] = (
    modes_are_switched_live, an_unanswered_prompt_is_denied_in_time, an_agent_of_the_tenant_works,
)  # fmt: skip
