"""More tenants than processes: in their order, within their time, and idle ones give way in fairness."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.kit.broker import Broker, running_broker
from tests.kit.client import Client, connected
from tests.soak import LONG_S, size
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LONG_S)]

POOL = size(3, 10)
TENANTS = size(12, 200)
GREEDY = 3
"""Sessions more of the one tenant that came first with several."""
TIMEOUT_S = size(1, 2)
SHORT = "[[sim tokens=2]] word"


def tokens(folder: Path, names: list[str]) -> dict[str, Any]:
    """A section for the configuration; the token of a tenant is its name."""
    file = folder / "tenants.toml"
    rows = [(name, hashlib.sha256(name.encode()).hexdigest()) for name in names]
    file.write_text("\n".join(f'[tenants."{name}"]\ntokens = [{{hash="sha256:{digest}"}}]\n' for name, digest in rows))
    return {"mode": "tokens", "file": str(file)}


def config(folder: Path, names: list[str], limit: int, min_resident_s: float, **pool: Any) -> dict[str, Any]:
    """A pool of ``limit`` without spares."""
    pool = {"max_processes": limit, "isolation": "none", "profiles": {"default": {"warm": 0}}} | pool
    return {"pool": pool, "session": {"min_resident_s": min_resident_s}, "auth": tokens(folder, names)}


@asynccontextmanager
async def visitor(broker: Broker, tenant: str) -> AsyncIterator[Client]:
    """A tenant's connection that has said hello and heard nothing yet."""
    async with connected(broker.url, headers={"Authorization": f"Bearer {tenant}"}) as client:
        await client.send({"type": "broker.hello"})
        yield client


async def holders(broker: Broker, stack: AsyncExitStack) -> list[Client]:
    """All processes are held."""
    found = [await stack.enter_async_context(visitor(broker, "holder")) for _ in range(POOL)]
    for client in found:
        await client.until_type("broker.welcome")
    return found


async def watch(broker: Broker, most: list[int], is_over: Callable[[], bool]) -> None:
    """How many processes there are, as the broker tells it again and again."""

    def look() -> bool:
        most.append(sum(broker.pool().values()))
        return is_over()

    await eventually(look, 600)


async def test_tenants_are_served_in_their_order(tmp_path: Path) -> None:
    """Round robin over tenants: who came first with several is served once, then everybody else, then the rest."""
    names = [f"t-{number}" for number in range(TENANTS)]
    served: list[str] = []
    most: list[int] = []
    arrivals = ["t-0"] * (1 + GREEDY) + names[1:]
    async with running_broker(tmp_path, config(tmp_path, ["holder", *names], POOL, 600, queue_timeout_s=600)) as broker:
        async with AsyncExitStack() as stack:
            held = await holders(broker, stack)
            queue = []
            for place, name in enumerate(arrivals, 1):
                queue.append((name, await stack.enter_async_context(visitor(broker, name))))
                told = await queue[-1][1].until_type("broker.waiting")
                # Behind the first of every tenant that waits, before the second ones of the greedy one.
                assert told["position"] == (place if place <= 1 + GREEDY else place - GREEDY)

            async def visit(name: str, client: Client) -> None:
                await client.until_type("broker.welcome", 600)
                served.append(name)
                assert (await client.turn(SHORT))["type"] == "broker.turn_completed"
                await client.send({"type": "broker.end"})
                assert await client.closed() == 1000

            async with asyncio.TaskGroup() as group:
                group.create_task(watch(broker, most, lambda: len(served) == len(arrivals)))
                for name, client in queue:
                    group.create_task(visit(name, client))
                for client in held:
                    await client.send({"type": "broker.end"})
    expected = ["t-0", *names[1:], *["t-0"] * GREEDY]
    first = {name: place for place, name in reversed(list(enumerate(served)))}
    off = max(abs(first[name] - place) for place, name in enumerate(expected[:TENANTS]))
    print(f"{len(served)} served, at most {max(most)} processes in {len(most)} looks, at most {off} places off")
    assert sorted(served) == sorted(expected)
    assert off <= POOL  # who is bound at the same time may overtake
    assert served[-GREEDY - POOL :].count("t-0") >= GREEDY
    assert max(most) <= POOL


