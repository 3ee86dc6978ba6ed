"""Processes that hang, swell, breed or leave heirs: each costs its own turn, typed, and its whole tree is gone."""

import asyncio
import os
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import cli_pid
from tests.kit.broker import ROOT, Broker, running_broker, started_broker
from tests.kit.cgroups import can_have_cgroups, cgroups_of
from tests.kit.client import Client, Frame, connected, contiguous, terminals
from tests.oracle import Oracle
from tests.processes import Process, process_table, read_process, still_there, tree
from tests.soak import IS_SOAK, LONG_S, size
from tests.waiting import eventually

AT_ONCE = 4
SILENCE_S = 2.0
LIMIT_MB = 256
LONG = "[[sim tokens=400 itl_ms=10]] word"
HOLDER = "[[sim grandchild=300 detached tokens=400 itl_ms=10]] word"
SWOLLEN = "[[sim grow=280 tokens=1000 itl_ms=10]] word"
TOOLS = {"options": {"allowed_tools": ["Bash"]}}
SWOLLEN_TOOL = (
    f"[[sim tool=\"Bash:{sys.executable} -S -c 'held = 280 * 1048576 * chr(120); input()' < /dev/zero\"]] word"
)
DEADLINE_S = 10.0
"""For what takes milliseconds on a quiet machine, and a second where memory is looked at."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with a short patience."""
    config: dict[str, Any] = {"session": {"detach_timeout_s": 0}, "turn": {"idle_timeout_s": SILENCE_S}}
    config["pool"] = {"profiles": {"default": {"warm": AT_ONCE}}}
    with started_broker(tmp_path_factory.mktemp("supervision"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with little memory for each process; what swells is silent meanwhile."""
    config: dict[str, Any] = {"session": {"detach_timeout_s": 0}}
    config["pool"] = {"process_memory_mb": LIMIT_MB, "profiles": {"default": {"warm": AT_ONCE}}}
    with started_broker(tmp_path_factory.mktemp("narrow"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker that makes no cgroups, as where it may not."""
    config: dict[str, Any] = {"session": {"detach_timeout_s": 0}, "pool": {"cgroup": "off"}}
    with started_broker(tmp_path_factory.mktemp("without"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


async def in_turns(count: int, scene: Callable[[], Awaitable[float]]) -> list[float]:
    """Play ``scene`` that often, some at once; what each returned."""
    found: list[float] = []

    async def rounds(number: int) -> None:
        for _ in range(number):
            found.append(await scene())  # noqa: PERF401 - what was found so far counts when a later one fails

    async with asyncio.TaskGroup() as group:
        for first in range(AT_ONCE):
            group.create_task(rounds(len(range(first, count, AT_ONCE))))
    return found


def told(what: str, seconds: list[float]) -> str:
    """A line for a report."""
    took = sorted(seconds)
    return (f"{what}: {len(took)}, p50 {statistics.median(took) * 1e3:.0f} ms, "
            f"p99 {took[len(took) * 99 // 100] * 1e3:.0f} ms, max {took[-1] * 1e3:.0f} ms")  # fmt: skip


async def first_delta(client: Client) -> Frame:
    """Until the first words of a turn."""
    return await client.until(lambda f: f["type"] == "stream_event" and f["event"]["type"] == "content_block_delta")


def of_client(client: Client) -> list[Process]:
    """Every process that works in this client's directory, whoever's child it is."""
    session = client.welcome["cli"]["session_id"][:13]
    found = []
    for row in process_table().values():
        try:
            folder = os.readlink(f"/proc/{row.pid}/cwd")
        except OSError:
            continue
        if session in folder:
            found.append(row)
    return found


async def goes_on(broker: Broker, client: Client) -> None:
    """The conversation does, without a repeat or a gap; and nothing of what was ended is left."""
    assert (await client.turn("hello"))["type"] == "broker.turn_completed"
    ids = [frame["id"] for frame in terminals(client.frames)]
    assert len(ids) == len(set(ids))
    assert contiguous(client.frames)


@pytest.mark.timeout(LONG_S)
@pytest.mark.parametrize("way", ["broker", "without"], ids=["with a cgroup, if any", "by its marker"])
async def test_a_daemon_that_holds_stdout_dies_with_its_cli(way: str, request: pytest.FixtureRequest) -> None:
    """Its CLI is killed in mid-stream: the end is told at once, not when the pipe closes, and no heir survives."""
    broker: Broker = request.getfixturevalue(way)
    survived: list[float] = []

    async def scene() -> float:
        async with connected(broker.url, hello={}) as client:
            await client.say(HOLDER, "m-1")
            await first_delta(client)
            family = await eventually(lambda: rows if len(rows := of_client(client)) > 1 else None)
            began = time.monotonic()
            os.kill(cli_pid(broker, client), signal.SIGKILL)
            end = await client.terminal("m-1", DEADLINE_S)
            took = time.monotonic() - began
            assert (end["reason"], end["detail"]) == ("cli_exited", "signal 9")
            await eventually(lambda: not still_there(family))
            survived.append(time.monotonic() - began)
            await goes_on(broker, client)
            return took

    print(told("told", await in_turns(size(4, 300), scene)), told("; all gone", survived))


@pytest.mark.timeout(LONG_S)
async def test_a_cli_that_is_stopped_for_too_long_is_killed(broker: Broker) -> None:
    """SIGSTOP in mid-stream: silence is noticed at its limit, the turn fails typed, the conversation goes on."""

    async def scene() -> float:
        async with connected(broker.url, hello={}) as client:
            await client.say(LONG, "m-1")
            await first_delta(client)
            pid = cli_pid(broker, client)
            began = time.monotonic()
            os.kill(pid, signal.SIGSTOP)
            end = await client.terminal("m-1", SILENCE_S + DEADLINE_S)
            took = time.monotonic() - began
            assert end["reason"] == "idle_timeout"
            await eventually(lambda: read_process(pid) is None)
            await goes_on(broker, client)
            return took

    took = await in_turns(size(4, 25), scene)
    assert min(took) > SILENCE_S * 0.9
    print(told(f"stopped, limit {SILENCE_S:g} s", took))


@pytest.mark.timeout(LONG_S)
async def test_a_cli_that_goes_on_in_time_is_left_alone(broker: Broker) -> None:
    """Stopped for less than the limit, it finishes its turn: nothing is killed."""

    async def scene() -> float:
        async with connected(broker.url, hello={}) as client:
            await client.say("[[sim tokens=60 itl_ms=10]] word", "m-1")
            await first_delta(client)
            pid = cli_pid(broker, client)
            began = time.monotonic()
            os.kill(pid, signal.SIGSTOP)
            try:
                await eventually(lambda: time.monotonic() - began > SILENCE_S / 4)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert (await client.terminal("m-1"))["type"] == "broker.turn_completed"
            assert cli_pid(broker, client) == pid
            await goes_on(broker, client)
            return time.monotonic() - began

    print(told("stopped and continued", await in_turns(size(4, 25), scene)))


@pytest.mark.timeout(LONG_S)
async def test_a_cli_that_swells_is_killed(narrow: Broker) -> None:
    """Above ``pool.process_memory_mb``, by itself or by a tool that it has started; the neighbour is not touched."""
    narrow.expects("process.over_memory")
    before = narrow.metric("broker_process_faults_total", fault="memory")
    count = size(4, 50)
    scenes = iter([SWOLLEN, SWOLLEN_TOOL] * count)

    async def scene() -> float:
        async with connected(narrow.url, hello=TOOLS) as client:
            pid = cli_pid(narrow, client)
            await client.say(next(scenes), "m-1")
            began = time.monotonic()
            end = await client.terminal("m-1")
            took = time.monotonic() - began
            assert (end["reason"], end["retryable"]) == ("cli_killed_memory", False), end
            assert f"pool.process_memory_mb = {LIMIT_MB}" in end["detail"]
            await goes_on(narrow, client)
            left = of_client(client)
            assert pid not in [row.pid for row in left]
            assert len(left) == 1
            return took

    async with connected(narrow.url, hello={}) as neighbour:
        await neighbour.turn("hello")
        pid = cli_pid(narrow, neighbour)
        assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == 500  # the machine's own choice spares the broker
        took = await in_turns(count, scene)
        await goes_on(narrow, neighbour)
        assert cli_pid(narrow, neighbour) == pid
    assert narrow.metric("broker_process_faults_total", fault="memory") - before == count
    assert narrow.metric("broker_stream_failures_total", reason="cli_killed_memory") == count
    print(told("swollen, from the turn's begin to its end", took))


async def test_a_spare_that_swells_is_replaced(tmp_path: Path) -> None:
    """It is killed and counted, and nobody gets it; a reload with another limit holds at once."""
    config: dict[str, Any] = {"cli": {"env": {"SIMULATOR_FAULTS": "grow=280"}}}
    config["pool"] = {"process_memory_mb": LIMIT_MB, "profiles": {"default": {"warm": 1}}}
    async with running_broker(tmp_path, config, wait_ready=False) as broker:
        broker.expects("process.over_memory")
        await eventually(lambda: broker.metric("broker_process_faults_total", fault="memory") > 0, DEADLINE_S)
        await eventually(lambda: broker.log_events("pool.spare_died"), DEADLINE_S)
        assert broker.log_events("process.over_memory")[0]["limit_mb"] == LIMIT_MB
        file = tmp_path / "broker.toml"
        file.write_text(file.read_text().replace(f'"process_memory_mb" = {LIMIT_MB}', '"process_memory_mb" = 1000'))
        broker.popen.send_signal(signal.SIGHUP)
        await eventually(lambda: broker.log_events("config.reloaded"))
        async with connected(broker.url, hello={}) as client:
            await client.say("[[sim tokens=130 itl_ms=10]] word")  # longer than from one look to the next
            end = await client.terminal()
            assert end["type"] == "broker.turn_completed", end


async def test_a_start_that_swells_is_told_as_that(tmp_path: Path) -> None:
    """Killed before it was ready: the log names the memory, not a bare signal."""
    config: dict[str, Any] = {"cli": {"env": {"SIMULATOR_FAULTS": "grow=280 never_ready"}}}
    config["pool"] = {"process_memory_mb": LIMIT_MB, "profiles": {"default": {"warm": 1}}}
    async with running_broker(tmp_path, config, wait_ready=False) as broker:
        broker.expects("process.over_memory")
        await eventually(lambda: broker.log_events("process.start_failed"), DEADLINE_S)
        error = broker.log_events("process.start_failed")[0]["error"]
        assert error.startswith("cli_killed_memory: its processes held ")
        assert error.endswith(f"pool.process_memory_mb = {LIMIT_MB}")


@pytest.mark.slow
@pytest.mark.timeout(LONG_S)
@pytest.mark.parametrize("way", ["cgroup", pytest.param("marker", marks=pytest.mark.full)])
async def test_a_fork_bomb_is_contained(way: str, tmp_path: Path) -> None:
    """Hundreds of processes in sessions of their own: others are served meanwhile, and all go with their CLI.

    With a cgroup also those that scrubbed their environment, and some that fork and die without a pause.
    """
    if way == "cgroup" and (obstacle := can_have_cgroups(tmp_path)):
        pytest.skip(f"no cgroup can be made: {obstacle}")
    sleepers, walkers = (size(60, 240), 10) if way == "cgroup" else (size(30, 240), 0)
    bomb = f"{sys.executable} -S {ROOT}/tests/kit/bomb.py {sleepers} {walkers} 40 {'scrub' if way == 'cgroup' else ''}"
    config: dict[str, Any] = {"pool": {"cgroup": "auto" if way == "cgroup" else "off"}}
    config["session"] = {"detach_timeout_s": 0}
    served, gone = [], []
    async with running_broker(tmp_path / "broker", config) as broker:
        for _ in range(size(1, 20)):
            async with connected(broker.url, hello=TOOLS) as client:
                pid = cli_pid(broker, client)  # now: numbers come round while walkers fork
                await client.say(f'[[sim tool="Bash:{bomb}"]] word', "m-1")
                await eventually(lambda: len(broker.descendants()) > sleepers, 20)
                assert bool(cgroups_of(broker.state)) is (way == "cgroup")
                began = time.monotonic()
                async with connected(broker.url, hello={}) as other:
                    assert (await other.turn("hello"))["type"] == "broker.turn_completed"
                served.append(time.monotonic() - began)
                table = process_table()
                family = [table[pid] for pid in tree({broker.pid}, table) if "sleep" in str(table[pid])]
                assert len(family) >= sleepers
                began = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                assert (await client.terminal("m-1"))["reason"] == "cli_exited"
                await eventually(lambda: not [row for row in still_there(family) if row.state != "Z"])  # noqa: B023
                gone.append(time.monotonic() - began)
                await goes_on(broker, client)
            await broker.wait_pool(leased=0, starting=0, stopping=0)
            await eventually(lambda: len(broker.descendants()) <= 2)
        assert not broker.log_events("process.cgroup_failed")
    print(told(f"{way}: another client served", served), told("; all gone", gone), "soak" if IS_SOAK else "")
