"""options.lazy: attach now, take a process when something needs one, and be told what becomes of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.broker import Broker, running_broker, started_broker
from tests.kit.client import connected, contiguous, text_of
from tests.oracle import Oracle
from tests.waiting import eventually


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker."""
    with started_broker(tmp_path_factory.mktemp("lazy"), {"session": {"detach_timeout_s": 0.5}}) as found:
        oracle.allow(pid=found.pid)
        yield found


def lazily(session_id: str, mode: str = "open", **options: Any) -> dict[str, Any]:
    """Hello's fields."""
    return {"session": {"mode": mode, "id": session_id}, "options": {"lazy": True, **options}}


async def test_no_process_until_the_first_message(broker: Broker) -> None:
    """The welcome knows of no process; the first message takes a warm one and is answered."""
    await broker.wait_spares(2)
    async with connected(broker.url, hello=lazily("first", model="opus")) as client:
        told = {key: client.welcome[key] for key in ("start", "ready_ms", "miss_reason", "turn", "resumed")}
        assert told == {"start": None, "ready_ms": None, "miss_reason": None, "turn": None, "resumed": False}
        assert client.welcome["cli"]["session_id"] == ""
        await client.sync()
        assert broker.pool()["leased"] == 0
        assert (await client.turn("hello", "m-1"))["type"] == "broker.turn_completed"
        init = next(frame for frame in client.frames if frame.get("subtype") == "init")
        assert "opus" in init["model"]
        assert text_of(client.frames).startswith("You said: hello")
        assert contiguous(client.numbered())
        assert not client.of_type("broker.error")
        accepted = client.frames.index(client.of_type("broker.accepted")[0])
        assert accepted < client.frames.index(init)


async def test_a_control_request_takes_a_process_too(broker: Broker) -> None:
    """It is held until there is one, and answered; an interrupt, with nothing to interrupt, takes none."""
    await broker.wait_pool(leased=0)
    async with connected(broker.url, hello=lazily("control")) as client:
        assert (await client.control("interrupt"))["response"]["cancelled"] == []
        assert broker.pool()["leased"] == 0
        await client.ask("set_model", "c-a", model="opus")
        await client.ask("mcp_status", "c-b")
        answers = [await client.until_type("control_response") for _ in range(2)]
        assert {answer["response"]["request_id"] for answer in answers} == {"c-a", "c-b"}
        assert {answer["response"]["subtype"] for answer in answers} == {"success"}
        assert broker.pool()["leased"] == 1


async def test_too_many_held_requests_are_refused(tmp_path: Path) -> None:
    """Eight wait for a process, the ninth is rate_limited; those that wait are answered when none comes."""
    config = {"pool": {"max_processes": 1, "queue_timeout_s": 1, "profiles": {"default": {"warm": 1}}}}
    async with running_broker(tmp_path, config) as broker:
        async with connected(broker.url, hello={}), connected(broker.url, hello=lazily("ninth")) as client:
            for number in range(9):
                await client.ask("mcp_status", f"c-{number}")
            error = await client.error()
            assert (error["code"], error["ref"]) == ("rate_limited", "c-8")
            answers = [(await client.until_type("control_response"))["response"] for _ in range(8)]
            assert [answer["request_id"] for answer in answers] == [f"c-{number}" for number in range(8)]
            assert {answer["error"] for answer in answers} == {"cli_exited"}
            assert [frame["code"] for frame in client.of_type("broker.error")] == ["rate_limited", "pool_unavailable"]


async def test_an_unused_one_leaves_nothing_behind(broker: Broker) -> None:
    """Nothing said, nobody there: the session is gone; while somebody is there, it can be joined."""
    async with connected(broker.url, hello=lazily("unused")) as client:
        async with connected(broker.url, hello={"session": {"mode": "resume", "id": "unused"}, "role": "observer"}):
            pass
        await client.sync()

    async def is_gone() -> bool:
        async with connected(broker.url) as back:
            await back.send({"type": "broker.hello", "session": {"mode": "resume", "id": "unused"}})
            return await back.closed() == 4504

    for _ in range(50):
        if await is_gone():
            return
    pytest.fail("the session is still there")


async def test_an_eager_client_wakes_it_for_all(broker: Broker) -> None:
    """A hello without lazy takes the process; the lazy one sees the turn, and its options hold."""
    async with connected(broker.url, hello=lazily("woken", system_prompt="You are lazy.")) as lazy:
        async with connected(broker.url, hello={"session": {"mode": "open", "id": "woken"}}) as eager:
            assert eager.welcome["start"] in ("warm", "cold")
            await eager.turn("hello", "m-1")
            assert (await lazy.terminal("m-1"))["type"] == "broker.turn_completed"
    assert any("You are lazy." in row.get("line", "") for row in broker.ledger_rows("in"))


