"""Output that no CLI should make: floods, endless lines, garbage.  The broker stays small, and fair to others."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from simulator.floods import GARBAGE
from tests.e2e.beside import forget_peak, no_bug, peak_mb
from tests.kit.broker import Broker, running_broker, started_broker
from tests.kit.client import Client, connected, contiguous, text_of
from tests.kit.pulse import Pulse, beating
from tests.oracle import Oracle
from tests.soak import IS_SOAK, LONG_S, size
from tests.waiting import eventually

MEBIBYTE = 2**20
LINE_CAP_MB = 16
REPLAY_MB = 8
SILENCE_S = 5.0
QUIET: dict[str, Any] = {"cli": {"env": {"SIMULATOR_LEDGER": ""}}}
"""No ledger: it would be as long as the floods."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker that soon gives up on a turn in which nothing is said."""
    config = {
        **QUIET,
        "turn": {"first_token_timeout_s": SILENCE_S, "idle_timeout_s": SILENCE_S},
        "session": {"detach_timeout_s": 0},
        "pool": {"profiles": {"default": {"warm": 2}}},
    }
    with started_broker(tmp_path_factory.mktemp("output"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


def dropped(broker: Broker) -> dict[str, float]:
    """The counter of lines that were not forwarded, by reason."""
    reasons = ("too_large", "bad_utf8", "not_json", "not_an_object")
    return {reason: broker.metric("broker_cli_frames_dropped_total", reason=reason) for reason in reasons}


# -- garbage ---------------------------------------------------------------------------------------------------------


async def test_garbage_is_told_and_counted_and_the_turn_goes_on(broker: Broker) -> None:
    """Each line that is no message is one broker.dropped in its place, with its size and reason; empty lines are
    nothing; the counters say the same, and the words around them arrive."""
    count, before = 5 * len(GARBAGE), dropped(broker)
    async with connected(broker.url, hello={}) as client:
        end = await client.turn(f"[[sim garbage={count} blank=1000000 tokens=3]] word", "m-1")
        assert (end["type"], end["is_error"]) == ("broker.turn_completed", False)
        assert text_of(client.frames) == "word0 word1 word2 "
        assert contiguous(client.numbered())
        told = [(frame["bytes"], frame["reason"]) for frame in client.of_type("broker.dropped")]
        reasons = ("not_json", "bad_utf8", "not_json", "not_json", "not_an_object", "not_an_object", "not_json",
                   "not_json")  # fmt: skip
        assert told == [(len(line), reason) for line, reason in zip(GARBAGE, reasons, strict=True)] * 5
        counts = Counter(reason for _, reason in told)
        assert dropped(broker) == {reason: value + counts[reason] for reason, value in before.items()}
        assert (await client.turn("hello", "m-2"))["is_error"] is False
    assert no_bug(broker)


# -- lines -----------------------------------------------------------------------------------------------------------

LINE_MB = size(40, 200)
LINES = size(2, 100)


@pytest.mark.timeout(LONG_S)
async def test_a_line_over_the_cap_is_told_and_costs_no_more_than_the_cap(broker: Broker) -> None:
    """The line is gone, broker.dropped says how long it was, the turn completes, and memory saw no more than the cap
    with its slack."""
    before, peaks = dropped(broker)["too_large"], []
    async with connected(broker.url, hello={}) as client:
        await client.turn("hello", "m-0")
        for number in range(LINES):
            resident = forget_peak(broker)
            end = await client.turn(f"[[sim huge_line={LINE_MB * MEBIBYTE} tokens=1]] a", f"m-1-{number}", 60)
            assert (end["type"], end["is_error"]) == ("broker.turn_completed", False)
            peaks.append(peak_mb(broker) - resident)
        told = [(frame["bytes"], frame["reason"]) for frame in client.of_type("broker.dropped")]
        assert told == [(LINE_MB * MEBIBYTE, "too_large")] * LINES
        assert contiguous(client.numbered())
    assert dropped(broker)["too_large"] == before + LINES
    print(f"{LINES} lines of {LINE_MB} MiB: {len(told)} told, at most {max(peaks):.1f} MiB above what was resident")
    assert max(peaks) < 1.5 * LINE_CAP_MB  # a buffer that grows is copied
    assert no_bug(broker)


async def endless(broker: Broker, number: int) -> None:
    """One conversation whose CLI never ends its line, and what comes after it."""
    async with connected(broker.url, hello={"session": {"id": f"endless-{number}"}}) as client:
        end = await client.turn(f"[[sim endless={LINE_MB * MEBIBYTE}]] a", "m-1", 60)
        assert (end["type"], end["reason"], end["retryable"]) == ("broker.turn_failed", "first_token_timeout", False)
        assert (await client.turn("hello", "m-2"))["type"] == "broker.turn_completed"
        assert client.of_type("broker.dropped") == []  # a line that has no end is no line
        assert contiguous(client.numbered())


@pytest.mark.timeout(LONG_S)
async def test_a_line_without_an_end_is_silence(broker: Broker) -> None:
    """Bytes that make no line are no life: the watchdog ends the turn, the next message has a new process, and what
    was held of the line is gone."""
    resident, todo = forget_peak(broker), list(range(LINES))

    async def some() -> None:
        while todo:
            await endless(broker, todo.pop())

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(some())
    print(f"{LINES} endless lines of {LINE_MB} MiB, two at a time: {peak_mb(broker) - resident:.1f} MiB more")
    assert peak_mb(broker) - resident < 2 * 1.5 * LINE_CAP_MB
    assert no_bug(broker)


# -- floods ----------------------------------------------------------------------------------------------------------

NORMAL = size(2, 20)
EACH = size(1, 2)
"""Children that flood, of each kind."""
FLOODS = ["flood=50000000000", "flood=50000000000:2", "blank=256000000 flood=50000000000:60",
          "stderr_flood=50000000000"]  # fmt: skip
BEATS = size(40, 1500)


async def turns(clients: list[Client], stop: asyncio.Event) -> Pulse:
    """Short turns on every client until ``stop``; how long each took."""
    pulse = Pulse(clients[0])

    async def talk(client: Client) -> None:
        while not stop.is_set():
            began = asyncio.get_running_loop().time()
            assert (await client.turn("[[sim tokens=3]] a"))["is_error"] is False
            pulse.times.append(asyncio.get_running_loop().time() - began)
            client.frames.clear()
            client.texts.clear()

    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(talk(client))
    return pulse


async def measured(neighbour: Client, clients: list[Client]) -> tuple[Pulse, Pulse]:
    """Round trips of a neighbour, and turns of the others meanwhile."""
    pulse, stop = Pulse(neighbour), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        talking = group.create_task(turns(clients, stop))
        await pulse.beat(BEATS)
        stop.set()
    return pulse, talking.result()


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(LONG_S)
async def test_floods_take_nothing_from_others(tmp_path: Path) -> None:
    """Children that say as much as they can, in long lines, in tiny ones, in none and on stderr: others go on, and
    memory stays within the sessions' logs."""
    flooding = len(FLOODS) * EACH
    pool = {"max_processes": 64, "spawn_concurrency": 4, "profiles": {"default": {"warm": NORMAL + flooding + 1}}}
    config = {**QUIET, "pool": pool, "limits": {"messages_per_second": 1000, "messages_burst": 1000}}
    async with running_broker(tmp_path, config) as broker, AsyncExitStack() as stack:
        await broker.wait_spares(NORMAL + flooding + 1)
        normal = [await stack.enter_async_context(connected(broker.url, hello={})) for _ in range(NORMAL)]
        neighbour = await stack.enter_async_context(connected(broker.url, hello={}))
        idle = await measured(neighbour, normal)
        resident = forget_peak(broker)
        for number in range(flooding):
            async with connected(broker.url, hello={"session": {"id": f"flood-{number}"}}) as client:
                await client.say(f"[[sim {FLOODS[number % len(FLOODS)]}]] a", "m-1")
                await client.until_type("broker.message")
        loud = await measured(neighbour, normal)
        grown = peak_mb(broker) - resident
        print(f"{flooding} floods beside {NORMAL}: +{grown:.1f} MiB")
        for name, before, after in zip(("round trips", "turns"), idle, loud, strict=True):
            print(f"  {name}: {before.told()}; flooded: {after.told()}; p99 x {after.at(0.99) / before.at(0.99):.1f}")
        assert grown < flooding * 2 * REPLAY_MB + 20
        for number in range(flooding):
            hello = {"session": {"mode": "resume", "id": f"flood-{number}"}}
            async with connected(broker.url, hello=hello) as client:
                client.socket.transport.pause_reading()  # it does not read what it is shown: it only ends it
                await client.send({"type": "broker.delete"})
                await eventually(lambda name=hello["session"]["id"]: _is_gone(broker, name), 20)  # type: ignore[misc]
        assert no_bug(broker)


def _is_gone(broker: Broker, session: str) -> bool:
    return all(each["id"] != session for each in broker.json("/v1/sessions")["data"])


@pytest.mark.parametrize(("name", "flood"), [("tiny", "flood=4000000:2"), ("blank", "blank=12000000")])
async def test_tiny_lines_hold_nobody_up(broker: Broker, name: str, flood: str) -> None:
    """A read holds tens of thousands of lines of a byte: a neighbour is served between them."""
    async with connected(broker.url, hello={}) as other:
        async with connected(broker.url, hello={"session": {"id": name}}) as client:
            await client.say(f"[[sim {flood}]] a", "m-1")
            await client.until_type("stream_event")
        async with beating(other) as pulse, asyncio.timeout(40):
            await eventually(lambda: any(e["session"] == name for e in broker.log_events("turn.ended")), 40)
    print(pulse.told() if IS_SOAK else "")
    assert pulse.at(1) < 1000
    assert no_bug(broker)
