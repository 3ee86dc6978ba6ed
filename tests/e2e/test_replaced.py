"""A client that comes twice at once: one of its connections stays, the other is told, and says nothing any more."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress

import pytest
from websockets.exceptions import ConnectionClosed

from tests.kit.broker import Broker, started_broker
from tests.kit.client import Client, connected, contiguous
from tests.kit.ledger import user_ids
from tests.oracle import Oracle
from tests.soak import LONG_S, size

RACES = size(24, 1000)
AT_ONCE = 4
REPLACED = 4509


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker whose clients may be fast."""
    config = {"limits": {"messages_per_second": 5000, "messages_burst": 5000}, "turn": {"queue": 1000}}
    with started_broker(tmp_path_factory.mktemp("race"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


async def arrived(client: Client, session: str, instance: str) -> bool:
    """Say hello, and the first word at once; whether there was a welcome."""
    try:
        await client.hello(session={"id": session, "mode": "resume"}, client={"name": "t", "instance": instance})
        await client.say("[[sim tokens=1]] word", f"{instance}-{id(client)}-first")
    except ConnectionClosed:
        return bool(client.welcome)
    return True


async def is_alive(client: Client) -> bool:
    """Whether the broker answers it; else it was closed as replaced."""
    try:
        await client.sync()
    except ConnectionClosed as closed:
        codes = [] if closed.rcvd is None else [closed.rcvd.code]
    else:
        return True
    assert codes == [REPLACED]
    return False


async def race(broker: Broker, session: str, instance: str) -> tuple[set[str], set[str]]:
    """Two connections of one instance; the ids that may have reached the CLI, and those that must not."""
    async with AsyncExitStack() as stack:
        pair = [await stack.enter_async_context(connected(broker.url)) for _ in range(2)]
        async with asyncio.TaskGroup() as group:
            arrivals = [group.create_task(arrived(client, session, instance)) for client in pair]
        assert any(arrival.result() for arrival in arrivals)
        late = {}
        for client in pair:  # whichever is out: what it sends now comes after its replacement was welcomed
            late[id(client)] = f"{instance}-{id(client)}-late"
            with suppress(ConnectionClosed):
                await client.say("[[sim tokens=1]] word", late[id(client)])
        alive = [client for client in pair if await is_alive(client)]
        assert len(alive) == 1, f"{len(alive)} connections of one instance are alive"
        [loser] = [client for client in pair if client is not alive[0]]
        assert contiguous(alive[0].frames)
        told = {frame["id"] for client in pair for frame in client.of_type("broker.accepted")}
        return told, {late[id(loser)]} - {frame["id"] for frame in loser.of_type("broker.accepted")}


@pytest.mark.slow
@pytest.mark.timeout(LONG_S)
async def test_two_connections_of_one_client(broker: Broker) -> None:
    """In every race: exactly one is alive, the other is closed as replaced, and what it says then reaches no CLI."""
    async with connected(broker.url, hello={"session": {"id": "raced"}}) as watcher:
        outcomes: list[tuple[set[str], set[str]]] = []

        async def races(first: int) -> None:
            for number in range(first, RACES, AT_ONCE):
                outcome = await race(broker, "raced", f"tab-{number}")
                outcomes.append(outcome)

        async with asyncio.TaskGroup() as group:
            for first in range(AT_ONCE):
                group.create_task(races(first))
        await watcher.turn("the end", "last")
        said = user_ids(broker.ledger_rows("in"))
        forbidden = {message_id for _, late in outcomes for message_id in late}
        assert len(outcomes) == RACES
        assert not forbidden & set(said)
        assert len(said) == len(set(said))
        assert contiguous(watcher.frames)
        print(f"{RACES} races, {len(said)} messages reached the CLI, {len(forbidden)} of losers did not")