async def test_a_hibernated_session_sleeps_on(broker: Broker) -> None:
    """Lazily attached it stays without a process; the first message restores it, with its memory."""
    async with connected(broker.url, hello={"session": {"mode": "new", "id": "asleep"}}) as client:
        await client.turn("one")
        own = client.welcome["cli"]["session_id"]
    await broker.wait_pool(leased=0, stopping=0, starting=0)
    async with connected(broker.url, hello=lazily("asleep", "resume")) as client:
        assert (client.welcome["start"], client.welcome["cli"]["session_id"]) == (None, own)
        await client.sync()
        assert broker.pool()["leased"] == 0
        await client.turn("two")
        assert text_of(client.frames).endswith("Earlier messages of yours: 1.")
        assert client.of_type("broker.state")[0]["state"] == "restored"


async def test_attached_to_a_live_session_it_is_attached(broker: Broker) -> None:
    """Lazy asks for nothing where a process is there already."""
    async with connected(broker.url, hello={"session": {"mode": "new", "id": "live"}}):
        async with connected(broker.url, hello=lazily("live")) as client:
            assert client.welcome["start"] == "attached"
            assert client.welcome["ready_ms"] is not None


async def test_a_refused_option_is_told_when_the_process_is_taken(broker: Broker) -> None:
    """bind_failed names the option, the message ends cancelled and unwritten; mended, the same session works."""
    async with connected(broker.url, hello=lazily("refused", model="claude-unknown-1")) as client:
        for attempt in ("m-1", "m-2"):
            end = await client.turn("hello", attempt)
            assert (end["type"], end["reason"], end["applied"], end["retryable"]) == (
                "broker.turn_failed", "cancelled", "no", True,
            )  # fmt: skip
            error = client.of_type("broker.error")[-1]
            assert error["code"] == "bind_failed"
            assert error["message"].startswith("model:")
        assert len(client.of_type("broker.error")) == 2
        async with connected(broker.url, hello=lazily("refused", model="opus")) as mended:
            assert (await mended.turn("hello", "m-3"))["type"] == "broker.turn_completed"
            assert (await client.terminal("m-3"))["type"] == "broker.turn_completed"


async def test_waiting_is_told_to_those_attached(tmp_path: Path) -> None:
    """broker.waiting with the place; pool_unavailable when the time is over, and the message may be sent again."""
    pool = {"max_processes": 1, "queue_timeout_s": 1, "profiles": {"default": {"warm": 1}}}
    async with running_broker(tmp_path, {"pool": pool, "session": {"detach_timeout_s": 0.2}}) as broker:
        async with connected(broker.url, hello=lazily("waits")) as client:
            async with connected(broker.url, hello={}):
                end = await client.turn("hello", "m-1")
                assert (end["reason"], end["applied"], end["retryable"]) == ("cancelled", "no", True)
                waiting = client.of_type("broker.waiting")
                assert (waiting[0]["position"], waiting[0]["reason"]) == (1, "pool_full")
                assert client.of_type("broker.error")[0]["code"] == "pool_unavailable"
            await eventually(lambda: broker.pool()["leased"] == 0, 20)
            assert (await client.turn("hello", "m-2"))["type"] == "broker.turn_completed"


async def test_a_lazy_fork_is_cut_off_at_once_and_takes_its_process_later(broker: Broker) -> None:
    """What the parent says after the fork is not the branch's, whenever that takes its process."""
    async with connected(broker.url, hello={"session": {"mode": "new", "id": "lf"}}) as parent:
        await parent.turn("one")
        await broker.wait_pool(leased=1)
        async with connected(broker.url, hello=lazily("lf", "fork")) as child:
            assert child.welcome["start"] is None
            assert broker.pool()["leased"] == 1
            await parent.turn("two")
            await child.turn("mine")
            assert text_of(child.frames).endswith("Earlier messages of yours: 1.")


async def test_a_message_left_behind_runs_without_its_client(broker: Broker) -> None:
    """Sent and gone: the process is taken all the same, the turn ends, and is there for whoever comes back."""
    async with connected(broker.url, hello=lazily("gone")) as client:
        await client.say("hello", "m-1")
        await client.sync()
        epoch = client.welcome["epoch"]
    hello = {"session": {"mode": "resume", "id": "gone", "epoch": epoch, "last_seq": 0}}
    async with connected(broker.url, hello=hello) as back:
        assert (await back.terminal("m-1"))["type"] == "broker.turn_completed"
