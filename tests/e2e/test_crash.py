"""A CLI that is killed costs its turn and no more: one terminal frame, the conversation goes on, the pool refills."""

import asyncio
import json
import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e.processes import cli_pid
from tests.kit.broker import Broker, running_broker, started_broker
from tests.kit.client import Client, Frame, connected, contiguous, terminals, text_of
from tests.kit.ledger import cli, processes_of, user_ids
from tests.oracle import Oracle
from tests.processes import read_process
from tests.soak import LONG_S, size
from tests.waiting import eventually

WARM = 4
ROUNDS = size(12, 336)
"""Kills at each moment."""
AT_ONCE = 4
DEADLINE_S = 5.0
"""For the terminal frame; on a quiet machine it takes a few milliseconds."""
LATE = "[[sim ttft_ms=400 tokens=100 itl_ms=10]]"
EARLY = "[[sim tokens=100 itl_ms=10]]"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker whose sessions last as long as their clients."""
    config: dict[str, Any] = {"session": {"detach_timeout_s": 0}, "turn": {"queue": 1000}}
    config["server"] = {"hello_max_bytes": 2**20}
    config["limits"] = {
        "messages_per_second": 5000,
        "messages_burst": 5000,
    }  # messages are sent until a process is there
    config["pool"] = {"profiles": {"default": {"warm": WARM}}}
    with started_broker(tmp_path_factory.mktemp("crash"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


async def first_delta(client: Client) -> Frame:
    """Until the first words of a turn."""
    return await client.until(lambda f: f["type"] == "stream_event" and f["event"]["type"] == "content_block_delta")


async def killed(broker: Broker, client: Client) -> tuple[int, float]:
    """Kill the client's process; its pid and when."""
    pid = cli_pid(broker, client)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return pid, began


async def remembered(client: Client) -> int:
    """How many earlier messages the CLI knows of."""
    before = len(client.frames)
    end = await client.turn("and now")
    assert end["type"] == "broker.turn_completed", end
    return int(text_of(client.frames[before:]).rpartition("yours: ")[2].rstrip("."))


async def doomed(broker: Broker, moment: str) -> float | None:
    """One conversation with one kill, and everything that must hold; seconds from the kill to the terminal frame."""
    async with connected(broker.url, hello={}) as client:
        known, took = 0, None
        if moment in ("turn 2", "after a result"):
            await client.turn("hello", "m-0")
            known = 1
        if moment != "after a result":
            await client.say(LATE if moment == "late in turn 1" else EARLY, "m-1")
            await first_delta(client)
        pid, began = await killed(broker, client)
        if moment != "after a result":
            end = await client.terminal("m-1")
            took = time.monotonic() - began
            told = {key: end[key] for key in ("type", "reason", "applied", "retryable", "detail")}
            assert told == {
                "type": "broker.turn_failed", "reason": "cli_exited", "applied": "yes", "retryable": False,
                "detail": "signal 9",
            }  # fmt: skip
        else:
            # Before its death is noticed a message may still be written to it: see the test of that moment.
            await client.until(lambda frame: frame.get("state") == "restored")
        # At its first delta the first turn has left no transcript yet: that is told, and nothing else.
        is_lost = moment == "early in turn 1"
        known += moment in ("turn 2", "late in turn 1")
        assert await remembered(client) == known
        restored = [frame for frame in client.of_type("broker.state") if frame.get("state") == "restored"]
        assert [frame["reason"] for frame in restored] == ["resume_lost" if is_lost else "resumed"]
        ids = [frame["id"] for frame in terminals(client.frames)]
        assert len(ids) == len(set(ids))
        assert contiguous(client.frames)
        assert read_process(pid) is None, "a zombie"
    return took


