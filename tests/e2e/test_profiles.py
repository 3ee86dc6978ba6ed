"""Launch profiles over a socket: who starts warm, who cold and why, and what happens to options nobody configured."""

import json
import os
import signal
import stat
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.kit.broker import Broker, running_broker
from tests.kit.client import Client, Frame, connected
from tests.kit.ledger import processes_of
from tests.waiting import eventually

EVERYTHING = ["tools", "fallback_model", "plugin_dirs", "setting_sources", "max_turns", "max_budget_usd", "debug",
              "verbose", "ide"]  # fmt: skip
BYPASS = {"permission_mode": "bypassPermissions"}


def config(**profiles: dict[str, Any]) -> dict[str, Any]:
    """A broker of these profiles, whose policy allows every option that is fixed at spawn."""
    modes = ["default", "plan", "acceptEdits", "bypassPermissions"]
    return {
        "pool": {"profiles": {"default": {"warm": 1}, **profiles}},
        "policy": {"options": EVERYTHING, "permission_modes": modes},
        "session": {"detach_timeout_s": 0},
    }


def hello(**options: Any) -> dict[str, Any]:
    return {"options": options}


def argvs(broker: Broker, client: Client) -> list[list[str]]:
    """The command lines of the conversation's processes, in order."""
    own = [process.pid for process in processes_of(broker.ledger_rows("meta"), client.welcome["cli"]["session_id"])]
    rows = {row["pid"]: row["argv"] for row in broker.ledger_rows("meta")}
    return [rows[pid] for pid in own]


def told(welcome: Frame) -> tuple[str, str | None]:
    return welcome["start"], welcome["miss_reason"]


# -- choosing --------------------------------------------------------------------------------------------------------


async def test_options_of_a_configured_profile_start_warm(tmp_path: Path) -> None:
    """In whatever order they are given; the model is changed late, on the process that is there."""
    reader = {"warm": 1, "tools": ["Read", "Bash"], "max_turns": 5}
    async with running_broker(tmp_path, config(reader=reader)) as broker:
        for model in (None, "opus"):
            await broker.wait_pool(profile="reader", warm=1, starting=0)
            options = {"max_turns": 5, "tools": ["Bash", "Read", "Bash"]} | ({"model": model} if model else {})
            async with connected(broker.url, hello=hello(**options)) as client:
                assert told(client.welcome) == ("warm", None)
                await client.turn("hello")
                [init] = [frame for frame in client.of_type("system") if frame["subtype"] == "init"]
                assert sorted(init["tools"]) == ["Bash", "Read"]
                assert ("opus" in init["model"]) == (model == "opus")
                assert {"--tools=Bash,Read", "--max-turns=5", "--model=sonnet"} <= set(argvs(broker, client)[0])
        assert broker.metric("broker_pool_acquires_total", pool="reader", result="warm") == 2
        assert broker.metric("broker_pool_profile_misses_total") == 0


async def test_unknown_options_start_cold_and_are_counted(tmp_path: Path) -> None:
    """Each time cold for this tenant alone, no_profile; by hash, with one log line that an operator can copy."""
    async with running_broker(tmp_path, config()) as broker:
        await broker.wait_spares(1)
        for tools in (["Read", "Bash"], ["Bash", "Read"]):
            async with connected(broker.url, hello=hello(tools=tools)) as client:
                assert told(client.welcome) == ("cold", "no_profile")
                assert (await client.turn("hello"))["type"] == "broker.turn_completed"
                assert broker.pool("other")["leased"] == 1
        async with connected(broker.url, hello=hello(max_turns=3)) as client:
            assert told(client.welcome) == ("cold", "no_profile")
        events = broker.log_events("pool.profile_unknown")
        assert [event["profile"] for event in events] == [
            {"model": "sonnet", "options": {"tools": ["Bash", "Read"]}},
            {"model": "sonnet", "options": {"max_turns": 3}},
        ]
        assert [broker.metric("broker_pool_profile_misses_total", hash=event["hash"]) for event in events] == [2, 1]
        assert broker.metric("broker_pool_acquires_total", pool="other", result="cold") == 3
        await broker.wait_pool(profile="other", leased=0, stopping=0)
        assert broker.pool()["warm"] == 1, "the spares were left alone"


async def test_every_start_is_explained(tmp_path: Path) -> None:
    """Warm, empty, without spares, unknown, restored, attached: the reason is always the right one."""
    settings = config(bare={"warm": 0, "max_turns": 9})
    settings["pool"]["spawn_concurrency"] = 1
    async with running_broker(tmp_path, settings) as broker, AsyncExitStack() as stack:

        async def start(**options: Any) -> Client:
            return await stack.enter_async_context(connected(broker.url, hello=hello(**options)))

        async def waiting() -> Client:
            client = await stack.enter_async_context(connected(broker.url))
            await client.send({"type": "broker.hello"})
            return client

        await broker.wait_spares(1)
        clients = [await waiting() for _ in range(3)]
        starts = [told(await client.until_type("broker.welcome")) for client in clients]
        assert sorted(starts, key=str) == [("cold", "pool_empty"), ("cold", "pool_empty"), ("warm", None)]
        assert told((await start(max_turns=9)).welcome) == ("cold", "pool_disabled")
        unknown = await start(max_turns=8)
        assert told(unknown.welcome) == ("cold", "no_profile")
        await unknown.turn("hello")
        ref = {"session": {"mode": "resume", "id": unknown.welcome["session_id"]}}
        async with connected(broker.url, hello=ref) as second:
            assert told(second.welcome) == ("attached", None)
        await unknown.send({"type": "broker.end"})
        await unknown.closed()
        async with connected(broker.url, hello=ref) as third:
            assert told(third.welcome) == ("restored", None)
        assert len(broker.log_events("pool.profile_unknown")) == 1
        assert broker.metric("broker_pool_profile_misses_total") == 1, "a restored process is no miss"


