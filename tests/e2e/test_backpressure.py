"""Crowds of readers that take little or nothing: all are cut or served in time, within bounds, and told why.

One of them alone is in ``test_slow_readers``.
"""

import asyncio
import socket
import threading
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.server_bytes import PING
from tests.e2e.beside import forget_peak, no_bug, peak_mb
from tests.kit.broker import Broker, running_broker
from tests.kit.client import Client, connected, contiguous, terminals
from tests.kit.pulse import Pulse, beating
from tests.kit.raw import client_frame
from tests.kit.sipper import Sipper, sipper
from tests.soak import IS_SOAK, LONG_S, size
from tests.waiting import eventually

MEBIBYTE = 2**20
QUIET = {"env": {"SIMULATOR_LEDGER": ""}}
"""No ledger: it would be as long as the floods."""
CONNECTION_MB = 0.6
"""Write buffer, the batch in flight, and the library's own."""


def sessions_of(count: int, **more: Any) -> dict[str, Any]:
    """A configuration with a spare for each of so many sessions."""
    pool = {"max_processes": count + 8, "spawn_concurrency": 4, "profiles": {"default": {"warm": count}}}
    return {"cli": QUIET, "pool": pool, **more}


def back(session: str, instance: str, epoch: str, last_seq: int) -> dict[str, Any]:
    """Hello's fields of an instance that goes on behind ``last_seq``."""
    place = {"mode": "resume", "id": session, "epoch": epoch, "last_seq": last_seq}
    return {"session": place, "client": {"instance": instance}}


def is_honest(client: Client, last_seq: int) -> bool:
    """Whether what came after welcome begins where it was said to, and has no gap."""
    lost, numbered = client.welcome["lost"], client.numbered()
    return not numbered or (numbered[0]["seq"] == (lost["to"] if lost else last_seq) + 1 and contiguous(numbered))


# -- nobody reads ----------------------------------------------------------------------------------------------------

CROWDS = [(200, 1, 0.1), (200, 1, 1), (20, 10, 1)] if IS_SOAK else [(4, 5, 1)]
"""Sessions, each with a CLI of its own; readers of each: a controller and observers stall together; MB/s of each CLI.
At 100 KB/s, 25 lines of 4 KB a second, a CLI says far more than a model does; 200 MB/s are more than two cores
carry."""
DEADLINE_S = size(1, 10)
FREED_WITHIN_S = DEADLINE_S + 2
BEATS = size(20, 400)