@pytest.mark.slow
@pytest.mark.timeout(LONG_S)
@pytest.mark.parametrize("moment", ["early in turn 1", "late in turn 1", "turn 2", "after a result"])
async def test_a_killed_cli_costs_one_turn_at_most(broker: Broker, moment: str) -> None:
    """In every round: one terminal within the deadline, the next message works with the memory that can be there."""
    took: list[float] = []
    failures = broker.metric("broker_stream_failures_total", reason="cli_exited")

    async def rounds(count: int) -> None:
        for _ in range(count):
            seconds = await doomed(broker, moment)
            if seconds is not None:
                took.append(seconds)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(rounds(ROUNDS // AT_ONCE))
    if took:
        p99 = sorted(took)[len(took) * 99 // 100]
        print(f"{moment}: {len(took)} kills, terminal after p50 {statistics.median(took) * 1e3:.0f} ms, "
              f"p99 {p99 * 1e3:.0f} ms, max {max(took) * 1e3:.0f} ms")  # fmt: skip
        assert max(took) < DEADLINE_S
    assert broker.metric("broker_stream_failures_total", reason="cli_exited") - failures == len(took)
    await broker.wait_pool(warm=WARM, leased=0, starting=0, stopping=0)
    assert not [process for process in broker.descendants() if process.state == "Z"]


async def test_what_waited_behind_a_crash_is_not_written(broker: Broker) -> None:
    """Queued means not written: cancelled, to be sent again; nothing runs by itself, and the next message works."""
    async with connected(broker.url, hello={}) as client:
        for number in range(4):
            await client.say(EARLY if number == 0 else f"waiting {number}", f"m-{number}")
        await first_delta(client)
        await killed(broker, client)
        await client.terminal("m-3")
        ends = terminals(client.frames)
        assert [(end["id"], end["reason"], end["applied"], end["retryable"]) for end in ends] == [
            ("m-0", "cli_exited", "yes", False), *((f"m-{n}", "cancelled", "no", True) for n in (1, 2, 3)),
        ]  # fmt: skip
        assert (await client.turn("hello", "m-4"))["type"] == "broker.turn_completed"
        rows = broker.ledger_rows("in")
        assert [found for found in user_ids(rows) if found in ("m-2", "m-4")][-1:] == ["m-4"]
        assert len(terminals(client.frames)) == 5


async def test_a_message_sent_in_the_moment_of_death_is_not_lost(broker: Broker) -> None:
    """Sent right behind the kill of an idle CLI it is answered, or ends as failed: once, and never both."""
    outcomes = set()
    async with connected(broker.url, hello={}) as client:
        for number in range(10):
            await client.turn("hello", f"before-{number}")
            await client.until(lambda frame: frame.get("state") == "idle")
            await killed(broker, client)
            end = await client.turn("at once", f"m-{number}")
            outcomes.add((end["type"], end.get("reason"), end.get("applied")))
            await client.turn("and now", f"after-{number}")
        ids = [frame["id"] for frame in terminals(client.frames)]
        assert ids == [f"{what}-{n}" for n in range(10) for what in ("before", "m", "after")]
    print(outcomes)
    assert outcomes <= {("broker.turn_completed", None, None), ("broker.turn_failed", "cli_exited", "unknown")}


async def test_a_restored_process_is_told_everything_that_was_set(broker: Broker) -> None:
    """Options of hello and every accepted control change hold in the process that follows a crash."""
    options = {"model": "haiku", "permission_mode": "plan"}
    async with connected(broker.url, hello={"options": options}) as client:
        await client.turn("hello")
        assert (await client.control("set_permission_mode", mode="acceptEdits"))["subtype"] == "success"
        assert (await client.control("set_model", model="opus"))["subtype"] == "success"
        await killed(broker, client)
        await client.until(lambda frame: frame.get("state") == "restored")
        await client.say("who are you")
        init = await client.until(lambda frame: frame.get("subtype") == "init")
        assert (init["permissionMode"], "opus" in init["model"]) == ("acceptEdits", True)
        assert (await client.terminal())["type"] == "broker.turn_completed"


async def test_no_message_is_written_before_the_bind_is_answered(broker: Broker) -> None:
    """Also a restored process hears its first message only when every answer that guards safety is in."""
    # A burst that is larger than a pipe takes a while to read.
    options = {"system_prompt": "x" * 250_000, "permission_mode": "plan", "model": "opus", "max_thinking_tokens": 100}
    async with connected(broker.url, hello={"options": options}) as client:
        for number in range(5):
            await client.turn("hello", f"before-{number}")
            await client.until(lambda frame: frame.get("state") == "idle")
            await killed(broker, client)
            last = ""
            for part in range(500):
                last = f"m-{number}-{part}"
                await client.say("[[sim error=529]]", last)
                await client.sync()
                if sum(frame.get("state") == "restored" for frame in client.frames) > number:
                    break
            await client.terminal(last)
        rows = [row for row in broker.ledger_rows() if "line" in row]
        found = processes_of(broker.ledger_rows("meta"), client.welcome["cli"]["session_id"])
        assert len(found) == 6
        for process in found:
            own = [json.loads(row["line"]) for row in rows if cli(row) == process]
            answers = [n for n, line in enumerate(own) if line["type"] == "control_response"]
            told = [n for n, line in enumerate(own) if line["type"] == "user" and line.get("client_composed")]
            assert len(answers) >= 4
            assert not told or answers[-1] < told[0]


async def test_a_refused_option_does_not_stick(broker: Broker) -> None:
    """What the CLI refuses is told to who asked for it; the conversation goes on, and comes back, with what it had."""
    good, bad = {"model": "opus"}, {"model": "nonsense"}
    place = {"mode": "open", "id": "refused"}
    async with connected(broker.url, hello={"session": place, "options": good}) as client:
        await client.turn("hello")
        async with connected(broker.url, hello={"session": place, "options": bad}) as other:
            error = await other.error()
            assert (error["code"], error["message"].partition(":")[0]) == ("bind_failed", "model")
        await killed(broker, client)
        await client.until(lambda frame: frame.get("state") == "restored")
        assert await remembered(client) == 1
        assert "opus" in client.of_type("system")[-1].get("model", "opus")
        await client.send({"type": "broker.end"})
        assert await client.closed() == 1000
    async with connected(broker.url) as late:
        with pytest.raises(ConnectionClosed):
            await late.hello(session=place, options=bad)
        assert await late.closed() == 4506
    async with connected(broker.url, hello={"session": place}) as back:
        await back.say("which model")
        init = await back.until(lambda frame: frame.get("subtype") == "init")
        assert "opus" in init["model"]
        assert (await back.terminal())["is_error"] is False


async def test_a_control_request_to_a_dying_process_is_answered(broker: Broker) -> None:
    """What only the dead process could have answered gets cli_exited; nobody waits for ever."""
    async with connected(broker.url, hello={}) as client:
        await client.say("[[sim hang=1]]", "m-1")
        await first_delta(client)
        await client.ask("set_model", "c-1", model="opus")
        await client.sync()
        await killed(broker, client)
        answer = await client.until_type("control_response")
        assert answer["response"] == {"subtype": "error", "request_id": "c-1", "error": "cli_exited"}
        assert [end["reason"] for end in terminals(client.frames, "m-1")] == ["cli_exited"]


async def test_a_cli_that_dies_at_every_message_is_not_started_in_a_loop(broker: Broker) -> None:
    """Each message costs one failed turn and one start; between them no process is burnt."""
    async with connected(broker.url, hello={}) as client:
        for number in range(4):
            end = await client.turn("[[sim die_after=0]]", f"m-{number}")
            assert (end["type"], end["reason"]) == ("broker.turn_failed", "cli_exited")
        starts = processes_of(broker.ledger_rows("meta"), client.welcome["cli"]["session_id"])
        assert len(starts) <= 5
        assert (await client.turn("hello"))["type"] == "broker.turn_completed"


async def test_a_killed_spare_is_replaced_before_anybody_gets_it(tmp_path: Path) -> None:
    """Every spare is killed at once: whoever comes next is served by a process that lives, and the pool refills."""
    async with running_broker(tmp_path, {"pool": {"profiles": {"default": {"warm": 3}}}}) as broker:
        await broker.wait_spares(3)
        spares = [process.pid for process in broker.descendants()]
        for pid in spares:
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: all(read_process(pid) is None for pid in spares))
        await eventually(lambda: broker.get("/readyz")[0] == 200, 10)
        async with connected(broker.url, hello={}) as client:
            assert (await client.turn("hello"))["type"] == "broker.turn_completed"
            assert cli_pid(broker, client) not in spares
        await broker.wait_spares(3)