async def test_an_unknown_profile_finds_room(tmp_path: Path) -> None:
    """In a pool full of spares one of them gives way; in one full of tenants it waits in line, and is told where."""
    settings = config(default={"warm": 2})
    settings["pool"]["max_processes"] = 2
    async with running_broker(tmp_path, settings) as broker:
        await broker.wait_spares(2)
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(connected(broker.url, hello=hello(max_turns=8)))
            assert told(first.welcome) == ("cold", "no_profile")
            second = await stack.enter_async_context(connected(broker.url, hello={}))
            assert second.welcome["start"] == "warm"
            third = await stack.enter_async_context(connected(broker.url))
            await third.send({"type": "broker.hello", "options": {"max_turns": 7}})
            assert (await third.until_type("broker.waiting"))["position"] == 1
            await second.send({"type": "broker.end"})
            assert told(await third.until_type("broker.welcome")) == ("cold", "no_profile")


# -- what a session keeps --------------------------------------------------------------------------------------------


async def test_a_restored_process_is_started_alike(tmp_path: Path) -> None:
    """After a crash and after broker.end: the same flags, and of the budget what is left."""
    async with running_broker(tmp_path, config()) as broker:
        options = {"tools": ["Bash"], "max_budget_usd": 5.0, "fallback_model": "haiku"}
        async with connected(broker.url, hello=hello(**options)) as client:
            first = await client.turn("hello")
            assert first["cost_usd"] > 0
            pid = processes_of(broker.ledger_rows("meta"), client.welcome["cli"]["session_id"])[-1].pid
            os.kill(pid, signal.SIGKILL)
            await client.until(lambda f: f["type"] == "broker.state" and f.get("state") == "restored")
            second = await client.turn("again")
            assert second["type"] == "broker.turn_completed"
            await client.send({"type": "broker.end"})
            await client.closed()
        ref = {"session": {"mode": "resume", "id": client.welcome["session_id"]}}
        async with connected(broker.url, hello=ref) as client:
            assert client.welcome["start"] == "restored"
            lines = argvs(broker, client)
        assert len(lines) == 3
        for line in lines:
            assert {"--tools=Bash", "--fallback-model=haiku", "--setting-sources="} <= set(line)
        budgets = [float(flag.partition("=")[2]) for line in lines for flag in line if "--max-budget-usd" in flag]
        spent = [0, first["cost_usd"], first["cost_usd"] + second["cost_usd"]]
        assert budgets == pytest.approx([5.0 - usd for usd in spent])


async def test_other_options_of_a_bound_session_are_named(tmp_path: Path) -> None:
    """Who attaches with others is told which are not so; equal ones in another order are no others."""
    async with running_broker(tmp_path, config()) as broker:
        options = {"tools": ["Bash", "Read"], "max_turns": 5}
        async with connected(broker.url, hello=hello(**options)) as client:
            await client.turn("hello")
            ref = {"session": {"mode": "resume", "id": client.welcome["session_id"]}}
            for given, ignored in (
                ({"tools": ["Read", "Bash"], "max_turns": 5}, []),
                ({"tools": [], "max_turns": 6, "verbose": True, "ide": False}, ["tools", "max_turns", "verbose"]),
                (BYPASS, ["permission_mode"]),
            ):
                async with connected(broker.url, hello=ref | hello(**given)) as other:
                    assert other.welcome["options_ignored"] == ignored
                    assert (await other.turn("hello"))["type"] == "broker.turn_completed"
        assert len(argvs(broker, client)) == 1


# -- what does not start ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="the CLI refuses this to root alone; tests/run is root in its namespace")
async def test_a_profile_that_does_not_start_says_why(tmp_path: Path) -> None:
    """The CLI's own words, no path, at once; not tried again for a while; everybody else goes on."""
    async with running_broker(tmp_path, config()) as broker:
        await broker.wait_spares(1)
        for _ in range(7):  # more than open a configured profile's breaker
            async with connected(broker.url) as client:
                await client.send({"type": "broker.hello", "options": BYPASS})
                assert await client.closed() == 4506
                [error] = client.of_type("broker.error")
            assert error["code"] == "bind_failed"
            assert "cannot be used with root/sudo privileges" in error["message"]
            assert str(tmp_path) not in error["message"]
            assert not error["retryable"]
        await eventually(lambda: broker.log_events("process.start_failed"))
        assert len(broker.log_events("process.start_failed")) <= 3, "held back in between"
        assert broker.metric("broker_pool_acquires_total", pool="other", result="rejected") == 7
        assert broker.log_events("pool.breaker_open") == []
        async with connected(broker.url, hello={}) as client:
            assert client.welcome["start"] == "warm"
        async with connected(broker.url, hello=hello(max_turns=2)) as client:
            assert told(client.welcome) == ("cold", "no_profile")


