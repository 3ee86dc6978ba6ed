"""A broker without a file descriptor left: who is there is served, who comes waits, and all is well afterwards."""

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidMessage

from broker.sockets.admin import ADMIN_SOCKETS
from tests.e2e.processes import killed
from tests.kit.broker import Broker, running_broker
from tests.kit.client import connected
from tests.soak import LONG_S, size
from tests.waiting import eventually

DESCRIPTORS = 256
FLOOD = 400
DEADLINE_S = 5.0
HELD_S = float(size(1, 3))


@contextmanager
def flooded(port: int) -> Iterator[None]:
    """Connections that say nothing, more than the broker has descriptors."""
    with ExitStack() as stack:
        for _ in range(FLOOD):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        yield


def open_count(broker: Broker) -> int:
    """Descriptors of the broker."""
    return len(os.listdir(f"/proc/{broker.pid}/fd"))


@pytest.mark.timeout(LONG_S)
@pytest.mark.parametrize("loop", [pytest.param("asyncio", marks=pytest.mark.full), "uvloop"])
async def test_a_flood_of_connections_takes_nothing_from_who_is_there(loop: str, tmp_path: Path) -> None:
    """No crash: turns go on, a killed CLI comes back, a process starts; refusals are counted, and told in one line."""
    config: dict[str, Any] = {"server": {"loop": loop, "hello_timeout_s": 60}, "session": {"detach_timeout_s": 0}}
    config["limits"] = {"messages_per_second": 5000, "messages_burst": 5000}
    prefix = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"]
    async with running_broker(tmp_path, config, prefix=prefix) as broker:
        broker.expects("connection.no_descriptor")
        await broker.wait_spares(2)
        before = open_count(broker)
        for _ in range(size(1, 10)):
            lines, turns = len(quiet(broker)), 0
            async with connected(broker.url, hello={}) as client:
                await client.turn("hello")
                refused = broker.metric("broker_limits_refused_total", limit="descriptors")
                with flooded(broker.port):
                    await eventually(lambda: open_count(broker) > DESCRIPTORS // 2, 10)
                    began = time.monotonic()
                    while time.monotonic() - began < HELD_S:
                        assert (await client.turn("[[sim tokens=20 itl_ms=5]] word"))["type"] == "broker.turn_completed"
                        turns += 1
                    await killed(broker, client)
                    await client.until(lambda frame: frame.get("state") == "restored")
                    assert (await client.turn("hello"))["type"] == "broker.turn_completed"
                    took = time.monotonic() - began
                released = time.monotonic()
                late = await served(broker)
                assert late < DEADLINE_S
            said = len(quiet(broker)) - lines
            turned_away = broker.metric("broker_limits_refused_total", limit="descriptors") - refused
            print(f"{loop}: {turns} turns in {took:.1f} s, {turned_away:g} sockets refused, {said} log lines, "
                  f"back after {late:.2f} s of {time.monotonic() - released:.2f} s")  # fmt: skip
            assert turned_away > FLOOD - DESCRIPTORS
            assert said < took + 5
        assert not broker.log_events("process.start_failed")
        await broker.wait_spares(2)
        await eventually(lambda: open_count(broker) <= before + 2, 10)


@pytest.mark.parametrize("loop", [pytest.param("asyncio", marks=pytest.mark.full), "uvloop"])
async def test_a_flood_of_the_admin_port_takes_nothing_either(loop: str, tmp_path: Path) -> None:
    """A killed CLI comes back, and the metrics are there when the flood is over."""
    prefix = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"]
    async with running_broker(tmp_path, {"server": {"loop": loop}}, prefix=prefix) as broker:
        broker.expects("connection.no_descriptor")
        await broker.wait_spares(2)
        before = open_count(broker)
        async with connected(broker.url, hello={}) as client:
            await client.turn("hello")
            with flooded(broker.admin):
                await eventually(lambda: bool(broker.log_events("connection.no_descriptor")))
                await killed(broker, client)
                await client.until(lambda frame: frame.get("state") == "restored")
                assert (await client.turn("hello"))["type"] == "broker.turn_completed"
                assert open_count(broker) <= before + ADMIN_SOCKETS + 10
            await eventually(lambda: open_count(broker) <= before + 4, 10)
        assert broker.metric("broker_limits_refused_total", limit="descriptors") > 0
        assert broker.log_events("connection.no_descriptor")[0]["port"] == "admin"
        assert not broker.log_events("process.start_failed")


async def test_metrics_in_a_flood_of_the_public_port(tmp_path: Path) -> None:
    """Probes are answered though tenants' sockets have all descriptors that they may have."""
    prefix = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"]
    config = {"server": {"hello_timeout_s": 60}}
    async with running_broker(tmp_path, config, prefix=prefix) as broker:
        broker.expects("connection.no_descriptor")
        await broker.wait_spares(2)
        with flooded(broker.port):
            await eventually(lambda: bool(broker.log_events("connection.no_descriptor")))
            assert broker.metric("broker_limits_refused_total", limit="descriptors") > 0
            assert broker.get("/livez", admin=True)[0] == 200


async def served(broker: Broker) -> float:
    """Seconds until one more client has had a turn; a broker that has just been flooded may refuse it at first."""
    began = time.monotonic()
    while True:
        try:
            async with connected(broker.url, hello={}) as late:
                assert (await late.turn("hello"))["type"] == "broker.turn_completed"
                return time.monotonic() - began
        except (OSError, InvalidMessage, ConnectionClosed):
            assert time.monotonic() - began < DEADLINE_S
            await asyncio.sleep(0)


def quiet(broker: Broker) -> list[str]:
    """The lines of the log that tell of no turn, session or process that was asked for."""
    usual = ("turn.ended", "connection.attached", "connection.closed", "process.ready", "process.gone")
    return [line for line in broker.log_text().splitlines() if not any(f'"{event}"' in line for event in usual)]
