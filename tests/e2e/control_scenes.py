"""What is true of late options and of control requests, whatever CLI is behind the broker.

Callers: ``test_controls.py`` (the simulated CLI) and ``test_real_controls.py`` (the real one).  Each scene is given a
broker with two spares whose sessions rest a second after their last client has left, whose tenants may add the
directories below ``folder``, and whose CLI keeps checkpoints of files; and the options that make a session there.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.e2e.hook_scenes import LONG_S, tool_results
from tests.e2e.processes import killed
from tests.kit.broker import Broker
from tests.kit.client import Client, Frame, connected, contiguous
from tests.kit.host import Host
from tests.waiting import eventually

Scene = Callable[[Broker, Frame, Path], Awaitable[None]]
SECRET = "canary-9876543210"
SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
ANSWER = r"StructuredOutput:{\"answer\": 4}"
NAP = r"Bash:{\"command\": \"sleep 60\", \"description\": \"nap\", \"run_in_background\": true}"


def states(client: Client) -> list[Frame]:
    """What was told of changes, without type and number."""
    return [
        {key: value for key, value in frame.items() if key not in ("type", "seq")}
        for frame in client.of_type("broker.state")
    ]


def init(client: Client) -> Frame:
    """The latest ``system/init``."""
    return [f for f in client.of_type("system") if f["subtype"] == "init"][-1]


async def options_of_hello_are_bound_late(broker: Broker, options: Frame, folder: Path) -> None:
    """Rules, directories, style and schema of hello hold in the first turn of a warm process."""
    (folder / "docs").mkdir(exist_ok=True)
    late: Frame = {
        "effort": "high",
        "allowed_tools": ["Bash(touch yes*)"],
        "add_dirs": [str(folder / "docs")],
        "settings": {"permissions": {"deny": ["Bash(touch no*)"], "ask": ["Bash(ls:*)"]}, "outputStyle": "Explanatory"},
        "json_schema": SCHEMA,
        "betas": ["context-1m-2025-08-07"],
    }
    async with connected(broker.url, hello={"options": {**options, **late}}) as client:
        assert client.welcome["start"] == "warm"
        host = Host(client)
        await host.turn('[[sim tool="Bash:touch yes1" tokens=2]] one', "m-1", LONG_S)
        assert not host.requests("can_use_tool"), "an allowed tool runs unasked"
        assert init(client)["output_style"] == "Explanatory"
        await host.turn('[[sim tool="Bash:touch no1" tokens=2]] two', "m-2", LONG_S)
        assert "denied" in tool_results(client)
        await host.turn('[[sim tool="Bash:ls" tokens=2]] three', "m-3", LONG_S)
        assert len(host.requests("can_use_tool")) == 1, "what usually runs unasked is asked about"
        end = await host.turn(f'[[sim tool="{ANSWER}"]] four', "m-4", LONG_S)
        assert end["subtype"] == "success"
        assert client.of_type("result")[-1]["structured_output"] == {"answer": 4}


async def settings_are_changed_live(broker: Broker, options: Frame, folder: Path) -> None:
    """By a control request and by a later hello; each keeps what the others have set, and all are told by name."""
    hello: Frame = {"session": {"mode": "open", "id": "live"}}
    first = {**options, "allowed_tools": ["Bash(touch a*)"]}
    async with connected(broker.url, hello={**hello, "options": first}) as client:
        host = Host(client)
        rules = {"permissions": {"allow": ["Bash(touch b*)"], "defaultMode": "default"}, "effortLevel": "low"}
        reply = await host.control("apply_flag_settings", "c-1", settings=rules)
        assert (reply["subtype"], reply["response"]) == ("success", {})
        async with connected(broker.url, hello={**hello, "options": {"disallowed_tools": ["Bash(touch c*)"]}}) as other:
            for number, name in enumerate(("a1", "b1")):
                await host.turn(f'[[sim tool="Bash:touch {name}" tokens=2]] go', f"m-{number}", LONG_S)
            assert not host.requests("can_use_tool")
            await host.turn('[[sim tool="Bash:touch c1" tokens=2]] go', "m-9", LONG_S)
            assert "denied" in tool_results(client)
            await other.terminal("m-9", LONG_S)
        told = [
            {"settings": ["permissions.allow", "permissions.defaultMode", "effortLevel"], "permission_mode": "default"}
        ]
        assert [state for state in states(client) if "settings" in state] == told
        shown = (await host.control("get_settings", "c-2"))["response"]
        assert set(shown["effective"]["permissions"]["allow"]) == {"Bash(touch a*)", "Bash(touch b*)"}
        assert shown["effective"]["permissions"]["deny"] == ["Bash(touch c*)"]
        assert shown["applied"]["effort"] == "low"


async def no_secret_is_shown(broker: Broker, options: Frame, folder: Path) -> None:
    """Nothing that a client is told holds a credential, not even its own."""
    async with connected(broker.url, hello={"options": {"credentials": {"api_key": SECRET}}}) as client:
        await client.turn("[[sim tokens=2]] one", within_s=LONG_S)
        await client.control("set_credentials", credentials={"auth_token": f"{SECRET}-2"})
        reply = await client.control("get_settings")
        assert reply["subtype"] == "success"
        assert set(reply["response"]) == {"effective", "sources", "applied"}
        await client.turn("[[sim tokens=2]] two", within_s=LONG_S)
        assert states(client) == [{"credentials": "auth_token"}]
        assert SECRET not in str(client.texts)
    assert SECRET not in broker.log_text()


async def files_are_rewound(broker: Broker, options: Frame, folder: Path) -> None:
    """What the agent wrote since a message is undone, once looked at and once done."""
    async with connected(broker.url, hello={"options": {**options, "permission_mode": "acceptEdits"}}) as client:
        host = Host(client)
        work = next(broker.state.glob(f"sessions/{client.welcome['cli']['session_id'][:13]}/work"))
        file = work / "note.txt"
        for number, words in enumerate(("first", "second")):
            write = rf"Write:{{\"file_path\": \"{file}\", \"content\": \"{words}\"}}"
            read = f'[[sim tool="Read:{file}" tokens=2]] look'
            if number:
                await host.turn(read, f"r-{number}", LONG_S)
            await host.turn(f'[[sim tool="{write}" tokens=2]] write', f"w-{number}", LONG_S)
            assert file.read_text() == words, tool_results(client)
        looked = await host.control("rewind_files", "c-1", user_message_id="w-1", dry_run=True)
        assert looked["response"]["canRewind"] is True, looked
        assert file.read_text() == "second"
        done = await host.control("rewind_files", "c-2", user_message_id="w-1")
        assert done["subtype"] == "success", done
        assert file.read_text() == "first"
        unknown = await host.control("rewind_files", "c-3", user_message_id="nope")
        assert unknown["subtype"] == "error"


async def a_task_is_stopped(broker: Broker, options: Frame, folder: Path) -> None:
    """A command in the background ends when it is told to."""
    async with connected(broker.url, hello={"options": {**options, "allowed_tools": ["Bash(sleep:*)"]}}) as client:
        host = Host(client)
        await host.turn(f'[[sim tool="{NAP}" tokens=2]] nap', "m-1", LONG_S)
        [task] = [f["task_id"] for f in client.of_type("system") if f["subtype"] == "task_started"]
        assert (await host.control("stop_task", "c-1", task_id=task))["subtype"] == "success"
        while not (ended := [f for f in client.of_type("system") if f["subtype"] == "task_notification"]):
            await client.receive(LONG_S)
        assert [(frame["task_id"], frame["status"]) for frame in ended] == [(task, "stopped")]


async def context_usage_is_told_now_and_then(broker: Broker, options: Frame, folder: Path) -> None:
    """Once; the next time it is said when it may be asked again; another session is not concerned."""
    async with connected(broker.url, hello={"options": options}) as client:
        reply = await client.control("get_context_usage")
        assert reply["response"]["maxTokens"] > 0
        await client.ask("get_context_usage", "c-9")
        error = await client.error()
        assert (error["code"], error["ref"], error["retryable"]) == ("rate_limited", "c-9", True)
        assert 0 < error["retry_after_ms"] <= 10_001
        async with connected(broker.url, hello={"options": options}) as other:
            assert (await other.control("get_context_usage", detail="summary"))["subtype"] == "success"


async def a_restored_process_is_told_everything(broker: Broker, options: Frame, folder: Path) -> None:
    """After a crash and after a rest: hello's options and every change since, in force before the next turn."""
    hello: Frame = {"session": {"mode": "open", "id": "all"}, "client": {"instance": "tab"}}
    first = {**options, "allowed_tools": ["Bash(touch a*)"], "model": "sonnet"}
    async with connected(broker.url, hello={**hello, "options": first}) as client:
        host = Host(client)
        await host.turn("[[sim tokens=2]] one", "m-0", LONG_S)
        changes: list[tuple[str, Frame]] = [
            ("set_model", {"model": "opus"}),
            ("set_permission_mode", {"mode": "plan"}),
            ("set_max_thinking_tokens", {"max_thinking_tokens": 2048}),
            ("apply_flag_settings", {"settings": {"permissions": {"deny": ["Bash(touch b*)"]}, "effortLevel": "low"}}),
            ("apply_flag_settings", {"settings": {"outputStyle": "Explanatory"}}),
            ("set_permission_mode", {"mode": "default"}),
        ]
        for number, (subtype, payload) in enumerate(changes):
            reply = await host.control(subtype, f"c-{number}", **payload)
            assert reply["subtype"] == "success", (subtype, reply)
        await killed(broker, client)
        await _has_everything(host, "crash")
        assert contiguous(client.numbered())
    await eventually(lambda: broker.pool()["leased"] == 0, 20)
    async with connected(broker.url, hello=hello) as client:
        assert client.welcome["start"] == "restored"
        await _has_everything(Host(client), "rest")


