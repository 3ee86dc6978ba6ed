"""Where a process comes from: warm, cold and why, waited for, refused; and that a used one is never leased again."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.kit.broker import Broker, running_broker
from tests.kit.client import Client, Frame, connected
from tests.kit.ledger import Cli, cli, said_to_cli
from tests.processes import read_process
from tests.soak import size

TENANTS = size(60, 200)
POOL = 4
AT_ONCE = 8


def pool(**fields: Any) -> dict[str, Any]:
    """A configuration of the pool; ``warm`` is the profile's."""
    warm = fields.pop("warm", 1)
    return {"pool": {**fields, "profiles": {"default": {"warm": warm}}}, "session": {"detach_timeout_s": 0}}


@asynccontextmanager
async def waiting(broker: Broker) -> AsyncIterator[Client]:
    """A client that has said hello and heard nothing yet."""
    async with connected(broker.url) as client:
        await client.send({"type": "broker.hello"})
        yield client


async def position(client: Client, number: int) -> Frame:
    """Until the client is told that it is number ``number``, which it is at once and not at some later look."""
    return await client.until(lambda frame: frame["type"] == "broker.waiting" and frame["position"] == number, 2)


async def turned_away(client: Client) -> tuple[int, Frame]:
    """The close code, and the error before it."""
    code = await client.closed()
    return code, client.frames[-1]


async def test_a_miss_is_explained(tmp_path: Path) -> None:
    """A ready process is warm; the tenant behind it starts cold, because the pool was empty."""
    async with running_broker(tmp_path, pool(spawn_concurrency=1)) as broker:
        await broker.wait_spares(1)
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(waiting(broker)) for _ in range(4)]
            welcomes = [await client.until_type("broker.welcome") for client in clients]
        starts = sorted((welcome["start"], welcome["miss_reason"]) for welcome in welcomes)
        assert starts == [("cold", "pool_empty")] * 3 + [("warm", None)]
        assert broker.metric("broker_pool_acquires_total", result="cold") == 3
        assert broker.metric("broker_pool_acquires_total", result="warm") == 1


async def test_without_spares_every_start_is_cold(tmp_path: Path) -> None:
    """warm = 0 is said as pool_disabled; the broker is ready all the same."""
    async with running_broker(tmp_path, pool(warm=0)) as broker:
        assert broker.pool()["warm"] == 0
        for _ in range(2):
            async with connected(broker.url, hello={}) as client:
                assert (client.welcome["start"], client.welcome["miss_reason"]) == ("cold", "pool_disabled")
                assert (await client.turn("hello"))["type"] == "broker.turn_completed"


async def test_who_waits_is_told_where(tmp_path: Path) -> None:
    """At once and at each change, never twice the same; a place that is given up moves the others on."""
    async with running_broker(tmp_path, pool(max_processes=1)) as broker:
        async with connected(broker.url, hello={}) as holder, AsyncExitStack() as stack:
            queue = []
            for number in range(1, 5):
                client = await stack.enter_async_context(waiting(broker))
                assert (await position(client, number))["reason"] == "pool_full"
                queue.append(client)
            queue[1].socket.transport.abort()
            for client, number in ((queue[2], 2), (queue[3], 3)):
                await position(client, number)
            await holder.send({"type": "broker.end"})
            assert (await queue[0].until_type("broker.welcome"))["start"] == "cold"
            await position(queue[2], 1)
            told = [[frame["position"] for frame in client.of_type("broker.waiting")] for client in queue]
            assert told == [[1], [2], [3, 2, 1], [4, 3]]
            await queue[0].send({"type": "broker.end"})
            assert (await queue[2].until_type("broker.welcome"))["miss_reason"] == "pool_empty"


async def test_a_place_given_up_costs_no_process(tmp_path: Path) -> None:
    """A client that leaves while it waits gets nothing: what is started next is for who is still there."""
    async with running_broker(tmp_path, pool(max_processes=1)) as broker:
        async with connected(broker.url, hello={}) as holder:
            for _ in range(3):
                async with waiting(broker) as gone:
                    await position(gone, 1)
            await holder.send({"type": "broker.end"})
            async with connected(broker.url, hello={}) as client:
                assert client.welcome["start"] in ("warm", "cold")
            metas = broker.ledger_rows("meta")
            assert len(metas) <= 3


