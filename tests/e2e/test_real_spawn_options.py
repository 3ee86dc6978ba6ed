"""Options that are fixed at spawn, on both versions of the real CLI: each has its effect, a profile keeps it warm."""

import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from simulator.messages_api import MessagesApi
from tests.e2e.real import EITHER, options, posts, real_broker
from tests.kit.broker import Broker
from tests.kit.client import Client, Frame, connected
from tests.waiting import eventually

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(180)]

EVERYTHING = ["tools", "fallback_model", "add_dirs", "plugin_dirs", "setting_sources", "max_turns", "max_budget_usd",
              "debug", "verbose", "ide", "betas"]  # fmt: skip
TOKEN = "oauth-canary-of-this-test"


def config(
    api: MessagesApi, *, env: dict[str, str] | None = None, profiles: dict[str, Any] | None = None, **policy: Any
) -> dict[str, Any]:
    """Every spawn option is allowed; without ``profiles`` there are no spares."""
    modes = ["default", "plan", "acceptEdits", "bypassPermissions"]
    return {
        # Their sandbox binds sockets below the session's folder, whose path is too long for one here.
        "cli": {"scrub": "off", "env": {"ANTHROPIC_BASE_URL": api.url, "CLAUDE_CODE_MAX_RETRIES": "2", **(env or {})}},
        "policy": {"options": EVERYTHING, "permission_modes": modes, **policy},
        "pool": {"profiles": {"default": {"warm": 0}, **(profiles or {})}},
    }


def hello(**given: Any) -> dict[str, Any]:
    return {"options": options(TOKEN, **given)}


def init_of(client: Client) -> Frame:
    """The last ``system/init``."""
    return [frame for frame in client.of_type("system") if frame["subtype"] == "init"][-1]


def folder_of(broker: Broker, client: Client) -> Path:
    """The directory of the client's conversation."""
    [found] = broker.state.glob(f"sessions/{client.welcome['cli']['session_id'][:13]}")
    return found


async def resumed(broker: Broker, client: Client) -> dict[str, Any]:
    """End the conversation's process; the hello that takes the conversation up again."""
    await client.send({"type": "broker.end"})
    await client.closed()
    return {"session": {"mode": "resume", "id": client.welcome["session_id"]}}


@pytest.mark.parametrize("version", EITHER)
async def test_tools_and_limits_warm_and_cold(version: str, tmp_path: Path) -> None:
    """The options of a configured profile start warm, others cold; the tools are these alone; max_turns ends typed."""
    profiles = {"reader": {"warm": 1, "tools": ["Read", "Bash"], "max_turns": 3}}
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, config(api, profiles=profiles)) as broker:
            await broker.wait_pool(profile="reader", warm=1)
            async with connected(broker.url, hello=hello(tools=["Bash", "Read"], max_turns=3)) as client:
                assert (client.welcome["start"], client.welcome["miss_reason"]) == ("warm", None)
                assert not (await client.turn("hello [[sim tokens=3]]", within_s=60))["is_error"]
                assert sorted(init_of(client)["tools"]) == ["Bash", "Read"]
                assert "Edit" not in posts(api)[-1]["tools"]
            async with connected(broker.url, hello=hello(tools=["Bash"], max_turns=1)) as client:
                assert (client.welcome["start"], client.welcome["miss_reason"]) == ("cold", "no_profile")
                end = await client.turn('[[sim tool="Bash:echo hi"]]', within_s=60)
                assert (end["type"], end["is_error"], end["error"]) == ("broker.turn_completed", True, "max_turns")
                assert init_of(client)["tools"] == ["Bash"]
                assert not (await client.turn("hello [[sim tokens=3]]", within_s=60))["is_error"], "it counts by turn"


