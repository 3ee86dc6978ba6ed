"""What a client is told when it is back: why the broker ended its last connection, once, and nobody else is told."""

import pytest

from broker.sessions.farewells import MAX_INSTANCES, Farewells
from protocol.codes import LastClose


@pytest.mark.parametrize("reason", list(LastClose))
def test_the_reason_is_told_once_to_the_instance_it_is_meant_for(reason: LastClose) -> None:
    """Another instance is told nothing, and the second time there is nothing to tell."""
    farewells = Farewells()
    farewells.note("tab", reason.value)
    assert farewells.take("other") is None
    assert farewells.take("tab") is reason
    assert farewells.take("tab") is None


@pytest.mark.parametrize("reason", ["client", "replaced", "ended", "broker_stopped"])
def test_ordinary_ends_are_not_told(reason: str) -> None:
    """Who left by itself, or read its close frame, knows why."""
    farewells = Farewells()
    farewells.note("tab", reason)
    assert farewells.take("tab") is None


def test_the_oldest_is_forgotten() -> None:
    """No client makes the list grow by coming under ever new names."""
    farewells = Farewells()
    for number in range(MAX_INSTANCES + 1):
        farewells.note(f"tab-{number}", "slow_consumer")
    assert farewells.take("tab-0") is None
    assert farewells.take("tab-1") is LastClose.SLOW_CONSUMER
