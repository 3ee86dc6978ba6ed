"""``kill -9`` of the broker while many sessions stream, again and again: what each client is told by the next run.

Every session has a turn that has ended, one that streams, and one that waits behind it.  Nothing of the old run lives
on; every client hears that the log is new, and of each message it was told the acceptance of, exactly one end.
"""

import asyncio
import random
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.kit.broker import Broker, running_broker
from tests.kit.client import Client, Frame, connected, contiguous, terminals, text_of
from tests.kit.ledger import user_ids
from tests.processes import read_process
from tests.soak import LONG_S, size
from tests.waiting import eventually

SESSIONS, ROUNDS = size(5, 50), size(2, 50)
GONE_S = 1.0
"""What is promised; the test allows for a loaded machine, and prints what it saw."""
LONG = "[[sim tokens=3000 itl_ms=20]] long"
CONFIG: dict[str, Any] = {
    "pool": {"max_processes": SESSIONS + 4, "spawn_concurrency": 4, "profiles": {"default": {"warm": 1}}},
    "server": {"max_unauthenticated_per_ip": 2 * SESSIONS},
}


@dataclass
class Guest:
    """One session's client over all runs of the broker."""

    name: str
    chance: random.Random
    epoch: str = ""
    last_seq: int = 0
    accepted: set[str] = field(default_factory=set)
    ends: dict[str, Frame] = field(default_factory=dict)
    """The terminal frame of each message, of whichever run."""
    completed: int = 0
    cut_off: int = 0
    frames: int = 0

    def hello(self) -> Frame:
        """Where it stopped reading."""
        place = {"epoch": self.epoch, "last_seq": self.last_seq} if self.epoch else {}
        return {"session": {"mode": "open", "id": self.name, **place}}

    def take(self, client: Client) -> None:
        """Note everything that one connection brought."""
        assert contiguous(client.frames)
        self.frames += len(client.numbered())
        self.epoch, self.last_seq = client.welcome["epoch"], client.last_seq
        self.accepted |= {frame["id"] for frame in client.of_type("broker.accepted") if not frame["duplicate"]}
        for end in terminals(client.frames):
            assert end["id"] not in self.ends, "a second end"
            self.ends[end["id"]] = end

    async def come_back(self, client: Client, round_: int) -> None:
        """What the run before has left is told, and nothing else; then the conversation goes on."""
        welcome = client.welcome
        if round_ == 0:
            assert welcome["lost"] is None
        else:
            assert welcome["lost"] == {"from": self.last_seq + 1, "to": None, "reason": "epoch_changed"}
            assert welcome["epoch"] != self.epoch
            assert (welcome["turn"], welcome["queued"]) == (None, [])
            long, waiting = f"{self.name}-{round_ - 1}-long", f"{self.name}-{round_ - 1}-waits"
            for message_id, applied, seq in ((long, "unknown", 1), (waiting, "no", 2)):
                end = await client.terminal(message_id)
                told = (end["type"], end["reason"], end["applied"], end["retryable"], end["seq"])
                assert told == ("broker.turn_failed", "broker_restarted", applied, applied == "no", seq)
                await client.say(LONG if message_id == long else "waits", message_id)
                receipt = await client.until(lambda frame: frame["type"] in ("broker.accepted", "broker.error"))
                assert (receipt["id"], receipt["duplicate"], receipt["outcome"]) == (message_id, True, "failed")
        before = len(client.frames)
        end = await client.turn("hello", f"{self.name}-{round_}-short", within_s=120)
        assert (end["type"], end["is_error"]) == ("broker.turn_completed", False)
        known = int(text_of(client.frames[before:]).rpartition("Earlier messages of yours: ")[2].rstrip("."))
        assert self.completed <= known <= self.completed + self.cut_off, "its memory"
        self.completed += 1

    async def stream(self, client: Client, round_: int) -> None:
        """One message runs, another waits, and some of the first has been read."""
        await client.say(LONG, f"{self.name}-{round_}-long")
        await client.say("waits", f"{self.name}-{round_}-waits")
        waits = f"{self.name}-{round_}-waits"
        await client.until(lambda frame: frame.get("id") == waits and frame.get("state") == "queued", 60)
        for _ in range(self.chance.randint(1, 60)):
            await client.until_type("stream_event", 60)
        self.cut_off += 1


async def all_of(*steps: Any) -> None:
    """At the same time."""
    async with asyncio.TaskGroup() as group:
        for step in steps:
            group.create_task(step)


def is_alive(pid: int) -> bool:
    """Nor is it a zombie: those of a dead broker wait for init, which takes its time."""
    row = read_process(pid)
    return row is not None and row.state not in ("Z", "X")


async def killed(broker: Broker) -> tuple[int, float]:
    """Kill it; how many processes were below it, and after how many seconds none was left."""
    below = [process.pid for process in broker.descendants()]
    began = time.monotonic()
    await broker.stop(signal.SIGKILL)
    await eventually(lambda: not [pid for pid in below if is_alive(pid)], 10)
    return len(below), time.monotonic() - began


async def one_run(folder: Path, guests: list[Guest], round_: int) -> tuple[int, float]:
    """A broker from its start to its kill in the middle of everything."""
    async with running_broker(folder, CONFIG) as broker, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(broker.url)) for _ in guests]
        pairs = list(zip(guests, clients, strict=True))
        await all_of(*(client.hello(**guest.hello()) for guest, client in pairs))
        await all_of(*(guest.come_back(client, round_) for guest, client in pairs))
        await all_of(*(guest.stream(client, round_) for guest, client in pairs))
        found = await killed(broker)
        await all_of(*(client.closed() for _, client in pairs))  # what was under way is read to its end
        for guest, client in pairs:
            guest.take(client)
        return found


@pytest.mark.slow
@pytest.mark.timeout(LONG_S)
async def test_a_killed_broker_leaves_no_process_and_no_message_without_its_end(tmp_path: Path) -> None:
    """Every child is gone; every client is told epoch_changed, one end for each message, and that what waited was
    never written; the conversations know what they knew."""
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    guests = [Guest(f"g{number}", random.Random(seed + number)) for number in range(SESSIONS)]
    began, took, below = time.monotonic(), [], 0
    for round_ in range(ROUNDS):
        count, seconds = await one_run(tmp_path, guests, round_)
        took.append(seconds)
        below += count
    async with running_broker(tmp_path, CONFIG) as broker, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(broker.url)) for _ in guests]
        pairs = list(zip(guests, clients, strict=True))
        await all_of(*(client.hello(**guest.hello()) for guest, client in pairs))
        await all_of(*(guest.come_back(client, ROUNDS) for guest, client in pairs))
        for guest, client in pairs:
            guest.take(client)
        written = user_ids(broker.ledger_rows("in"))
    print(f"{ROUNDS} kills of a broker with {SESSIONS} sessions in {time.monotonic() - began:.0f} s: {below} processes "
          f"below it, gone after at most {max(took):.3f} s; {sum(len(guest.ends) for guest in guests)} messages, one "
          f"end each; {sum(guest.frames for guest in guests)} frames")  # fmt: skip
    assert len(written) == len(set(written))
    assert not [message_id for message_id in written if message_id.endswith("-waits")]
    for guest in guests:
        assert guest.accepted == guest.ends.keys()
        assert len(guest.ends) == 3 * ROUNDS + 1
    if max(took) > GONE_S:
        print(f"slower than {GONE_S:g} s")
