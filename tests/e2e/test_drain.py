"""The promise of a drain: within stop.drain_timeout_s and three seconds it is over, whatever hangs, and all were told.

Also signals at every other moment: while it starts, while the pool fills, again and again.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.kit.broker import ROOT, Broker, running_broker
from tests.kit.client import Client, connected, contiguous, terminals
from tests.kit.serving import program, serving
from tests.kit.sipper import Sipper, sipper
from tests.processes import Process, process_table, still_there, tree
from tests.waiting import eventually

DRAIN_S = 1.5
PROMISE_S = DRAIN_S + 3.0
SHORT = "[[sim tokens=80 itl_ms=10]] word"
LONG = "[[sim tokens=30000 itl_ms=10]] word"
STUCK = "[[sim ignore_term hang=3 tokens=10]] word"
"""Its CLI neither reads nor writes any more, and no signal but one ends it."""
FLOOD = "[[sim tokens=16000 burst]] much"
"""More than a socket takes whose other end does not read."""
PATIENT: dict[str, Any] = {"eof_grace_s": 20, "term_grace_s": 20}
"""Graces that would add much to the bound."""
FAULTS = ["", "ignore_term ignore_eof"]


class Crowd(NamedTuple):
    """How many sessions of each kind: whose turn ends in time or not, stuck, without a turn, and that do not read."""

    short: int
    long: int
    stuck: int
    idle: int
    stalled: int

    @property
    def texts(self) -> list[str]:
        """What those in mid-turn say."""
        return [SHORT] * self.short + [LONG] * self.long + [STUCK] * self.stuck


QUICK = [pytest.param(Crowd(2, 2, 2, 4, 2), number, id=f"12-{number}") for number in range(1)]
FULL = [
    pytest.param(Crowd(20, 15, 5, 50, 10), number, id=f"100-{number}", marks=pytest.mark.full) for number in range(20)
]


def config(faults: str, drain_timeout_s: float, warm: int = 2, **pool: Any) -> dict[str, Any]:
    """Patient graces, and CLIs with these faults from their start."""
    return {
        "stop": PATIENT | {"drain_timeout_s": drain_timeout_s},
        "cli": {"env": {"SIMULATOR_FAULTS": faults}},
        "pool": {"spawn_concurrency": 4, "profiles": {"default": {"warm": warm}}} | pool,
    }


async def three_deltas(client: Client) -> None:
    """Until a turn is well under way."""
    for _ in range(3):
        await client.until(lambda f: f["type"] == "stream_event" and f["event"]["type"] == "content_block_delta")


async def told_to_go(client: Client) -> int:
    """Read to the end; the close code, and go_away came before it."""
    code = await client.closed()
    assert [frame["reason"] for frame in client.of_type("broker.go_away")] == ["draining"]
    return code


async def ended_after(broker: Broker, began: float, *, may_be_cut_short: bool = False) -> float:
    """Wait for exit 0; seconds since ``began``.  It was no end by the last resort."""
    assert await broker.ended() == 0
    took = time.monotonic() - began
    was_cut_short = "broker.cut_short" in broker.log_text()
    print(f"ended in {took:.2f} s{', cut short' * was_cut_short}")
    assert may_be_cut_short or not was_cut_short
    return took


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("crowd", "round_"), QUICK + FULL)
@pytest.mark.parametrize("faults", FAULTS, ids=["willing", "stubborn"])
async def test_the_promise_holds_whatever_hangs(faults: str, crowd: Crowd, round_: int, tmp_path: Path) -> None:
    """Sessions, half of them in mid-turn, with stalled readers and stuck CLIs: exit 0 in time, go_away and 1012 for
    all who read, one terminal for every message, no process left."""
    settings = config(faults, DRAIN_S, warm=6, max_processes=sum(crowd) + 6)
    async with running_broker(tmp_path, settings) as broker, AsyncExitStack() as stack:
        texts, accepted = crowd.texts, []
        count = len(texts) + crowd.idle
        clients = [await stack.enter_async_context(connected(broker.url, hello={})) for _ in range(count)]
        stalled: list[Sipper] = [
            await stack.enter_async_context(sipper(broker, f"stalled-{n}")) for n in range(crowd.stalled)
        ]
        for number, (client, text) in enumerate(zip(clients, texts, strict=False)):
            accepted += [f"m-{number}", f"w-{number}"]
            await client.say(text, f"m-{number}")
            await client.say("waits", f"w-{number}")
        for number, reader in enumerate(stalled):
            accepted.append(f"s-{number}")
            await reader.say({"type": "user_message", "id": f"s-{number}", "content": FLOOD})
        for client in clients[: len(texts)]:
            await three_deltas(client)
        processes = broker.descendants()
        began = time.monotonic()
        broker.popen.send_signal(signal.SIGTERM)
        assert [await told_to_go(client) for client in clients] == [1012] * count
        # A hundred on a machine that has other work may need the last resort; the promise holds with it.
        took = await ended_after(broker, began, may_be_cut_short=sum(crowd) > 12)
        assert took < PROMISE_S
        await eventually(lambda: not still_there(processes))
        ends = {end["id"]: end for client in clients for end in terminals(client.frames)}
        assert sum(len(terminals(client.frames)) for client in clients) == len(ends) == 2 * len(texts)
        reasons = [ends[f"m-{n}"].get("reason") for n in range(len(texts))]
        assert reasons == [None] * crowd.short + ["draining"] * (crowd.long + crowd.stuck)
        assert {ends[f"w-{n}"]["applied"] for n in range(len(texts))} == {"no"}
        assert all(contiguous(client.frames) for client in clients)
        assert Counter(line["id"] for line in broker.log_events("turn.ended")) == Counter(accepted)


async def test_a_log_that_nobody_reads_any_more(tmp_path: Path) -> None:
    """The first line of the drain hangs in a full pipe, and the whole broker with it: it ends in time all the same."""
    read, write = os.pipe()
    ports, state = tmp_path / "ports.json", tmp_path / "state"
    argv = [sys.executable, "-m", "broker", "serve", "--cli", "simulated", "--listen", "127.0.0.1:0", "--admin",
            "127.0.0.1:0", "--port-file", str(ports)]  # fmt: skip
    own = {"BROKER__STATE__DIR": str(state), "BROKER__STOP__DRAIN_TIMEOUT_S": "0.5"}
    popen = subprocess.Popen(argv, cwd=ROOT, env=os.environ | own, stdout=subprocess.DEVNULL, stderr=write)
    try:
        broker = Broker(popen, tmp_path / "no.log", tmp_path / "no.ledger", state)
        await eventually(ports.exists, 20)
        broker.port = json.loads(ports.read_text())["listen"]
        await broker.wait_spares(4)
        processes = broker.descendants()
        os.set_blocking(write, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(write, b"x"):
                pass
        os.set_blocking(write, True)  # one open file description: the broker's end, too
        began = time.monotonic()
        popen.send_signal(signal.SIGTERM)
        await eventually(lambda: popen.poll() is not None, 20)
        assert (popen.returncode, time.monotonic() - began < 0.5 + 3.0) == (0, True)
        await eventually(lambda: not [row for row in still_there(processes) if row.state != "Z"])
    finally:
        popen.kill()
        popen.wait()
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("signals", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)], ids=str)
async def test_two_signals_at_once(signals: tuple[signal.Signals, ...], tmp_path: Path) -> None:
    """The second one is heard although the first has just come: everything is killed, clients get 1012, exit 0."""
    async with running_broker(tmp_path, config(FAULTS[1], 60)) as broker:
        async with connected(broker.url, hello={}) as client:
            await client.say(LONG, "m-1")
            await three_deltas(client)
            processes = broker.descendants()
            for number in signals:
                broker.popen.send_signal(number)
            began = time.monotonic()
            assert await client.closed() == 1012
            assert [end["reason"] for end in terminals(client.frames)] == ["draining"]
        assert await ended_after(broker, began) < 5
        assert still_there(processes) == []


async def test_a_second_signal_while_spares_are_stopped(tmp_path: Path) -> None:
    """Spares that ignore everything have the whole drain for their ladder; the second signal ends it."""
    async with running_broker(tmp_path, config(FAULTS[1], 60)) as broker:
        await broker.wait_spares(2)
        processes = broker.descendants()
        broker.popen.send_signal(signal.SIGTERM)
        await eventually(lambda: broker.log_events("broker.draining"))
        began = time.monotonic()
        broker.popen.send_signal(signal.SIGTERM)
        assert await ended_after(broker, began) < 5
        assert broker.log_events("broker.second_signal")
        assert still_there(processes) == []


async def test_the_ladder_does_not_add_to_the_bound(tmp_path: Path) -> None:
    """Idle sessions and spares whose CLIs ignore EOF and SIGTERM: killed when the drain's own time is over."""
    async with running_broker(tmp_path, config(FAULTS[1], 0.5)) as broker:
        async with connected(broker.url, hello={}) as client:
            await client.turn("hello")
            processes = broker.descendants()
            began = time.monotonic()
            broker.popen.send_signal(signal.SIGTERM)
            assert await told_to_go(client) == 1012
        assert await ended_after(broker, began) < 3.5
        assert {event["returncode"] for event in broker.log_events("process.gone")} == {-9}
        assert still_there(processes) == []


