"""Late options and control requests, with the simulated CLI."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import control_scenes as scenes
from tests.kit.broker import Broker, started_broker
from tests.oracle import Oracle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Below which directories may be added."""
    return tmp_path_factory.mktemp("roots")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle, folder: Path) -> Iterator[Broker]:
    """A broker as the scenes want it."""
    with started_broker(tmp_path_factory.mktemp("controls"), scenes.config(folder)) as found:
        oracle.allow(pid=found.pid)
        yield found


@pytest.mark.parametrize("scene", scenes.ALL, ids=lambda scene: scene.__name__)
async def test_on_the_simulated_cli(scene: scenes.Scene, broker: Broker, folder: Path) -> None:
    """Each scene as its own words say."""
    await scene(broker, {}, folder)
