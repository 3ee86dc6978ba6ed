"""The end of a broker, asked for or not: turns are finished or told, clients are told, and no process stays behind."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidHandshake

from tests.kit.broker import Broker, running_broker
from tests.kit.client import Client, connected, contiguous, terminals, text_of
from tests.processes import Process, still_there
from tests.waiting import eventually

LONG = "[[sim tokens=3000 itl_ms=10]] word"
HOLDER = "[[sim grandchild=300 tokens=3]] word"
DETACHED = "[[sim grandchild=300 detached tokens=3]] word"
QUICKLY = {"eof_grace_s": 0.3, "term_grace_s": 0.3, "drain_timeout_s": 0.3}


async def grandchild(broker: Broker, seconds: str = "300") -> Process:
    """The one below the broker that sleeps for so long; it may not have begun to when its turn has ended."""

    def sleeper() -> Process | None:
        found = (row for row in broker.descendants() if command(row) == f"sleep\0{seconds}\0".encode())
        return next(found, None)

    return await eventually(sleeper)


def command(process: Process) -> bytes:
    """Its command line, empty when it is gone."""
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def first_delta(client: Client) -> None:
    """Until the first words of a turn."""
    await client.until(lambda f: f["type"] == "stream_event" and f["event"]["type"] == "content_block_delta")


def clean(broker: Broker) -> bool:
    """Of the sessions only what is kept lies on disk."""
    spares = [path for path in (broker.state / "sessions").iterdir() if not list(path.glob("home/.claude/*"))]
    return not spares


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_running_turn_is_finished(number: signal.Signals, tmp_path: Path) -> None:
    """go_away, then the rest of the turn and its terminal, then 1012; exit 0, no child, no new socket meanwhile."""
    async with running_broker(tmp_path) as broker:
        async with connected(broker.url, hello={}) as busy, connected(broker.url, hello={}) as idle:
            await busy.say("[[sim tokens=100 itl_ms=5]] word", "m-1")
            await first_delta(busy)
            processes = broker.descendants()
            broker.popen.send_signal(number)
            assert (await idle.until_type("broker.go_away"))["reason"] == "draining"
            assert (await busy.until_type("broker.go_away"))["reconnect_after_ms"] > 0
            with pytest.raises((OSError, InvalidHandshake)):  # refused; 503 or nothing while the port closed
                async with connected(broker.url):
                    pass
            assert await idle.closed() == 1012
            assert await busy.closed() == 1012
            assert terminals(busy.frames)[-1]["type"] == "broker.turn_completed"
            assert text_of(busy.frames) == "".join(f"word{n} " for n in range(100))
            assert contiguous(busy.frames)
        assert await broker.ended() == 0
        assert still_there(processes) == []
        assert clean(broker)


async def test_a_turn_that_takes_too_long_is_told(tmp_path: Path) -> None:
    """After stop.drain_timeout_s: turn_failed draining, what waits is told at once; exactly one terminal each."""
    async with running_broker(tmp_path, {"stop": QUICKLY}) as broker:
        async with connected(broker.url, hello={}) as client:
            await client.say(LONG, "m-1")
            await client.say("waiting", "m-2")
            await first_delta(client)
            processes = broker.descendants()
            began = time.monotonic()
            broker.popen.send_signal(signal.SIGTERM)
            assert await client.closed() == 1012
            ends = {end["id"]: end for end in terminals(client.frames)}
            assert len(terminals(client.frames)) == len(ends) == 2
            assert (ends["m-1"]["reason"], ends["m-1"]["applied"]) == ("draining", "yes")
            assert (ends["m-2"]["applied"], ends["m-2"]["retryable"]) == ("no", True)
        assert await broker.ended() == 0
        assert time.monotonic() - began < 8
        assert still_there(processes) == []


async def test_a_message_that_comes_while_it_drains_is_refused(tmp_path: Path) -> None:
    """The error draining says that it may be sent again, elsewhere or later; no turn begins."""
    async with running_broker(tmp_path) as broker:
        async with connected(broker.url, hello={}) as busy, connected(broker.url, hello={}) as idle:
            await busy.say("[[sim tokens=100 itl_ms=10]] word", "m-1")
            await first_delta(busy)
            broker.popen.send_signal(signal.SIGTERM)
            for client in (busy, idle):
                await client.until_type("broker.go_away")
            await busy.say("too late", "m-2")
            assert await busy.closed() == 1012
            errors = [(frame["code"], frame["retryable"], frame["ref"]) for frame in busy.of_type("broker.error")]
            assert errors == [("draining", True, "m-2")]
            assert [end["id"] for end in terminals(busy.frames)] == ["m-1"]
        assert await broker.ended() == 0


async def test_who_has_no_process_yet_is_told_too(tmp_path: Path) -> None:
    """A socket without hello and one that waits for a process end at once with 1012, not at some deadline."""
    async with running_broker(tmp_path, {"pool": {"max_processes": 1, "profiles": {"default": {"warm": 1}}}}) as broker:
        async with connected(broker.url, hello={}), connected(broker.url) as silent, connected(broker.url) as waiting:
            await waiting.send({"type": "broker.hello"})
            await waiting.until_type("broker.waiting")
            began = time.monotonic()
            broker.popen.send_signal(signal.SIGTERM)
            assert await silent.closed() == 1012
            assert await waiting.closed() == 1012
            assert time.monotonic() - began < 3
        assert await broker.ended() == 0
        assert time.monotonic() - began < 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("message", [HOLDER, DETACHED], ids=["in its group", "in a session of its own"])
async def test_a_grandchild_that_holds_the_pipe_ends_too(message: str, number: signal.Signals, tmp_path: Path) -> None:
    """Exit 0 and nothing left, although a grandchild has the CLI's stdout and stderr open and left its group."""
    async with running_broker(tmp_path) as broker:
        async with connected(broker.url, hello={}) as client:
            assert (await client.turn(message))["type"] == "broker.turn_completed"
            held = await grandchild(broker)
            processes = broker.descendants()
            assert held.pid in {row.pid for row in processes}
        began = time.monotonic()
        assert await broker.stop(number) == 0
        print(f"ended in {time.monotonic() - began:.2f} s")
        assert time.monotonic() - began < 6
        assert still_there(processes) == []


