"""What the kit finds in a broker's log when the broker ends."""

from pathlib import Path

import pytest

from tests.kit.broker import Broker, running_broker

PLANTED = '{"level":"error","event":"planted"}\n{"level":"info","event":"planted.too","exception":[]}\n'


async def test_an_error_that_nobody_expects_fails_the_test(tmp_path: Path) -> None:
    """Each line of an error or with an exception is told, but for events that the test has named."""
    brokers: list[Broker] = []

    async def run() -> None:
        async with running_broker(tmp_path, wait_ready=False) as broker:
            brokers.append(broker)
            assert await broker.stop() == 0
            broker.log.write_text(broker.log_text() + PLANTED)

    with pytest.raises(AssertionError) as found:
        await run()
    assert PLANTED.strip() in str(found.value)
    [broker] = brokers
    broker.expects("planted")
    assert broker.bugs() == PLANTED.splitlines()[1:]
    broker.expects("planted.too")
    assert broker.bugs() == []
