"""The logs of all sessions together: what is forgotten first, what never silently, and how little the kernel holds."""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.beside import no_bug
from tests.kit.broker import Broker, running_broker, started_broker
from tests.kit.client import Client, connected
from tests.kit.sipper import sipper
from tests.oracle import Oracle
from tests.waiting import eventually

MEBIBYTE = 2**20
SAID = "[[sim flood=900000:4096]] a"
"""A log of a little less than a mebibyte."""
QUIET = {"env": {"SIMULATOR_LEDGER": ""}}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker that keeps two mebibytes of all logs."""
    config: dict[str, Any] = {"cli": QUIET, "replay": {"bytes": MEBIBYTE, "total_bytes": 2 * MEBIBYTE}}
    with started_broker(tmp_path_factory.mktemp("bounds"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


async def talked(client: Client) -> Client:
    """A conversation with a full log."""
    await client.turn(SAID, "m-1")
    await client.until(lambda frame: frame.get("state") == "idle")
    return client


async def lost(broker: Broker, session: str) -> str | None:
    """Why nothing of that session's log is there, None while all of it is; asked without reading it."""
    hello = {"session": {"mode": "resume", "id": session, "last_seq": 1}, "role": "observer"}
    async with connected(broker.url, hello=hello) as client:
        found = client.welcome["lost"]
        return None if found is None else str(found["reason"])


async def forgotten(broker: Broker, *sessions: str) -> None:
    """Until the logs of these, and no others, have been forgotten, in this order."""
    await eventually(lambda: len(broker.log_events("session.log_forgotten")) >= len(sessions), 20)
    assert [event["session"] for event in broker.log_events("session.log_forgotten")] == list(sessions)


async def test_detached_logs_go_first_and_idle_ones_before_those_in_use(broker: Broker) -> None:
    """Of five logs, where two are kept: both that nobody is attached to, the longest detached first; then the one in
    which nothing has happened for longest, whose client stays."""
    async with AsyncExitStack() as stack:

        async def opened(name: str) -> Client:
            place = {"session": {"mode": "open", "id": name}}
            return await talked(await stack.enter_async_context(connected(broker.url, hello=place)))

        for name in ("gone-1", "gone-2"):
            async with connected(broker.url, hello={"session": {"id": name}}) as client:
                await talked(client)
        idle = await opened("idle")
        await forgotten(broker, "gone-1")
        late = await opened("late")
        await forgotten(broker, "gone-1", "gone-2")
        last = await opened("last")
        await forgotten(broker, "gone-1", "gone-2", "idle")
        names = ("gone-1", "gone-2", "idle", "late", "last")
        assert [await lost(broker, name) for name in names] == ["expired", "expired", "expired", None, None]
        for client in (idle, late, last):
            assert (await client.turn("hello", "m-2"))["is_error"] is False
    assert no_bug(broker)


async def test_a_reader_whose_log_is_forgotten_is_told(tmp_path: Path) -> None:
    """One that had not read it all is closed with 4001 as soon as it reads on, and told at its next hello."""
    config: dict[str, Any] = {"cli": QUIET, "replay": {"bytes": 4 * MEBIBYTE, "total_bytes": 4 * MEBIBYTE}}
    async with running_broker(tmp_path, config) as broker, AsyncExitStack() as stack:
        client = await stack.enter_async_context(sipper(broker, "slow", hello={"client": {"instance": "tab"}}))
        said = {"type": "user_message", "id": "m-1", "content": "[[sim flood=3500000:4096]] a"}
        await client.say(said)
        await eventually(lambda: broker.log_events("turn.ended"), 20)
        other = await stack.enter_async_context(connected(broker.url, hello={}))
        await other.turn("[[sim flood=3500000:4096]] a")
        await forgotten(broker, "slow")
        while await client.sip():
            pass
        assert client.close_code == 4001
        hello = {"session": {"mode": "resume", "id": "slow", "last_seq": 5}, "client": {"instance": "tab"}}
        async with connected(broker.url, hello=hello) as back:
            assert (back.welcome["lost"]["reason"], back.welcome["last_close"]) == ("expired", "slow_consumer")
        assert no_bug(broker)


async def test_the_kernel_holds_little_of_what_nobody_reads(broker: Broker) -> None:
    """TCP_NOTSENT_LOWAT: of a stalled reader's bytes it has some hundred KiB, whatever its buffers could grow to."""
    async with sipper(broker, "stalled") as client:
        await client.say({"type": "user_message", "id": "m-1", "content": "[[sim flood=3000000:4096]] a"})
        await eventually(lambda: any(e["session"] == "stalled" for e in broker.log_events("turn.ended")), 20)
        assert 0 < held_by_kernel(client.port) < 320 * 1024


def held_by_kernel(port: int) -> int:
    """Bytes of the broker's socket towards ``port`` that were not acknowledged (proc_net_tcp(5))."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[2].rpartition(":")[2], 16) == port:
            return int(fields[4].partition(":")[0], 16)
    return 0