async def test_a_grandchild_of_a_session_that_ended_is_not_kept(tmp_path: Path) -> None:
    """It goes with its process, not only with the broker; the neighbour's process is not touched."""
    async with running_broker(tmp_path) as broker:
        async with connected(broker.url, hello={}) as neighbour:
            async with connected(broker.url, hello={}) as client:
                await client.turn(DETACHED)
                held = await grandchild(broker)
                await client.send({"type": "broker.end"})
                assert await client.closed() == 1000
            await eventually(lambda: not still_there([held]), 10)
            assert (await neighbour.turn("hello"))["type"] == "broker.turn_completed"


@pytest.mark.parametrize("is_detached", [True, False], ids=["in a session of its own", "in its group"])
async def test_a_grandchild_that_ends_by_itself_is_reaped(is_detached: bool, tmp_path: Path) -> None:
    """No zombie stays, neither while its session lives nor after it."""
    async with running_broker(tmp_path) as broker:
        async with connected(broker.url, hello={}) as client:
            await client.turn(f"[[sim grandchild=1.25 {'detached' if is_detached else ''} tokens=3]] word")
            held = await grandchild(broker, "1.25")
            if not is_detached:
                await client.send({"type": "broker.end"})
                assert await client.closed() == 1000
            await eventually(lambda: not still_there([held]), 10)
            assert not [row for row in broker.descendants() if row.state == "Z"]


@pytest.mark.parametrize("is_busy", [True, False], ids=["while it drains", "while it stops processes"])
@pytest.mark.parametrize("faults", ["ignore_term ignore_eof", ""], ids=["stubborn", "willing"])
async def test_a_second_signal_ends_at_once(faults: str, is_busy: bool, tmp_path: Path) -> None:
    """No waiting for turns, no stop ladder: everything is killed; still exit 0 and nothing left."""
    config: dict[str, Any] = {"stop": {"eof_grace_s": 20, "term_grace_s": 20, "drain_timeout_s": 60}}
    config["cli"] = {"env": {"SIMULATOR_FAULTS": faults}}
    async with running_broker(tmp_path, config) as broker:
        async with connected(broker.url, hello={}) as client:
            if is_busy:
                await client.say(LONG, "m-1")
                await first_delta(client)
            processes = broker.descendants()
            broker.popen.send_signal(signal.SIGTERM)
            await client.until_type("broker.go_away")
            if not is_busy:
                assert await client.closed() == 1012
            began = time.monotonic()
            broker.popen.send_signal(signal.SIGTERM)
            assert await broker.ended() == 0
            took = time.monotonic() - began
            print(f"ended in {took:.2f} s")
            assert took < 5
            assert still_there(processes) == []
            assert await client.closed() in (1012, 1006)


async def test_a_cli_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    """The stop ladder: end of stdin, SIGTERM, SIGKILL, within its graces."""
    config: dict[str, Any] = {"stop": QUICKLY, "cli": {"env": {"SIMULATOR_FAULTS": "ignore_term ignore_eof"}}}
    async with running_broker(tmp_path, config) as broker:
        processes = broker.descendants()
        assert processes
        assert await broker.stop() == 0
        assert {event["returncode"] for event in broker.log_events("process.gone")} == {-9}
        assert still_there(processes) == []


async def test_a_killed_broker_leaves_no_process(tmp_path: Path) -> None:
    """kill -9 of the broker: spares, idle and busy processes are gone a second later."""
    config: dict[str, Any] = {"cli": {"env": {"SIMULATOR_FAULTS": "ignore_term ignore_eof"}}}
    async with running_broker(tmp_path, config) as broker:
        await broker.wait_spares(2)
        async with connected(broker.url, hello={}) as busy, connected(broker.url, hello={}) as idle:
            await idle.turn("hello")
            await busy.say(LONG)
            await first_delta(busy)
            await broker.wait_pool(leased=2, warm=2)
            processes = broker.descendants()
            assert len(processes) == 4
            began = time.monotonic()
            assert await broker.stop(signal.SIGKILL) == -signal.SIGKILL
            await eventually(lambda: not [row for row in still_there(processes) if row.state != "Z"], 5)
            print(f"{len(processes)} processes gone {(time.monotonic() - began) * 1e3:.0f} ms after the kill")
            assert time.monotonic() - began < 2
            assert await busy.closed() == 1006


async def test_what_a_killed_broker_left_is_swept(tmp_path: Path) -> None:
    """The next start ends the tools that outlived the killed one's CLIs, and wipes the directories of its spares."""
    async with running_broker(tmp_path) as broker:
        async with connected(broker.url, hello={"options": {"allowed_tools": ["Bash"]}}) as client:
            await client.say('[[sim tool="Bash:sleep 300"]] please')
            held = await grandchild(broker)
            left = {path.name for path in (broker.state / "sessions").iterdir()}
            own = client.welcome["cli"]["session_id"][:13]
            assert len(left) > 1
            assert await broker.stop(signal.SIGKILL) == -signal.SIGKILL
    assert [row.pid for row in still_there([held])] == [held.pid]
    async with running_broker(tmp_path) as again:
        await eventually(lambda: not still_there([held]))
        assert left & {path.name for path in (again.state / "sessions").iterdir()} == {own}
        assert await again.stop() == 0
