"""Hundreds of connections are cut at a random byte; what the clients got, put together, is exactly what the CLIs said.

Every client behaves as the protocol asks: it comes back with the epoch and the last seq of what it received completely,
and sends its message again, under the same id, until it has seen the terminal frame.
"""

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from bench.server_bytes import Place
from tests.kit.broker import Broker, started_broker
from tests.kit.ledger import from_cli, meant_for_clients, seq_of, user_ids
from tests.kit.proxy import At, FaultProxy, How, fault_proxy
from tests.kit.raw import Cut, RawClient, raw_connection
from tests.oracle import Oracle
from tests.soak import LONG_S, size

CUTS = size(500, 10_000)
SESSIONS = 10
TURN = "[[sim tokens=150 itl_ms=3]]"
HEAD_BYTES, WELCOME_BYTES, FAR_BYTES = 140, 1000, 30000
"""About how much the server sends before welcome, until its end, and the farthest cut behind it."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with a spare for every session."""
    config = {"pool": {"profiles": {"default": {"warm": SESSIONS}}}}
    with started_broker(tmp_path_factory.mktemp("cuts"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


def somewhere(chance: random.Random) -> At:
    """Where the next connection is cut: in the upgrade, in welcome, in a frame header, in the replay, far behind."""
    how = How.CLOSE if chance.random() < 0.2 else How.RESET
    kind = chance.choices(("head", "welcome", "header", "replay", "far", "up"), (1, 3, 2, 3, 3, 1))[0]
    if kind == "header":
        return At(frame=chance.randrange(40), bytes=chance.randint(1, 3), how=how)
    if kind == "up":
        return At(up=chance.randint(1, 700), how=how)
    low, high = {
        "head": (1, HEAD_BYTES),
        "welcome": (HEAD_BYTES, WELCOME_BYTES),
        "replay": (WELCOME_BYTES, WELCOME_BYTES + 4000),
        "far": (WELCOME_BYTES + 4000, FAR_BYTES),
    }[kind]
    return At(down=chance.randint(low, high), how=how)


@dataclass
class Traveller:
    """A client that is cut off again and again."""

    name: str
    host: str
    """What the broker calls itself: behind a proxy the client has to name it."""
    proxy: FaultProxy
    chance: random.Random
    cuts_wanted: int
    welcome: dict[str, Any] = field(default_factory=dict)
    last_seq: int = 0
    texts: list[str] = field(default_factory=list)
    places: Counter[str] = field(default_factory=Counter)
    codes: set[int | None] = field(default_factory=set)
    turns: int = 0
    has_terminal: bool = False
    is_idle: bool = True
    """The terminal frame of the last message was seen, and then the CLI's word that it is idle."""

    @property
    def message_id(self) -> str:
        return f"{self.name}-{self.turns}"

    @property
    def is_at_the_end(self) -> bool:
        return self.is_idle and self.proxy.cuts >= self.cuts_wanted

    async def travel(self) -> None:
        """Hold turns until enough connections were cut, and the last one to its end on a sound connection."""
        while not self.is_at_the_end:
            if self.proxy.cuts < self.cuts_wanted:
                self.proxy.arm(somewhere(self.chance))
            try:
                async with raw_connection(self.proxy.port, headers={"Host": self.host}) as raw:
                    await self._talk(raw)
            except Cut as cut:
                self.codes.add(cut.code)
                self.places["head"] += cut.place is Place.HEAD

    async def _talk(self, raw: RawClient) -> None:
        is_welcome = False
        try:
            await self._hello(raw)
            is_welcome = True
            if not self.is_idle:
                await self._say(raw)  # it may have got lost: under the same id it is harmless to say it again
            while not self.is_at_the_end:
                if self.is_idle:
                    self.turns, self.has_terminal, self.is_idle = self.turns + 1, False, False
                    await self._say(raw)
                self._take(await raw.receive())
        except Cut as cut:
            is_behind = is_welcome and self.last_seq < self.welcome["head_seq"]
            self.places["in replay" if is_behind else "live" if is_welcome else "in welcome"] += 1
            self.places[f"at {cut.place.value}"] += 1
            raise

    async def _hello(self, raw: RawClient) -> None:
        known = self.welcome.get("epoch")
        session: dict[str, Any] = {"mode": "resume" if known else "open", "id": self.name}
        if known:
            session |= {"epoch": known, "last_seq": self.last_seq}
        await raw.send({"type": "broker.hello", "session": session, "client": {"instance": self.name}})
        while (frame := await raw.frame())["type"] == "broker.waiting":
            pass
        assert frame["type"] == "broker.welcome", frame
        self.welcome, replay = frame, frame["replay"]
        assert known in (None, self.welcome["epoch"])
        assert self.welcome["lost"] is None, self.welcome
        assert not known or replay is None or replay == {"from": self.last_seq + 1, "to": self.welcome["head_seq"]}

    async def _say(self, raw: RawClient) -> None:
        await raw.send({"type": "user_message", "id": self.message_id, "content": f"{TURN} {self.message_id}"})

    def _take(self, text: str) -> None:
        seq = seq_of(text)
        if seq is None:
            return
        assert seq == self.last_seq + 1, f"{seq} after {self.last_seq}"
        self.last_seq = seq
        self.texts.append(text)
        if text.startswith('{"type":"broker.turn_'):
            frame = json.loads(text)
            assert (frame["type"], frame["id"]) == ("broker.turn_completed", self.message_id)
            self.has_terminal = True
        elif self.has_terminal and '"state":"idle"' in text:
            self.is_idle = True


@pytest.mark.slow
@pytest.mark.timeout(LONG_S)
async def test_hundreds_of_cuts_lose_nothing_and_repeat_nothing(broker: Broker) -> None:
    """Contiguous seq, each message once at a CLI, each of its lines once at the client, byte for byte."""
    seed = int(os.environ.get("CUTS_SEED", time.time_ns() % 1_000_000))
    print(f"CUTS_SEED={seed}")
    await broker.wait_spares(SESSIONS)
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        travellers = []
        for number in range(SESSIONS):
            proxy = await stack.enter_async_context(fault_proxy(broker.port))
            chance = random.Random(seed * 1000 + number)
            travellers.append(Traveller(f"t{number}", f"127.0.0.1:{broker.port}", proxy, chance, CUTS // SESSIONS))
        async with asyncio.TaskGroup() as group:
            for traveller in travellers:
                group.create_task(traveller.travel())
    places = sum((traveller.places for traveller in travellers), Counter[str]())
    turns, frames = sum(t.turns for t in travellers), sum(t.last_seq for t in travellers)
    cuts = sum(traveller.proxy.cuts for traveller in travellers)
    print(f"{cuts} cuts in {time.monotonic() - began:.1f} s: {turns} turns, {frames} frames, {dict(places)}")
    assert cuts >= CUTS
    for place in ("head", "in welcome", "in replay", "live", "at header", "at payload"):
        assert places[place] > 0, place
    rows = broker.ledger_rows()
    for traveller in travellers:
        session = traveller.welcome["cli"]["session_id"]
        assert traveller.codes <= {None, 4509}  # replaced: it came back before its own end was noticed
        assert from_cli(traveller.texts) == meant_for_clients(rows, session)
        wanted = [f"{traveller.name}-{number + 1}" for number in range(traveller.turns)]
        assert [found for found in user_ids(rows) if found.startswith(f"{traveller.name}-")] == wanted
