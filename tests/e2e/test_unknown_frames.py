"""What a newer CLI says and this broker does not know: it reaches the client as it is, and is counted."""

from collections.abc import Iterator

import pytest

from simulator.faults import NEW_SUBTYPE, NEW_TYPE
from tests.kit.broker import Broker, started_broker
from tests.kit.client import connected, contiguous
from tests.kit.ledger import seq_of
from tests.oracle import Oracle

COUNTER = "broker_cli_unknown_frames_total"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with the defaults of the configuration."""
    with started_broker(tmp_path_factory.mktemp("unknown"), {}) as found:
        oracle.allow(pid=found.pid)
        yield found


async def test_unknown_frames_arrive_as_they_are_and_are_counted(broker: Broker) -> None:
    """A frame of a new type and one of a new subtype: each byte of them arrives, with a number; each counts once."""
    before = [broker.metric(COUNTER, type=name) for name in ("other", "system")]
    async with connected(broker.url, hello={"session": {"id": "unknown-1"}}) as client:
        done = await client.turn("[[sim unknown_frame tokens=3]] hello", "m-1")
        assert (done["type"], done["is_error"]) == ("broker.turn_completed", False)
        for line in (NEW_TYPE, NEW_SUBTYPE):
            head = line.decode()[:-1]
            (text,) = [text for text in client.texts if "of_a_later_version" in text and text.startswith(head)]
            assert text == f'{head},"seq":{seq_of(text)}}}'
        assert contiguous(client.numbered())
    assert [broker.metric(COUNTER, type=name) for name in ("other", "system")] == [count + 1 for count in before]


async def test_known_frames_are_not_counted(broker: Broker) -> None:
    """Turns that say what the documented CLI says, with a tool, thinking and an error, count nothing."""
    before = broker.metric(COUNTER)
    async with connected(broker.url, hello={"session": {"id": "unknown-2"}}) as client:
        for directive in ("thinking", 'tool="Bash:echo hi"', "error=529", "huge_line=2000"):
            await client.turn(f"[[sim tokens=3 {directive}]] hello")
    assert broker.metric(COUNTER) == before


async def test_an_unknown_frame_is_replayed_as_it_was(broker: Broker) -> None:
    """Who comes back with the last number it saw is sent the unknown frame again, byte for byte."""
    async with connected(broker.url, hello={"session": {"id": "unknown-3"}}) as client:
        epoch = client.welcome["epoch"]
        await client.turn("[[sim unknown_frame tokens=3]] hello", "m-1")
        sent = [text for text in client.texts if "of_a_later_version" in text]
    session = {"mode": "resume", "id": "unknown-3", "epoch": epoch, "last_seq": 0}
    async with connected(broker.url, hello={"session": session}) as client:
        await client.until_type("broker.turn_completed")
        assert [text for text in client.texts if "of_a_later_version" in text] == sent
        assert len(sent) == 2