async def test_waiting_has_an_end(tmp_path: Path) -> None:
    """After pool.queue_timeout_s: pool_unavailable, close 4005, with a hint when to come again."""
    async with running_broker(tmp_path, pool(max_processes=1, queue_timeout_s=0.4)) as broker:
        async with connected(broker.url, hello={}), waiting(broker) as client:
            began = time.monotonic()
            code, error = await turned_away(client)
            assert 0.3 < time.monotonic() - began < 5
            assert (code, error["code"], error["retryable"]) == (4005, "pool_unavailable", True)
            assert error["retry_after_ms"] > 0
            assert "pool.queue_timeout_s" in error["message"]
        assert broker.metric("broker_pool_acquires_total", result="timeout") == 1


async def test_the_queue_itself_is_bounded(tmp_path: Path) -> None:
    """Beyond pool.max_waiting a tenant is turned away at once (4004), naming the limit."""
    async with running_broker(tmp_path, pool(max_processes=1, max_waiting=1)) as broker:
        async with connected(broker.url, hello={}), waiting(broker) as first, waiting(broker) as second:
            code, error = await turned_away(second)
            assert (code, error["code"]) == (4004, "pool_unavailable")
            assert "pool.max_waiting = 1" in error["message"]
            await position(first, 1)


@pytest.mark.parametrize("fault", ["exit_code=3", "never_ready"])
async def test_a_cli_that_never_gets_ready_opens_the_breaker(fault: str, tmp_path: Path) -> None:
    """Who waits is told after the fifth failure, who comes then in under 100 ms: 4004, no process is left behind."""
    config = pool(warm=0, start_timeout_s=0.2)
    config |= {"cli": {"env": {"SIMULATOR_FAULTS": fault}}, "stop": {"eof_grace_s": 0.1, "term_grace_s": 0.1}}
    async with running_broker(tmp_path, config) as broker:
        broker.expects("pool.breaker_open")
        async with waiting(broker) as client:
            code, error = await turned_away(client)
            assert (code, error["code"], error["retryable"]) == (4004, "pool_unavailable", True)
            assert error["retry_after_ms"] >= 100
        async with connected(broker.url) as client:
            began = time.monotonic()
            with pytest.raises(ConnectionClosed):
                await client.hello()
            took = time.monotonic() - began
        print(f"{fault}: refused in {took * 1e3:.1f} ms")
        assert took < 1
        await broker.wait_pool(starting=0, stopping=0, leased=0)
        assert broker.descendants() == []


def tokens_file(folder: Path, tenants: list[str]) -> Path:
    """A tenants.toml in which every tenant's token is its name."""
    file = folder / "tenants.toml"
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in tenants}
    rows = [f'[tenants."{name}"]\ntokens = [{{hash="sha256:{digests[name]}"}}]\n' for name in tenants]
    file.write_text("\n".join(rows))
    return file


@pytest.mark.slow
async def test_a_used_process_is_never_leased_again(tmp_path: Path) -> None:
    """Many tenants through a pool of 4: no two share a process, by pid and start time, or a directory, by inode."""
    tenants = [f"tenant-{number}" for number in range(TENANTS)]
    config = pool(warm=POOL, max_processes=POOL, isolation="none", spawn_concurrency=POOL)
    config |= {"auth": {"mode": "tokens", "file": str(tokens_file(tmp_path, tenants))}}
    starts: list[str] = []
    began = time.monotonic()

    async def visit(names: list[str]) -> None:
        for name in names:
            headers = {"Authorization": f"Bearer {name}"}
            # Some leave in an orderly way and some do not; detach_timeout_s is 0.
            async with connected(broker.url, hello={"session": {"id": "same"}}, headers=headers) as client:
                starts.append(client.welcome["start"])
                assert (await client.turn(f"I am {name}."))["is_error"] is False
                if len(starts) % 2:
                    await client.send({"type": "broker.end"})
                    assert await client.closed() == 1000

    async with running_broker(tmp_path / "broker", config) as broker:
        async with asyncio.TaskGroup() as group:
            for first in range(AT_ONCE):
                group.create_task(visit(tenants[first::AT_ONCE]))
        took = time.monotonic() - began
        rows = broker.ledger_rows()
        served: dict[Cli, list[str]] = {}
        for process, message in said_to_cli(rows, "user"):
            served.setdefault(process, []).append(message["message"]["content"])
        assert sorted(served.values()) == sorted([f"I am {name}."] for name in tenants)
        assert len({process.inode for process in served}) == TENANTS
        assert len({(process.pid, process.start) for process in served}) == TENANTS
        started = [cli(row) for row in rows if row["dir"] == "meta"]
        assert len(started) == len(set(started))
        print(f"{TENANTS} tenants in {took:.1f} s, {len(started)} processes, {starts.count('warm')} warm starts")
        await broker.wait_spares(POOL)
        alive = {(row.pid, row.started) for process in started if (row := read_process(process.pid)) is not None}
        assert not alive & {(process.pid, process.start) for process in served}