async def test_a_willing_broker_does_not_wait(tmp_path: Path) -> None:
    """Without turns the end comes at once, however long a drain may take."""
    async with running_broker(tmp_path, config("", 60)) as broker:
        async with connected(broker.url, hello={}) as client:
            began = time.monotonic()
            broker.popen.send_signal(signal.SIGTERM)
            assert await told_to_go(client) == 1012
        assert await ended_after(broker, began) < 10
        assert {event["returncode"] for event in broker.log_events("process.gone")} == {0}


async def test_it_is_not_ready_while_it_drains(tmp_path: Path) -> None:
    """The admin port answers 503 with the reason; nothing new is started, whoever leaves."""
    async with running_broker(tmp_path, config("", 20)) as broker:
        async with connected(broker.url, hello={}) as busy, connected(broker.url, hello={}):
            await busy.say(SHORT, "m-1")
            await three_deltas(busy)
            broker.popen.send_signal(signal.SIGTERM)
            await busy.until_type("broker.go_away")
            status, body = await asyncio.to_thread(broker.get, "/readyz", admin=True)
            assert (status, b"draining" in body) == (503, True)
            known = {row.pid for row in broker.descendants()}
            assert await busy.closed() == 1012
            assert terminals(busy.frames)[-1]["type"] == "broker.turn_completed"
        assert await broker.ended() == 0
        assert {event["pid"] for event in broker.log_events("process.ready")} >= known