async def _has_everything(host: Host, after: str) -> None:
    for name in ("a1", "b1"):
        end = await host.turn(f'[[sim tool="Bash:touch {name}" tokens=2]] go', f"{after}-{name}", LONG_S)
        assert not end["is_error"], end
    assert not host.requests("can_use_tool")
    assert "denied" in tool_results(host.client)
    found = init(host.client)
    assert "opus" in found["model"]
    assert (found["permissionMode"], found["output_style"]) == ("default", "Explanatory")
    shown = (await host.control("get_settings", f"s-{after}"))["response"]
    assert shown["applied"]["effort"] == "low"
    assert shown["effective"]["permissions"] == {"allow": ["Bash(touch a*)"], "deny": ["Bash(touch b*)"]}


async def a_reply_survives_a_reconnect(broker: Broker, options: Frame, folder: Path) -> None:
    """The same request of the same instance runs once, whichever connection hears of it."""
    hello: Frame = {"session": {"mode": "open", "id": "replies"}, "client": {"instance": "tab"}}
    requests: list[tuple[str, Any]] = [
        ("apply_flag_settings", {"settings": {"effortLevel": "low"}}),
        ("mcp_set_servers", {"servers": {}}),
        ("get_settings", {}),
        ("get_context_usage", {}),
        ("initialize", {}),
    ]
    async with connected(broker.url, hello={**hello, "options": options}) as client:
        first = [await client.control(subtype, f"c-{subtype}", **payload) for subtype, payload in requests]
        assert [reply["subtype"] for reply in first] == ["success"] * len(requests)
        told = len(states(client))
    async with connected(broker.url, hello=hello) as client:
        again = [await client.control(subtype, f"c-{subtype}", **payload) for subtype, payload in requests]
        assert again == first
        assert states(client) == []
    assert told == 2