@pytest.mark.parametrize("version", EITHER)
async def test_the_budget_of_a_conversation(version: str, tmp_path: Path) -> None:
    """It ends typed, stays spent, and is no other after a restart: a restored process gets what is left."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, config(api)) as broker:
            async with connected(broker.url, hello=hello(max_budget_usd=0.1)) as client:
                first = await client.turn("hello [[sim tokens=3]]", within_s=60)
                assert not first["is_error"]
                assert 0 < first["cost_usd"] < 0.1
                again = await resumed(broker, client)
            # As it is spent but for one turn, the restored process must see less than the whole.
            left = 0.1 - first["cost_usd"]
            async with connected(broker.url, hello=again) as client:
                assert client.welcome["start"] == "restored"
                argv = _argv(broker)
                [budget] = [float(flag.partition("=")[2]) for flag in argv if flag.startswith("--max-budget-usd=")]
                assert budget == pytest.approx(left)
            async with connected(broker.url, hello=hello(max_budget_usd=1e-6)) as client:
                for _ in range(2):
                    end = await client.turn("hello [[sim tokens=3]]", within_s=60)
                    assert (end["type"], end["is_error"], end["error"]) == ("broker.turn_completed", True, "max_budget")


def _argv(broker: Broker) -> list[str]:
    """The command line of the process that was made ready last."""
    pid = broker.log_events("process.ready")[-1]["pid"]
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


@pytest.mark.full
@pytest.mark.parametrize("version", EITHER)
async def test_the_fallback_model_answers(version: str, tmp_path: Path) -> None:
    """An overloaded model is asked three times, a broken one once; then the same request goes to the other model."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, config(api)) as broker:
            async with connected(broker.url, hello=hello(model="sonnet", fallback_model="haiku")) as client:
                for status, asked in ((529, 3), (500, 1)):
                    seen = len(posts(api))
                    end = await client.turn(f"hello [[sim error={status} error_model=sonnet tokens=3]]", within_s=60)
                    assert not end["is_error"], end
                    models = [request["model"] for request in posts(api)[seen:]]
                    assert ["sonnet" in model for model in models] == [True] * asked + [False]
                    assert "haiku" in models[-1]
                    told = [f for f in client.of_type("system") if f["subtype"] == "model_fallback"][-1]
                    assert "haiku" in told["fallback_model"]
            async with connected(broker.url, hello=hello(model="sonnet")) as client:
                end = await client.turn("hello [[sim error=529 error_model=sonnet tokens=3]]", within_s=60)
                assert end["error"] == "upstream_overloaded"


@pytest.mark.parametrize("version", EITHER)
async def test_the_debug_log(version: str, tmp_path: Path) -> None:
    """In the session's folder, mode 0600, told as frames, over a restart, and without the credential."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, config(api)) as broker:
            async with connected(broker.url, hello=hello(debug="")) as client:
                await client.turn("hello [[sim tokens=3]]", within_s=60)
                file = folder_of(broker, client) / "debug.log"
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
                await _all_told(client, file, 0)
                size = file.stat().st_size
                again = await resumed(broker, client)
            assert len(client.of_type("broker.debug")) > 50
            assert any("[DEBUG]" in frame["line"] for frame in client.of_type("broker.debug"))
            async with connected(broker.url, hello=again) as client:
                await client.turn("again [[sim tokens=3]]", within_s=60)
                await _all_told(client, file, size)
            assert file.stat().st_size > size
            assert TOKEN not in file.read_text()
            async with connected(broker.url, hello=hello(debug={"filter": "mcp", "frames": False})) as client:
                await client.turn("hello [[sim tokens=3]]", within_s=60)
                await eventually(lambda: "[MCP]" in (folder_of(broker, client) / "debug.log").read_text())
                assert client.of_type("broker.debug") == []


async def _all_told(client: Client, file: Path, start: int) -> None:
    """Until the frames hold the last line of the file as it is now, which nothing follows but blank lines."""
    last = [line for line in file.read_bytes()[start:].decode().split("\n") if line][-1]
    while not any(frame["line"] == last for frame in client.of_type("broker.debug")):
        await client.receive()


def plugin(folder: Path) -> Path:
    """A plugin with a command and an agent."""
    for name, text in {
        ".claude-plugin/plugin.json": json.dumps({"name": "acme-tools", "version": "1.2.3", "description": "Tools"}),
        "commands/greet.md": "---\ndescription: Greets\n---\nSay hello to $ARGUMENTS.",
        "agents/digger.md": "---\nname: digger\ndescription: Digs\n---\nYou dig.",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize("version", EITHER)
async def test_a_plugin_brings_a_command_and_an_agent(version: str, tmp_path: Path) -> None:
    """Both are in system/init, and the command runs; a directory outside of the operator's roots is refused."""
    ours = plugin(tmp_path / "plugins" / "acme")
    outside = plugin(tmp_path / "elsewhere")
    with MessagesApi() as api:
        settings = config(api, plugin_roots=[str(tmp_path / "plugins")], slash_commands=True)
        async with real_broker(tmp_path, version, api, settings) as broker:
            async with connected(broker.url, hello=hello(plugin_dirs=[str(ours)])) as client:
                await client.turn("/acme-tools:greet Bob", within_s=60)
                init = init_of(client)
                assert "acme-tools:greet" in init["slash_commands"]
                assert "acme-tools:digger" in init["agents"]
                assert str(ours) in [found["path"] for found in init["plugins"]]
                assert "Say hello to Bob." in json.dumps(posts(api)[-1]["messages"])
            async with connected(broker.url) as client:
                await client.send({"type": "broker.hello", **hello(plugin_dirs=[str(outside)])})
                assert await client.closed() == 4503
                assert "policy.plugin_roots" in client.of_type("broker.error")[0]["message"]