async def test_sighup_does_not_disturb_a_drain(tmp_path: Path) -> None:
    """It is heard and ignored: the turn is finished, the end is the same."""
    async with running_broker(tmp_path, config("", 20)) as broker:
        async with connected(broker.url, hello={}) as client:
            await client.say(SHORT, "m-1")
            await three_deltas(client)
            broker.popen.send_signal(signal.SIGTERM)
            await client.until_type("broker.go_away")
            broker.popen.send_signal(signal.SIGHUP)
            await eventually(lambda: broker.log_events("broker.signal_ignored"))
            assert await client.closed() == 1012
            assert terminals(client.frames)[-1]["type"] == "broker.turn_completed"
        assert await broker.ended() == 0
        assert broker.log_events("broker.second_signal") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_signal_before_a_spare_is_warm(number: signal.Signals, tmp_path: Path) -> None:
    """CLIs that never get ready and ignore SIGTERM hold up nothing."""
    faults = "never_ready ignore_term"
    async with running_broker(tmp_path, config(faults, 0.5, start_timeout_s=60), wait_ready=False) as broker:
        processes = await eventually(broker.descendants)
        began = time.monotonic()
        broker.popen.send_signal(number)
        assert await ended_after(broker, began) < 3.5
        assert still_there(processes) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_signal_while_the_pool_fills(number: signal.Signals, tmp_path: Path) -> None:
    """Some are warm, some start, some are not started yet: none is there afterwards, and no failure is counted."""
    async with running_broker(tmp_path, config("slow_start=0.5", 0.5, warm=24), wait_ready=False) as broker:
        await eventually(lambda: broker.pool()["starting"] and broker.pool()["warm"] > 1, 20)
        processes = broker.descendants()
        began = time.monotonic()
        broker.popen.send_signal(number)
        assert await ended_after(broker, began) < 3.5
        assert still_there(processes) == []
        assert broker.log_events("process.start_failed") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_signal_before_any_port_is_open(number: signal.Signals, tmp_path: Path) -> None:
    """While the CLI is asked for its version: exit 0, and that process ends, too."""
    asked = tmp_path / "asked"
    cli = program(tmp_path / "claude", f"touch {asked}; exec {sys.executable} -c 'import signal; signal.pause()'")
    ports = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    async with serving(tmp_path, *ports, "--cli", cli) as process:
        await eventually(asked.exists, 20)
        below = descendants(process.pid)
        process.send_signal(number)
        async with asyncio.timeout(10):
            assert await process.wait() == 0
        await eventually(lambda: not still_there(below))


@pytest.mark.parametrize("name", ["TERM", "INT"])
async def test_a_signal_in_the_moment_of_a_first_process(name: str, tmp_path: Path) -> None:
    """It comes while the broker has not yet noted what it has just started; that process is not left behind either."""
    cli = program(tmp_path / "claude", f"kill -{name} $PPID; exec sleep 4321")
    for _ in range(5):
        async with serving(tmp_path, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cli", cli) as process:
            async with asyncio.timeout(20):
                assert await process.wait() == 0


def descendants(pid: int) -> list[Process]:
    """Every process below ``pid``."""
    table = process_table()
    return [table[one] for one in tree({pid}, table) - {pid} if one in table]
