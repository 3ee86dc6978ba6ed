"""Agents, prompts and modes, with the simulated CLI."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import feature_scenes as scenes
from tests.kit.broker import Broker, started_broker
from tests.oracle import Oracle


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with the default policy."""
    with started_broker(tmp_path_factory.mktemp("features")) as found:
        oracle.allow(pid=found.pid)
        yield found


@pytest.mark.parametrize("scene", scenes.ALL, ids=lambda scene: scene.__name__)
async def test_on_the_simulated_cli(scene: scenes.Scene, broker: Broker, tmp_path: Path) -> None:
    """Each scene as its own words say."""
    await scene(broker, {}, tmp_path)