async def test_bypass_is_for_those_who_ask_for_it(tmp_path: Path) -> None:
    """A configured profile that may bypass serves the mode warm: the tool runs unasked; nobody else gets it."""
    settings = config(free={"warm": 1, "bypass": True}) | {"cli": {"env": {"IS_SANDBOX": "1"}}}
    async with running_broker(tmp_path, settings) as broker:
        await broker.wait_pool(profile="free", warm=1)
        async with connected(broker.url, hello=hello(**BYPASS)) as client:
            assert told(client.welcome) == ("warm", None)
            await client.turn('[[sim tool="Bash:touch made"]]')
            assert client.of_type("control_request") == []
            assert "--allow-dangerously-skip-permissions" in argvs(broker, client)[0]
        async with connected(broker.url, hello={}) as client:
            assert "--allow-dangerously-skip-permissions" not in argvs(broker, client)[0]
            answer = await client.control("set_permission_mode", mode="bypassPermissions")
            assert answer["subtype"] == "error"


async def test_spares_that_die_at_once_are_not_replaced_at_once(tmp_path: Path) -> None:
    """Each of them waits longer for the next one, while a tenant is served as ever."""
    async with running_broker(tmp_path, config()) as broker:
        began = time.monotonic()
        for _ in range(4):
            await broker.wait_pool(warm=1)
            os.kill(broker.log_events("process.ready")[-1]["pid"], signal.SIGKILL)
            await broker.wait_pool(warm=0)
        async with connected(broker.url, hello={}) as client:
            assert told(client.welcome) == ("cold", "pool_empty")
        assert time.monotonic() - began > 0.25 + 0.5 + 1.0
        assert len(broker.log_events("pool.spare_died")) == 4


# -- the debug log ---------------------------------------------------------------------------------------------------


def debug_logs(broker: Broker) -> list[Path]:
    return sorted(broker.state.glob("sessions/*/debug.log"))


async def test_the_debug_log_is_the_sessions_own_and_is_told(tmp_path: Path) -> None:
    """A file of mode 0600 in the session's folder; the same lines as numbered frames, each once, over a restart."""
    async with running_broker(tmp_path, config()) as broker:
        async with connected(broker.url, hello=hello(debug="")) as client:
            await client.turn("hello")
            [file] = debug_logs(broker)
            assert stat.S_IMODE(file.stat().st_mode) == 0o600

            async def all_told() -> None:
                wanted = [line for line in file.read_text().split("\n") if line]
                while [frame["line"] for frame in client.of_type("broker.debug")] != wanted:
                    await client.receive()

            await all_told()
            pid = processes_of(broker.ledger_rows("meta"), client.welcome["cli"]["session_id"])[-1].pid
            os.kill(pid, signal.SIGKILL)
            await client.until(lambda f: f["type"] == "broker.state" and f.get("state") == "restored")
            await client.turn("again")
            await all_told()
            numbers = [frame["seq"] for frame in client.numbered()]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


async def test_debug_frames_are_for_those_who_want_them(tmp_path: Path) -> None:
    """``frames: false`` writes the file alone, until somebody asks for the frames of what is logged then."""
    profile = {"warm": 1, "debug": "mcp,startup"}
    async with running_broker(tmp_path, config(told=profile)) as broker:
        await broker.wait_pool(profile="told", warm=1)
        options = {"debug": {"filter": "startup,mcp", "frames": False}}
        async with connected(broker.url, hello=hello(**options)) as client:
            assert told(client.welcome) == ("warm", None)
            await client.turn("hello")
            text = debug_logs(broker)[0].read_text()
            assert "[MCP]" in text
            assert "[init]" not in text
            assert client.of_type("broker.debug") == []
            ref = {"session": {"mode": "resume", "id": client.welcome["session_id"]}}
            async with connected(broker.url, hello=ref | hello(debug="startup,mcp")) as other:
                assert other.welcome["options_ignored"] == []
                assert "[MCP]" in (await other.until_type("broker.debug"))["line"]
        await eventually(lambda: len(debug_logs(broker)) == 2, 10)


async def test_no_secret_is_logged_of_a_profile(tmp_path: Path) -> None:
    """What the log tells of a hello's options has no credential in it."""
    options = {"credentials": {"oauth_token": "canary-of-a-token"}, "max_turns": 3}
    async with running_broker(tmp_path, config()) as broker:
        async with connected(broker.url, hello=hello(**options)) as client:
            await client.turn("hello")
        assert "canary-of-a-token" not in broker.log_text()
        flags = [row["argv"] for row in broker.ledger_rows("meta")]
        assert "canary-of-a-token" not in json.dumps(flags)
