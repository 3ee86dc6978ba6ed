"""kill -9 of the real CLI: one terminal frame, the conversation goes on, the pool refills, no zombie."""

import os
import signal
import time
from pathlib import Path

import pytest

from simulator.messages_api import MessagesApi
from tests.e2e.real import EITHER, options, posts, real_broker
from tests.kit.broker import Broker
from tests.kit.client import Client, connected
from tests.processes import Process, read_process
from tests.waiting import eventually

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(180)]


def cli_pid(broker: Broker, client: Client) -> int:
    """The process of this client's conversation: its working directory names it."""
    session = client.welcome["cli"]["session_id"][:13]
    return min(process.pid for process in broker.descendants() if session in _folder(process.pid))


def _folder(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


@pytest.mark.parametrize("version", EITHER)
@pytest.mark.parametrize("moment", ["first delta of turn 1", "middle of turn 2", "after a result"])
async def test_a_killed_cli_costs_one_turn_at_most(version: str, moment: str, tmp_path: Path) -> None:
    """Exactly one terminal frame; the next message works; what the conversation knew is kept or told as lost."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker:
            async with connected(broker.url, hello={"options": options("t")}) as client:
                if moment != "first delta of turn 1":
                    await client.turn("[[sim tokens=20 itl_ms=25]] remember-me", within_s=60)
                pid = cli_pid(broker, client)
                if moment != "after a result":
                    await client.say("[[sim tokens=200 itl_ms=20]] doomed", "m-doomed")
                    await client.until(lambda f: f["type"] == "stream_event" and "delta" in f["event"], 60)
                os.kill(pid, signal.SIGKILL)
                killed = time.monotonic()
                if moment != "after a result":
                    end = await client.terminal("m-doomed")
                    took = time.monotonic() - killed
                    print(f"{version} {moment}: terminal frame after {took * 1e3:.0f} ms")
                    assert (end["type"], end["reason"]) == ("broker.turn_failed", "cli_exited")
                    assert (end["applied"], end["retryable"]) == ("yes", False)
                    assert took < 5
                await eventually(lambda: read_process(pid) is None)  # a dying process still takes a line
                after = await client.turn("[[sim tokens=3]] and now", "m-after", within_s=60)
                assert after["type"] == "broker.turn_completed", after
                assert not after["is_error"], after
                terminals = [f["id"] for f in client.frames if f["type"].startswith("broker.turn_")]
                assert len(terminals) == len(set(terminals))
                restored = [f for f in client.frames if f["type"] == "broker.state" and f.get("state") == "restored"]
                assert len(restored) == 1
                if moment == "first delta of turn 1":
                    return
                assert restored[0]["reason"] == "resumed"
                assert "remember-me" in str(posts(api)[-1]["messages"])
            await broker.wait_spares(2)


@pytest.mark.parametrize("version", EITHER)
async def test_a_kill_in_the_middle_of_a_tool(version: str, tmp_path: Path) -> None:
    """The turn fails once, what the tool had started is gone, and the conversation goes on with its context."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api) as broker:
            hello = {"options": options("t", allowed_tools=["Bash"])}
            async with connected(broker.url, hello=hello) as client:
                await client.turn("remember-me", within_s=60)
                await client.say('doomed [[sim tool="Bash:touch began && sleep 300"]]', "m-doomed")
                await eventually(lambda: list(broker.state.glob("sessions/*/work/began")), 60)
                await eventually(lambda: _sleepers(broker), 20)  # it follows what the file tells of
                sleeper = _sleepers(broker)
                os.kill(cli_pid(broker, client), signal.SIGKILL)
                end = await client.terminal("m-doomed")
                assert (end["reason"], end["applied"], end["retryable"]) == ("cli_exited", "yes", False)
                assert sleeper
                await eventually(lambda: not any(read_process(process.pid) for process in sleeper))
                asked = len(posts(api))
                after = await client.turn("and now", "m-after", within_s=60)
                assert not after["is_error"], after
                assert len(posts(api)) == asked + 1, "the tool's turn was not run again"
                assert "remember-me" in str(posts(api)[-1]["messages"])
                restored = [f for f in client.frames if f["type"] == "broker.state" and f.get("state") == "restored"]
                assert [frame["reason"] for frame in restored] == ["resumed"]


@pytest.mark.parametrize("version", EITHER)
async def test_a_transcript_that_cannot_be_resumed_is_told(version: str, tmp_path: Path) -> None:
    """Gone from the disk while it slept: ``resume_lost``, and the conversation starts clean under the same id."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, {"session": {"detach_timeout_s": 0}}) as broker:
            place = {"session": {"id": "kept"}, "options": options("t")}
            async with connected(broker.url, hello=place) as client:
                await client.turn("forget-me", within_s=60)
                own = client.welcome["cli"]["session_id"]
            await broker.wait_pool(60, leased=0, stopping=0)
            for transcript in broker.state.glob(f"sessions/*/home/.claude/projects/*/{own}.jsonl"):
                transcript.unlink()
            async with connected(broker.url, hello={**place, "session": {"mode": "resume", "id": "kept"}}) as client:
                after = await client.turn("and now", "m-after", within_s=60)
                assert not after["is_error"], after
                restored = [f for f in client.frames if f["type"] == "broker.state" and f.get("state") == "restored"]
                assert [frame["reason"] for frame in restored] == ["resume_lost"]
                assert "forget-me" not in str(posts(api)[-1]["messages"])


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def _sleepers(broker: Broker) -> list[Process]:
    """What the tool has started and waits for."""
    return [process for process in broker.descendants() if _command(process.pid)[:1] == ["sleep"]]