@pytest.mark.slow
@pytest.mark.timeout(LONG_S)
@pytest.mark.parametrize(("sessions", "readers", "rate"), CROWDS)
async def test_a_crowd_that_stops_reading_is_cut_and_told(
    tmp_path: Path, sessions: int, readers: int, rate: float
) -> None:
    """All of them are gone soon after send_deadline_s; memory is that of the logs; each comes back, is told that it
    was too slow, and what it lost."""
    config = sessions_of(sessions + 1, server={"send_deadline_s": DEADLINE_S}, session={"detach_timeout_s": 600})
    async with running_broker(tmp_path, config) as broker, AsyncExitStack() as stack:
        await broker.wait_spares(sessions + 1, 240)
        neighbour = await stack.enter_async_context(connected(broker.url, hello={}))
        idle = Pulse(neighbour)
        await idle.beat(BEATS)
        resident, epochs, stalled = forget_peak(broker), {}, []
        for number in range(sessions):
            for place in range(readers):
                hello = {"client": {"instance": f"tab-{place}"}, "role": "observer" if place else "controller"}
                client = await stack.enter_async_context(sipper(broker, f"s-{number}", hello=hello))
                stalled.append(client)
                epochs[f"s-{number}"] = client.frames[-1]["epoch"]
                if place == readers - 1:
                    talking = stalled[-readers]
                    said = f"[[sim flood={round(40e6 * rate)}:4096:{rate:g}]]"
                    await talking.say({"type": "user_message", "id": "m-1", "content": said})
        began = time.monotonic()
        async with beating(neighbour) as loud:
            await eventually(lambda: all(client.is_cut() for client in stalled), FREED_WITHIN_S + 40)
            took = time.monotonic() - began
            grown = peak_mb(broker) - resident
        print(f"{len(stalled)} stalled readers of {sessions} sessions at {rate:g} MB/s: all cut {took:.1f} s after the "
              f"last had begun, "
              f"+{grown:.0f} MiB; neighbour {loud.told()}; idle {idle.told()}; "
              f"p99 x {loud.at(0.99) / idle.at(0.99):.1f}")  # fmt: skip
        assert took < FREED_WITHIN_S + 10  # the figure is printed; a busy machine is given more
        assert grown < 1.1 * (min(512, sessions * 8) * 1.5 + len(stalled) * CONNECTION_MB)
        assert len(broker.log_events("connection.stalled")) == len(stalled)
        for session, epoch in epochs.items():
            for place in reversed(range(readers)):
                hello = back(session, f"tab-{place}", epoch, 0) | ({"role": "observer"} if place else {})
                async with connected(broker.url, hello=hello) as again:
                    assert again.welcome["last_close"] == "slow_consumer"
                    lost = again.welcome["lost"]
                    assert lost is None or lost["reason"] in ("too_far_behind", "expired")  # expired: all logs together
                    if not place:
                        await again.send({"type": "broker.delete"})
        assert no_bug(broker)


# -- a thin line -----------------------------------------------------------------------------------------------------

THIN = size(2, 20)
"""Half of them have a conversation that fits into the log, half one that does not."""
BYTES_PER_S = size(100_000, 10_000)
SIP = 1024


async def sipped(client: Sipper) -> None:
    """Read at ``BYTES_PER_S`` until the turn has ended or the connection has."""
    due = time.monotonic()
    while not any(text.startswith(b'{"type":"broker.turn_') for text in client.texts[-3:]) and await client.sip(SIP):
        due += SIP / BYTES_PER_S
        await eventually(lambda due=due: time.monotonic() >= due)  # type: ignore[misc]


async def thin(broker: Broker, number: int) -> str | None:
    """One client on a thin line; what it is told when it is back, in the end with the whole of what is kept."""
    name, is_long = f"thin-{number}", number % 2
    hello = {"client": {"instance": "tab"}}
    async with sipper(broker, name, hello=hello) as client:
        epoch = client.frames[-1]["epoch"]
        said = f"[[sim flood={3_000_000 if is_long else 60_000}:300:{1 if is_long else 0.1}]]"
        await client.say({"type": "user_message", "id": "m-1", "content": said})
        await sipped(client)
        frames = client.frames
    last = max(frame.get("seq", 0) for frame in frames)
    assert contiguous(frames)
    ended = terminals(frames)
    assert len(ended) == (not is_long)
    async with connected(broker.url, hello=back(name, "tab", epoch, last)) as again:
        told: str | None = again.welcome["last_close"]
        if is_long:
            assert again.welcome["lost"]["reason"] == "too_far_behind"
            assert again.welcome["lost"]["from"] == last + 1
            await again.terminal("m-1")
            await again.sync()
            assert len(terminals(again.frames)) == 1
        else:
            assert again.welcome["lost"] is None
        assert is_honest(again, last)
    return told