async def what_the_cli_refuses_is_taken_back(broker: Broker, options: Frame, folder: Path) -> None:
    """The client is told, nobody else is, and the next process is not asked again."""
    hello: Frame = {"session": {"mode": "open", "id": "refused"}}
    async with connected(broker.url, hello={**hello, "options": options}) as client:
        reply = await client.control("set_permission_mode", mode="acceptEdits")
        assert reply["subtype"] == "success"
        await client.turn("[[sim tokens=2]] one", "m-1", within_s=LONG_S)
        await client.ask("apply_flag_settings", "c-7", settings={"permissions": {"defaultMode": "bypassPermissions"}})
        assert (await client.error())["code"] == "option_not_allowed"
        await client.ask("apply_flag_settings", "c-8", settings={"env": {"A": "b"}})
        assert (await client.error())["code"] == "bad_frame"
        await killed(broker, client)
        end = await client.turn("[[sim tokens=2]] two", "m-2", within_s=LONG_S)
        assert end["subtype"] == "success"
        assert init(client)["permissionMode"] == "acceptEdits"


ALL: tuple[Scene, ...] = (
    options_of_hello_are_bound_late,
    settings_are_changed_live,
    no_secret_is_shown,
    files_are_rewound,
    a_task_is_stopped,
    context_usage_is_told_now_and_then,
    a_restored_process_is_told_everything,
    a_reply_survives_a_reconnect,
    what_the_cli_refuses_is_taken_back,
)


def config(folder: Path) -> Frame:
    """What the broker of these scenes is configured with."""
    return {
        "policy": {"add_dir_roots": [str(folder)], "options": ["add_dirs", "betas"]},
        "session": {"detach_timeout_s": 1},
        "cli": {"env": {"CLAUDE_CODE_ENABLE_SDK_FILE_CHECKPOINTING": "true"}},
    }