SOURCES = {
    "user": ("home/.claude/CLAUDE.md", "marked by the user"),
    "project": ("work/CLAUDE.md", "marked by the project"),
    "local": ("work/CLAUDE.local.md", "marked locally"),
}


@pytest.mark.full
@pytest.mark.parametrize("version", EITHER)
async def test_setting_sources(version: str, tmp_path: Path) -> None:
    """Without the option nothing is read; with it, what it names, and it still is after a restart."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, config(api)) as broker:
            for sources in (None, ["user"], ["project"], ["local"], ["local", "user", "project"]):
                given = {} if sources is None else {"setting_sources": sources}
                async with connected(broker.url, hello=hello(**given)) as client:
                    await client.turn("hello [[sim tokens=3]]", within_s=60)
                    for name, text in SOURCES.values():
                        (folder_of(broker, client) / name).write_text(text)
                    again = await resumed(broker, client)
                async with connected(broker.url, hello=again) as client:
                    assert client.welcome["start"] == "restored"
                    await client.turn("again [[sim tokens=3]]", within_s=60)
                    await client.send({"type": "broker.end"})
                    await client.closed()
                request = json.dumps(posts(api)[-1])
                read = {source for source, (_, text) in SOURCES.items() if text in request}
                assert read == set(sources or [])


@pytest.mark.full
@pytest.mark.parametrize("version", EITHER)
async def test_files_that_are_read_set_no_mode(version: str, tmp_path: Path) -> None:
    """A permission mode that the agent has written into its settings does not count, where it is forbidden or not."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, config(api)) as broker:
            async with connected(broker.url, hello=hello(setting_sources=["user", "project", "local"])) as client:
                await client.turn("hello [[sim tokens=3]]", within_s=60)
                folder = folder_of(broker, client) / "work" / ".claude"
                folder.mkdir(exist_ok=True)
                (folder / "settings.local.json").write_text('{"permissions":{"defaultMode":"acceptEdits"}}')
                again = await resumed(broker, client)
            async with connected(broker.url, hello=again) as client:
                await client.turn("again [[sim tokens=3]]", within_s=60)
                assert init_of(client)["permissionMode"] == "default"


