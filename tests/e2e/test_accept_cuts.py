"""The connection is cut at every byte between a message and its acceptance; said again, it is said once.

The cut falls into the client's frame on its way up, or into ``broker.accepted`` on its way down.  The client cannot
know what of it was heard: it comes back and sends the same message under the same id.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

import pytest

from tests.kit.broker import Broker, started_broker
from tests.kit.ledger import user_ids
from tests.kit.proxy import At, FaultProxy, fault_proxy
from tests.kit.raw import Cut, RawClient, client_frame, raw_connection
from tests.oracle import Oracle
from tests.soak import LONG_S, size

REPEATS = size(1, 20)
STEP = size(4, 1)
"""Every so many bytes."""
LANES = 4
QUICK = "[[sim error=529]]"
"""The shortest turn there is."""
ACCEPTED = b'{"type":"broker.accepted"'


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with a spare for every lane, which lets each say as much as it likes."""
    config = {"pool": {"profiles": {"default": {"warm": LANES}}}}
    with started_broker(tmp_path_factory.mktemp("accept"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


class Lane:
    """One session and its client, which is cut off once for each message.  All its frames are of one length."""

    def __init__(self, name: str, broker: Broker, proxy: FaultProxy) -> None:
        self.name = name
        self.proxy = proxy
        self._host = {"Host": f"127.0.0.1:{broker.port}"}
        self._numbers = count(100_000)
        self.ids: list[str] = []
        self.again_was: Counter[str] = Counter()
        """What the second try was: ``new``, or a ``duplicate``."""
        self.misses = 0

    def message(self) -> dict[str, str]:
        """The next one."""
        self.ids.append(f"{self.name}-{next(self._numbers)}")
        return {"type": "user_message", "id": self.ids[-1], "content": QUICK}

    async def greeted(self, raw: RawClient) -> None:
        """Say hello and wait for welcome."""
        session = {"mode": "open", "id": self.name}
        await raw.send({"type": "broker.hello", "session": session, "client": {"instance": self.name}})
        while (await raw.frame())["type"] != "broker.welcome":
            pass

    async def said(self, raw: RawClient, message: dict[str, str]) -> dict[str, Any]:
        """Send a message, wait for its acceptance and its end; returns the acceptance."""
        await raw.send(message)
        receipt: dict[str, Any] = {}
        ended: set[str | None] = set()
        while not receipt or (receipt.get("outcome") is None and message["id"] not in ended):
            frame = await raw.frame()
            assert frame["type"] != "broker.error", frame
            if frame["type"] == "broker.accepted":
                receipt = frame
            elif frame["type"] == "broker.turn_completed":
                assert frame["id"] not in ended
                ended.add(frame["id"])
        assert receipt["id"] == message["id"]
        return receipt

    async def lengths(self) -> tuple[int, int, int]:
        """Bytes that the client sends before a message; of the message's frame; of its acceptance's."""
        async with raw_connection(self.proxy.port, headers=self._host) as raw:
            await self.greeted(raw)
            before, message = raw.sent, self.message()
            await self.said(raw, message)
            receipt = next(text for text in raw.texts if text.encode().startswith(ACCEPTED))
        return before, len(client_frame(json.dumps(message).encode())), len(receipt) + 2

    async def cut(self, at: At) -> None:
        """Say one message on a connection that ends there, and once more on a sound one."""
        message = self.message()
        is_hit = at.up is not None
        self.proxy.arm(at)
        async with raw_connection(self.proxy.port, headers=self._host) as raw:
            with contextlib.suppress(Cut):
                await self.greeted(raw)
                await raw.send(message)
                while True:
                    await raw.receive()
            payload = raw.bytes.rest[2:] if len(raw.texts) == 1 else raw.texts[1].encode()
            is_hit |= payload[: len(ACCEPTED)] == ACCEPTED[: len(payload)]
        async with raw_connection(self.proxy.port, headers=self._host) as raw:
            await self.greeted(raw)
            receipt = await self.said(raw, message)
        self.again_was["duplicate" if receipt["duplicate"] else "new"] += 1
        if not is_hit:  # a frame of the turn before came between
            self.misses += 1
            await self.cut(at)


@pytest.mark.slow
@pytest.mark.timeout(LONG_S)
async def test_a_message_whose_acceptance_was_cut_off_is_said_once(broker: Broker) -> None:
    """At each byte, in both directions: after the second try it is at the CLI exactly once."""
    await broker.wait_spares(LANES)
    async with AsyncExitStack() as stack:
        lanes = []
        for number in range(LANES):
            proxy = await stack.enter_async_context(fault_proxy(broker.port))
            lanes.append(Lane(f"l{number}", broker, proxy))
        before, up, down = await lanes[0].lengths()
        for lane in lanes[1:]:
            assert await lane.lengths() == (before, up, down)
        places = [At(up=before + taken) for taken in range(1, up + 1, STEP)]
        places += [At(frame=1, bytes=taken) for taken in range(1, down + 1, STEP)]
        wanted = iter(places * REPEATS)

        async def run(lane: Lane) -> None:
            for at in wanted:
                await lane.cut(at)

        async with asyncio.TaskGroup() as group:
            for lane in lanes:
                group.create_task(run(lane))
        cuts = sum(lane.misses for lane in lanes) + len(places) * REPEATS
        assert sum(lane.proxy.cuts for lane in lanes) == cuts
    again_was = sum((lane.again_was for lane in lanes), Counter[str]())
    misses = sum(lane.misses for lane in lanes)
    print(f"{len(places)} places x {REPEATS}: {cuts} cuts, {misses} of them beside the acceptance; "
          f"the second try: {dict(again_was)}")  # fmt: skip
    assert again_was["duplicate"] >= len(places) * REPEATS // 3
    assert again_was["new"] >= len(places) * REPEATS // 3
    assert sorted(user_ids(broker.ledger_rows("in"))) == sorted(name for lane in lanes for name in lane.ids)
