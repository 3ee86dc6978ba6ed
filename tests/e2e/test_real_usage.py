"""What turns of the real CLI cost, over resumes, kills and forks: each its own, and the conversation their sum."""

import os
import signal
from pathlib import Path

import pytest

from simulator.messages_api import MessagesApi
from tests.e2e.real import EITHER, options, real_broker
from tests.e2e.test_real_crash import cli_pid
from tests.kit.client import Client, Frame, connected
from tests.processes import read_process
from tests.waiting import eventually

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(240)]

SESSION = {"mode": "open", "id": "paid"}
TEXT = "hello [[sim tokens=20]]"


async def turn(client: Client, message_id: str) -> Frame:
    end = await client.turn(TEXT, message_id, 60)
    assert (end["type"], end["is_error"]) == ("broker.turn_completed", False)
    return end


def check(ends: list[Frame], total: Frame) -> None:
    """Each turn costs about what the first did: nothing is counted twice after a restart, and nothing is forgotten."""
    first = ends[0]["cost_usd"]
    assert first > 0
    assert all(0.5 * first < end["cost_usd"] < 2 * first for end in ends), [end["cost_usd"] for end in ends]
    assert total["turns"] == len(ends)
    assert total["cost_usd"] == pytest.approx(sum(end["cost_usd"] for end in ends), abs=1e-6)
    assert total["output_tokens"] == sum(end["usage"]["output_tokens"] for end in ends)


@pytest.mark.parametrize("version", EITHER)
async def test_the_costs_of_a_conversation_over_its_processes(version: str, tmp_path: Path) -> None:
    """Two turns, an orderly stop and a resume, a kill between turns, a kill within one, and a branch."""
    config = {"session": {"detach_timeout_s": 1}, "replay": {"seconds": 600}}
    ends: list[Frame] = []
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, config) as broker:
            hello = {"session": SESSION, "options": options("t"), "client": {"instance": "tab"}}
            async with connected(broker.url, hello=hello) as client:
                ends += [await turn(client, "m-1"), await turn(client, "m-2")]
                assert ends[-1]["total"]["turns"] == 2
                pid = cli_pid(broker, client)
            await eventually(lambda: read_process(pid) is None, 20)  # hibernated: an orderly end

            async with connected(broker.url, hello={**hello, "session": {**SESSION, "last_seq": 0}}) as client:
                assert client.welcome["start"] == "restored"
                states = {f["state"]: f for f in await _states(client, 2)}
                assert set(states) == {"hibernated", "restored"}
                assert states["hibernated"]["total"] == states["restored"]["total"] == ends[-1]["total"]
                ends += [await turn(client, "m-3"), await turn(client, "m-4")]
                check(ends, ends[-1]["total"])

                os.kill(cli_pid(broker, client), signal.SIGKILL)
                await client.until(lambda f: f["type"] == "broker.state" and f.get("state") == "restored", 60)
                ends.append(await turn(client, "m-5"))
                check(ends, ends[-1]["total"])

                await client.say("lost [[sim tokens=200 itl_ms=20]]", "m-lost")
                await client.until(lambda f: f["type"] == "stream_event" and "delta" in f["event"], 60)
                os.kill(cli_pid(broker, client), signal.SIGKILL)
                assert (await client.terminal("m-lost"))["type"] == "broker.turn_failed"
                ends.append(await turn(client, "m-6"))
                check(ends, ends[-1]["total"])

            branch = {"session": {"mode": "fork", "id": SESSION["id"]}, "options": options("t")}
            async with connected(broker.url, hello=branch) as client:
                own = await turn(client, "m-1")
                assert 0.5 * ends[0]["cost_usd"] < own["cost_usd"] < 2 * ends[0]["cost_usd"]
            async with connected(broker.url, hello=hello) as client:
                await client.send({"type": "broker.end"})
                ended = await client.until(lambda f: f["type"] == "broker.state" and f.get("state") == "ended")
                assert ended["total"] == ends[-1]["total"]


async def _states(client: Client, count: int) -> list[Frame]:
    """The first changes of the session's life that come."""
    while len([f for f in client.frames if f["type"] == "broker.state" and "state" in f]) < count:
        await client.receive()
    return [f for f in client.frames if f["type"] == "broker.state" and "state" in f]