@pytest.mark.parametrize("version", EITHER)
async def test_bypass_needs_its_own_process(version: str, tmp_path: Path) -> None:
    """As root outside of a sandbox the CLI's refusal is told; inside, the tool runs unasked, and after a crash too."""
    with MessagesApi() as api:
        async with real_broker(tmp_path / "a", version, api, config(api)) as broker, connected(broker.url) as client:
            await client.send({"type": "broker.hello", **hello(permission_mode="bypassPermissions")})
            assert await client.closed() == 4506
            [error] = client.of_type("broker.error")
            assert error["code"] == "bind_failed"
            assert "cannot be used with root/sudo privileges" in error["message"]
        async with real_broker(tmp_path / "b", version, api, config(api, env={"IS_SANDBOX": "1"})) as broker:
            async with connected(broker.url, hello=hello(permission_mode="bypassPermissions", debug="mcp")) as client:
                assert (client.welcome["start"], client.welcome["miss_reason"]) == ("cold", "no_profile")
                await client.turn('[[sim tool="Bash:touch one"]]', within_s=60)
                assert (folder_of(broker, client) / "work/one").exists()
                os.kill(_cli_pid(broker, client), signal.SIGKILL)
                await client.until(lambda f: f["type"] == "broker.state" and f.get("state") == "restored", 60)
                await client.turn('[[sim tool="Bash:touch two"]]', within_s=60)
                assert (folder_of(broker, client) / "work/two").exists()
                assert client.of_type("control_request") == []


def _cli_pid(broker: Broker, client: Client) -> int:
    """The process that serves the client's conversation."""
    own = client.welcome["cli"]["session_id"]
    [pid] = [process.pid for process in broker.descendants() if own in Path(f"/proc/{process.pid}/cmdline").read_text()]
    return pid


@pytest.mark.full
@pytest.mark.parametrize("version", EITHER)
async def test_hook_events_are_told_when_asked_for(version: str, tmp_path: Path) -> None:
    """``verbose`` brings hook_started and hook_response of a user's hook; ``ide`` is taken and changes nothing here."""
    hooks = {"PreToolUse": [{"matcher": "Bash", "hooks": [{"type": "command", "command": "echo from-the-hook"}]}]}
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, config(api)) as broker:
            for verbose in (True, False):
                given = {"setting_sources": ["user"], "verbose": verbose, "ide": True}
                async with connected(broker.url, hello=hello(**given)) as client:
                    await client.turn("hello [[sim tokens=3]]", within_s=60)
                    file = folder_of(broker, client) / "home/.claude/settings.json"
                    file.write_text(json.dumps({"hooks": hooks}))
                    again = await resumed(broker, client)
                async with connected(broker.url, hello=again) as client:
                    end = await client.turn('[[sim tool="Bash:echo hi"]]', within_s=60)
                    assert not end["is_error"]
                    found = {frame["subtype"] for frame in client.of_type("system")}
                    assert ({"hook_started", "hook_response"} <= found) == verbose


@pytest.mark.parametrize("version", EITHER)
async def test_directories_and_betas_keep_the_warm_start(version: str, tmp_path: Path) -> None:
    """Files of an added directory are read unasked, the beta is in the request; a way out of the roots is refused."""
    ours, outside = tmp_path / "roots" / "ours", tmp_path / "outside"
    for folder in (ours, outside):
        folder.mkdir(parents=True)
        (folder / "note").write_text("read from the note")
    (tmp_path / "roots" / "link").symlink_to(outside)
    settings = {"default": {"warm": 1}}
    with MessagesApi() as api:
        config_ = config(api, profiles=settings, add_dir_roots=[str(tmp_path / "roots")])
        async with real_broker(tmp_path, version, api, config_) as broker:
            await broker.wait_spares(1)
            given = {"add_dirs": [str(ours)], "betas": ["context-1m-2025-08-07", "some-beta-2025-01-01"]}
            async with connected(broker.url, hello=hello(**given)) as client:
                assert client.welcome["start"] == "warm"
                read = json.dumps({"file_path": str(ours / "note")}).replace('"', '\\"')
                await client.turn(f'[[sim tool="Read:{read}"]]', within_s=60)
                assert client.of_type("control_request") == []
                assert "read from the note" in json.dumps(posts(api)[-1]["messages"])
                assert set(given["betas"]) <= set(posts(api)[-1]["betas"])
            for path in (outside, tmp_path / "roots" / "link", ours / ".." / ".." / "outside"):
                async with connected(broker.url) as client:
                    await client.send({"type": "broker.hello", **hello(add_dirs=[str(path)])})
                    assert await client.closed() == 4503
                    assert "policy.add_dir_roots" in client.of_type("broker.error")[0]["message"]