async def test_who_waits_too_long_is_told_in_time(tmp_path: Path) -> None:
    """Close 4005 at pool.queue_timeout_s, each counted from its own hello; whoever holds a process is untouched."""
    names = [f"t-{number}" for number in range(TENANTS - POOL)]
    took: list[float] = []
    settings = config(tmp_path, ["holder", *names], POOL, 600, queue_timeout_s=TIMEOUT_S)
    async with running_broker(tmp_path, settings) as broker, AsyncExitStack() as stack:
        held = await holders(broker, stack)

        async def wait(name: str) -> None:
            async with connected(broker.url, headers={"Authorization": f"Bearer {name}"}) as client:
                sent = time.monotonic()
                await client.send({"type": "broker.hello"})
                await client.until_type("broker.waiting")
                began = time.monotonic()
                error = await client.error()
                assert time.monotonic() - sent >= TIMEOUT_S
                took.append(time.monotonic() - began)
                assert (error["code"], await client.closed()) == ("pool_unavailable", 4005)

        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(wait(name))
        assert broker.metric("broker_pool_acquires_total", result="timeout") == len(names)
        for client in held:
            assert (await client.turn(SHORT))["type"] == "broker.turn_completed"
    late = sorted(seconds - TIMEOUT_S for seconds in took)
    print(f"{len(took)} refused, {late[0] * 1e3:.0f} to {late[-1] * 1e3:.0f} ms after the deadline, "
          f"p50 {late[len(late) // 2] * 1e3:.0f} ms")  # fmt: skip
    assert late[-1] < 5


CROWD = size(6, 20)
RESIDENT_S = 1.0


def lives(broker: Broker) -> list[float]:
    """Seconds that the processes lived that are gone, from when they were ready, which is before they were bound."""
    ready, gone = (
        {row["pid"]: datetime.fromisoformat(row["timestamp"]).timestamp() for row in broker.log_events(event)}
        for event in ("process.ready", "process.gone")
    )
    return [gone[pid] - ready[pid] for pid in gone]


async def test_who_has_most_gives_first(tmp_path: Path) -> None:
    """A full pool, nearly all of it one tenant's idle sessions: each newcomer gets one of those, the one that was idle
    for longest, none that has had its process for less than session.min_resident_s; nobody else loses anything."""
    newcomers = [f"new-{number}" for number in range(CROWD - 3)]
    settings = config(tmp_path, ["greedy", "b", "c", *newcomers], CROWD, RESIDENT_S)
    async with running_broker(tmp_path, settings) as broker, AsyncExitStack() as stack:

        async def arrive(name: str) -> Client:
            client = await stack.enter_async_context(visitor(broker, name))
            await client.until_type("broker.welcome", 60)
            assert (await client.turn(SHORT))["type"] == "broker.turn_completed"
            return client

        modest = [await arrive("b"), await arrive("c")]
        greedy = [await arrive("greedy") for _ in range(CROWD - 2)]
        since = time.monotonic()
        await eventually(lambda: time.monotonic() - since > RESIDENT_S)  # from now on each of them may be asked
        arrived = [await arrive(name) for name in newcomers]
        for client in [*modest, *greedy, *arrived]:
            await client.sync()
        resting = [client for client in [*modest, *greedy, *arrived] if _rests(client)]
        assert resting == greedy[: len(newcomers)]
        assert broker.pool()["leased"] == CROWD
        for client in resting[:2]:  # somebody gives way again
            assert (await client.turn(SHORT, within_s=60))["type"] == "broker.turn_completed"
        had = lives(broker)
        print(f"{len(resting)} of {len(greedy)} gave way to {len(arrived)} tenants, {len(had)} in all, after "
              f"{min(had):.2f} s at least")  # fmt: skip
        assert len(had) >= len(newcomers) + 2
        assert min(had) > RESIDENT_S


def _rests(client: Client) -> bool:
    return any(frame.get("state") == "hibernated" for frame in client.of_type("broker.state"))
