"""Figures of turns and of whole conversations, over the processes of the simulated CLI."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.broker import Broker, started_broker
from tests.kit.client import Client, Frame, connected
from tests.kit.ledger import processes_of
from tests.oracle import Oracle
from tests.waiting import eventually

COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker that stops the process of an abandoned session soon."""
    config = {"session": {"detach_timeout_s": 0.5}, "pool": {"profiles": {"default": {"warm": 2}}}}
    with started_broker(tmp_path_factory.mktemp("usage"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


def pids(broker: Broker, session: str) -> list[int]:
    """The living processes of a conversation."""
    alive = {process.pid for process in broker.descendants()}
    return [process.pid for process in processes_of(broker.ledger_rows(), session) if process.pid in alive]


def summed(ends: list[Frame]) -> dict[str, Any]:
    """What the conversation has used, from the terminals of its turns."""
    counts = {name: sum(end["usage"].get(name, 0) for end in ends) for name in COUNTS}
    return {"turns": len(ends), **counts, "cost_usd": pytest.approx(sum(end["cost_usd"] for end in ends), abs=1e-6)}


async def life(client: Client, state: str) -> Frame:
    """The next time that the session is told to be in ``state``."""
    return await client.until(lambda frame: frame["type"] == "broker.state" and frame.get("state") == state)


async def test_the_totals_are_the_sum_of_the_turns(broker: Broker) -> None:
    """Within a process, over an orderly stop, and over a kill; ``broker.state`` tells them at each change."""
    hello = {"session": {"mode": "open", "id": "sum"}}
    ends = []
    async with connected(broker.url, hello=hello) as client:
        for number in (1, 2):
            ends.append(await client.turn(f"[[sim tokens={10 * number}]] hello", f"m-{number}"))
            assert ends[-1]["total"] == summed(ends)
        session = client.welcome["cli"]["session_id"]
        assert ends[1]["usage"]["output_tokens"] > ends[0]["usage"]["output_tokens"]
    await eventually(lambda: len(pids(broker, session)) == 0, 10)
    async with connected(broker.url, hello={"session": {**hello["session"], "last_seq": 0}}) as client:
        assert client.welcome["start"] == "restored"
        for state in ("hibernated", "restored"):
            assert (await life(client, state))["total"] == ends[-1]["total"]
        ends.append(await client.turn("[[sim tokens=10]] again", "m-3"))
        assert ends[-1]["total"] == summed(ends)
        assert ends[-1]["cost_usd"] < 2 * ends[0]["cost_usd"], "the total of the process before is not its own"
        [pid] = pids(broker, session)
        os.kill(pid, signal.SIGKILL)
        assert (await life(client, "restored"))["total"] == ends[-1]["total"]
        ends.append(await client.turn("[[sim tokens=10]] and again", "m-4"))
        assert ends[-1]["total"] == summed(ends)
        await client.send({"type": "broker.end"})
        assert (await life(client, "ended"))["total"] == ends[-1]["total"]
    assert len(processes_of(broker.ledger_rows(), session)) == 3


async def test_a_turn_without_a_result_adds_nothing(broker: Broker) -> None:
    """Killed in mid-turn: what it had spent is not known; the next turn costs its own."""
    async with connected(broker.url, hello={"session": {"mode": "open", "id": "lost"}}) as client:
        first = await client.turn("[[sim tokens=10]] hello", "m-1")
        await client.say("[[sim tokens=200 itl_ms=20]] lost", "m-2")
        await client.until_type("stream_event")
        [pid] = pids(broker, client.welcome["cli"]["session_id"])
        os.kill(pid, signal.SIGKILL)
        assert (await client.terminal("m-2"))["type"] == "broker.turn_failed"
        third = await client.turn("[[sim tokens=10]] hello", "m-3")
        assert third["total"] == summed([first, third])
