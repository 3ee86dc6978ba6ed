"""A CLI that reads nothing: what is meant for it is bounded, and whoever waits is told in time."""

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.e2e.beside import forget_peak, neighbour, no_bug, peak_mb
from tests.e2e.processes import cli_pid
from tests.kit.broker import Broker, started_broker
from tests.kit.client import Client, connected, terminals
from tests.oracle import Oracle
from tests.processes import read_process
from tests.soak import LONG_S, size
from tests.waiting import eventually

MEBIBYTE = 2**20
FIRST_TOKEN_S = 2.5
PART = "x" * (5 * MEBIBYTE)
ROUNDS = size(1, 10)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker that waits a few seconds for a first token."""
    config = {
        "turn": {"first_token_timeout_s": FIRST_TOKEN_S},
        "stop": {"eof_grace_s": 0.5, "term_grace_s": 0.5},
        "cli": {"env": {"SIMULATOR_LEDGER": ""}},
        "limits": {"messages_per_second": 1000, "messages_burst": 1000},
    }
    with started_broker(tmp_path_factory.mktemp("deaf"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


@asynccontextmanager
async def deaf(broker: Broker) -> AsyncIterator[tuple[Client, int]]:
    """A conversation whose CLI has stopped; its process too."""
    async with connected(broker.url, hello={}) as client:
        assert (await client.turn("hello"))["is_error"] is False
        await client.until(lambda frame: frame.get("state") == "idle")
        pid = cli_pid(broker, client)
        os.kill(pid, signal.SIGSTOP)
        yield client, pid
        await eventually(lambda: read_process(pid) is None, 20)


async def fed(client: Client) -> None:
    """Ten mebibytes for the CLI: a message, and one that is handed on while its turn runs."""
    await client.say(PART, "m-1")
    await client.send({"type": "user_message", "id": "m-2", "content": PART, "steer": True})
    await client.until(lambda frame: frame["type"] == "broker.accepted" and frame["id"] == "m-2")


@pytest.mark.timeout(LONG_S)
async def test_what_it_does_not_read_is_kept_within_bounds(broker: Broker) -> None:
    """The turn ends as first_token_timeout, the next message has a new process, and memory saw a few copies."""
    grown = 0.0
    for _ in range(ROUNDS):
        async with neighbour(broker), deaf(broker) as (client, _):
            resident = forget_peak(broker)
            await fed(client)
            end = await client.terminal("m-1")
            assert (end["type"], end["reason"], end["applied"]) == (
                "broker.turn_failed", "first_token_timeout", "unknown",
            )  # fmt: skip
            assert (await client.terminal("m-2"))["reason"] == "first_token_timeout"
            grown = peak_mb(broker) - resident
            assert (await client.turn("hello", "m-3"))["type"] == "broker.turn_completed"
    print(f"10 MiB for a CLI that reads nothing: +{grown:.1f} MiB")
    assert grown < 80
    assert no_bug(broker)


async def test_an_interrupt_is_answered_and_ends_the_turn(broker: Broker) -> None:
    """The answer does not wait for the CLI, and the turn ends by the next watchdog at the latest."""
    async with deaf(broker) as (client, _):
        await fed(client)
        assert (await client.control("interrupt"))["subtype"] == "success"
        assert (await client.terminal("m-1"))["reason"] in ("interrupted", "first_token_timeout")
        assert (await client.turn("hello", "m-3"))["type"] == "broker.turn_completed"
    assert no_bug(broker)


async def test_an_end_is_carried_out(broker: Broker) -> None:
    """broker.end closes with 1000, and the process is killed at the end of its ladder."""
    async with deaf(broker) as (client, pid):
        await fed(client)
        await client.send({"type": "broker.end"})
        assert await client.closed() == 1000
        assert [end["reason"] for end in client.of_type("broker.turn_failed")] == ["cancelled", "cancelled"]
        await eventually(lambda: read_process(pid) is None, 10)
    assert no_bug(broker)


async def test_more_than_its_share_ends_it(broker: Broker) -> None:
    """Above 32 MiB unread the turn fails with cli_protocol at once, and the process goes."""
    async with deaf(broker) as (client, _):
        await client.say(PART, "m-0")
        for number in range(1, 8):  # one after the other: so much at once would fall off the log
            await client.send({"type": "user_message", "id": f"m-{number}", "content": PART, "steer": True})
            await client.sync()
            if terminals(client.frames, "m-0"):
                break
        end = await client.terminal("m-0")
        assert (end["reason"], end["detail"]) == ("cli_protocol", "the process does not read its stdin")
        assert 5 <= number <= 7
        for earlier in range(1, number):
            assert (await client.terminal(f"m-{earlier}"))["reason"] == "cli_protocol"
        await client.sync()
        assert (await client.turn("hello", "again"))["type"] == "broker.turn_completed"
    assert no_bug(broker)
