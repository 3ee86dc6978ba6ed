"""A broker tells its supervisor when it is ready, that it lives, and when it stops."""

import signal
from pathlib import Path

from tests.kit.broker import running_broker
from tests.kit.client import connected
from tests.kit.supervisor import supervisor
from tests.waiting import eventually


async def test_ready_comes_with_the_first_warm_process(tmp_path: Path) -> None:
    """Not with the ports: before it, /readyz says 503; STOPPING comes with the drain; no CLI sees the socket."""
    with supervisor(tmp_path / "notify") as told:
        config = {"cli": {"env": {"SIMULATOR_FAULTS": "slow_start=1"}}}
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        async with running_broker(tmp_path, config, wait_ready=False, environment=environment) as broker:
            was_ready = broker.get("/readyz")[0] == 200
            assert told.states == [] or was_ready
            await eventually(lambda: told.states, 30)
            assert broker.get("/readyz")[0] == 200
            assert ["READY=1", "STATUS=serving"] in told.messages
            async with connected(broker.url, hello={}) as client:
                await client.turn("hello")
                for row in broker.descendants():
                    assert b"NOTIFY_SOCKET" not in Path(f"/proc/{row.pid}/environ").read_bytes()
            assert told.states == ["READY=1"]
            assert await broker.stop() == 0
        assert told.states == ["READY=1", "STOPPING=1"]
        assert told.count("WATCHDOG=1") == 0


async def test_signs_of_life(tmp_path: Path) -> None:
    """As often as the watchdog wants them, also while a turn is drained."""
    with supervisor(tmp_path / "notify") as told:
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        async with running_broker(tmp_path, environment=environment) as broker:
            await eventually(lambda: told.count("WATCHDOG=1") > 5)
            async with connected(broker.url, hello={}) as client:
                await client.say("[[sim tokens=100 itl_ms=10]] word")
                await client.until_type("stream_event")
                broker.popen.send_signal(signal.SIGTERM)
                await client.until_type("broker.go_away")
                before = told.count("WATCHDOG=1")
                await eventually(lambda: told.count("WATCHDOG=1") > before + 1)
                assert await client.closed() == 1012
            assert await broker.ended() == 0
        assert told.states == ["READY=1", "STOPPING=1"]
