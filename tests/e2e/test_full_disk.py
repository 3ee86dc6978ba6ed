"""The disk of ``state.dir`` runs full and is given room again: what is told, what goes on, what is there afterwards."""

import signal
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.kit.broker import Broker, running_broker
from tests.kit.client import Client, Frame, connected, text_of
from tests.kit.ledger import user_ids
from tests.kit.small_disk import SmallDisk, small_disk
from tests.soak import size
from tests.waiting import eventually

REFUSED = size(20, 1000)
LONG = "[[sim tokens=1500 itl_ms=1]] long"
"""Its answer takes more than what is left of the transcript's last page: the CLI's line is torn."""
PLACE = {"session": {"mode": "open", "id": "full"}}


async def receipt(client: Client, text: str, message_id: str) -> Frame:
    """What a message is answered with."""
    await client.say(text, message_id)
    return await client.until(lambda frame: frame["type"] in ("broker.accepted", "broker.error"))


async def known(client: Client, message_id: str, text: str = "hello") -> int:
    """How many earlier messages the CLI knew when it answered this one."""
    before = len(client.frames)
    end = await client.turn(text, message_id)
    assert (end["type"], end["is_error"]) == ("broker.turn_completed", False)
    return int(text_of(client.frames[before:]).rpartition("yours: ")[2].rstrip("."))


async def refusal(broker: Broker) -> tuple[int, str]:
    """The close code and the error of a hello that finds no process."""
    async with connected(broker.url) as client:
        with pytest.raises(ConnectionClosed):
            await client.hello(options={"tools": []})
        return await client.closed(), client.of_type("broker.error")[-1]["code"]


async def filled(client: Client, disk: SmallDisk) -> None:
    """While one message runs and another waits: the first is answered, the second is not written."""
    await client.say(LONG, "long")
    await client.say("waits", "waits")
    await client.until(lambda frame: frame.get("id") == "waits" and frame.get("state") == "queued")
    await client.until_type("stream_event")
    disk.fill()
    assert (await client.terminal("long"))["type"] == "broker.turn_completed"
    end = await client.terminal("waits")
    told = (end["type"], end["reason"], end["applied"], end["retryable"], end["detail"])
    unnoted = "the message could not be noted (state.dir): nothing was written"
    assert told == ("broker.turn_failed", "cancelled", "no", True, unnoted)


@pytest.mark.slow
async def test_a_full_disk_is_told_and_survived(tmp_path: Path) -> None:
    """Messages are refused, each by its id, the broker stays, a conversation that has its process keeps it; with room
    again everything works, and what was told is what the next run knows."""
    folder = tmp_path / "disk"
    folder.mkdir()
    # Refusals cost nothing but their messages: more of them than a rate would let pass.
    limits = {"messages_per_second": 5000, "messages_burst": 5000}
    config = {"state": {"dir": str(folder / "state")}, "limits": limits}
    async with small_disk(folder, 8) as disk:
        async with running_broker(tmp_path / "run", config, prefix=disk.prefix) as broker:
            broker.expects("store.failed", "pool.breaker_open")
            await broker.wait_spares(2)
            async with connected(broker.url, hello=PLACE) as client:
                assert await known(client, "m-0") == 0
                await broker.wait_spares(2)
                await filled(client, disk)
                for number in range(REFUSED):
                    error = await receipt(client, "hello", f"x-{number}")
                    assert (error["type"], error["code"]) == ("broker.error", "storage_failed")
                    assert (error["ref"], error["retryable"]) == (f"x-{number}", True)
                async with connected(broker.url, hello={}) as other:
                    assert other.welcome["start"] == "warm"
                    assert (await receipt(other, "hello", "m-0"))["code"] == "storage_failed"
                assert await refusal(broker) == (4004, "pool_unavailable")
                assert broker.get("/livez")[0] == 200
                failures = {name: broker.metric("broker_store_failures_total", operation=name)
                            for name in ("accept", "write", "end")}  # fmt: skip
                assert (failures["accept"], failures["write"], failures["end"] > 0) == (REFUSED + 1, 1, True)
                disk.empty()
                assert await known(client, "x-0") == 2
                assert await known(client, "waits-again") == 3
                await client.until(lambda frame: frame.get("state") == "idle")
            await eventually(lambda: broker.pool()["warm"] == 2, 60)  # once the breaker closes
            disk.fill()
            await broker.stop(signal.SIGKILL)
        with pytest.raises(AssertionError, match=r"with 1: broker: .*state\.dir: .* full"):
            async with running_broker(tmp_path / "run", config, prefix=disk.prefix):
                pass
        disk.empty()
        async with running_broker(tmp_path / "run", config, prefix=disk.prefix) as broker:
            async with connected(broker.url, hello=PLACE) as client:
                assert client.of_type("broker.turn_failed") == []  # every end was kept in the end
                said_before = {"m-0": "hello", "long": LONG, "waits": "waits", "x-0": "hello"}
                outcomes = [(await receipt(client, text, name))["outcome"] for name, text in said_before.items()]
                assert outcomes == ["completed", "completed", "failed", "completed"]
                # What the CLI wrote behind the torn line is one broken line with it: that message is forgotten.
                memory = await known(client, "m-9")
                assert memory in (2, 3)
                await client.send({"type": "broker.history", "before": None, "limit": 50})
                page = await client.until_type("broker.history")
                said = [frame["uuid"] for frame in page["frames"] if frame["type"] == "user"]
                assert [name for name in said if name != "long"] == ["m-0", "waits-again", "m-9"]
                assert len(said) == memory + 1
            assert "waits" not in user_ids(broker.ledger_rows("in"))
    print(f"{REFUSED + 1} messages refused on a full disk")