@pytest.mark.slow
@pytest.mark.timeout(LONG_S)
async def test_thin_lines_are_served_or_told(tmp_path: Path) -> None:
    """Who is slow and not behind gets everything; who falls off the log is told so when it is back: no gap is
    silent, and memory is that of the logs."""
    async with running_broker(tmp_path, sessions_of(THIN, replay={"bytes": MEBIBYTE})) as broker:
        await broker.wait_spares(THIN, 60)
        resident = forget_peak(broker)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(thin(broker, number)) for number in range(THIN)]
        grown = peak_mb(broker) - resident
        print(f"{THIN} clients at {BYTES_PER_S / 1000:g} KB/s: +{grown:.1f} MiB, {grown / THIN:.2f} each")
        assert [task.result() for task in tasks] == [None, "slow_consumer"] * (THIN // 2)
        assert grown < THIN * 2.5
        assert no_bug(broker)


# -- pings -----------------------------------------------------------------------------------------------------------

PINGERS = size(8, 20)
PINGS = client_frame(b"x" * 125, PING) * 500


def pour(port: int, took: list[tuple[int, float]]) -> None:
    """100 MiB of pings, and not one pong read; how much went out, and in how many seconds it was over."""
    sent, began = 0, time.monotonic()
    fields = (f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade",
              "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13")  # fmt: skip
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall("\r\n".join(["GET /v1/chat/ws HTTP/1.1", *fields, "", ""]).encode())
        try:
            sock.sendall(client_frame(b'{"type":"broker.hello"}'))
            while sent < 100 * MEBIBYTE:
                sock.sendall(PINGS)
                sent += len(PINGS)
        except OSError:
            pass
    took.append((sent, time.monotonic() - began))


@pytest.mark.timeout(LONG_S)
async def test_a_crowd_that_pours_pings_is_cut(tmp_path: Path) -> None:
    """Many at once, each long before its 100 MiB are out; together they cost 20 MiB at most."""
    config = sessions_of(PINGERS // 4, session={"detach_timeout_s": 0})
    async with running_broker(tmp_path, config) as broker, connected(broker.url, hello={}) as neighbour:
        pulse = Pulse(neighbour)
        resident, took = forget_peak(broker), list[tuple[int, float]]()
        threads = [threading.Thread(target=partial(pour, broker.port, took)) for _ in range(PINGERS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await pulse.beat(1)
        grown = peak_mb(broker) - resident
        print(f"{PINGERS} ping floods: cut after {max(t for _, t in took):.1f} s and {max(n for n, _ in took) >> 10} "
              f"KiB at most, +{grown:.1f} MiB; neighbour {pulse.told()}")  # fmt: skip
        assert len(took) == PINGERS
        assert max(sent for sent, _ in took) < 100 * MEBIBYTE
        assert grown < 20
        await eventually(lambda: broker.metric("broker_disconnects_total", reason="ping_flood") == PINGERS)
        assert no_bug(broker)


# -- nobody is there -------------------------------------------------------------------------------------------------


async def test_a_log_that_is_full_with_nobody_there_keeps_the_end(tmp_path: Path) -> None:
    """The CLI is not paused for want of a reader: its turn ends; who comes back is told the range that is lost, and
    sees the rest of the turn with its one end."""
    config = sessions_of(2, replay={"bytes": MEBIBYTE})
    async with running_broker(tmp_path, config) as broker:
        async with connected(broker.url, hello={"session": {"id": "full"}}) as client:
            await client.say("[[sim flood=6000000:4096]] a", "m-1")
            await client.until_type("stream_event")
            epoch, last = client.welcome["epoch"], client.last_seq
            client.socket.transport.abort()
        await eventually(lambda: broker.log_events("turn.ended"), 20)
        async with connected(broker.url, hello=back("full", "tab", epoch, last)) as again:
            lost = again.welcome["lost"]
            assert (lost["from"], lost["reason"]) == (last + 1, "too_far_behind")
            await again.sync()
            assert [(end["type"], end["id"]) for end in terminals(again.frames)] == [("broker.turn_completed", "m-1")]
            assert is_honest(again, last)
            assert sum(map(len, again.texts)) < 1.1 * MEBIBYTE
            assert again.welcome["last_close"] is None  # it left by itself
            assert (await again.turn("hello", "m-2"))["is_error"] is False
        assert no_bug(broker)
