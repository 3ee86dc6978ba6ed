"""MCP servers of a tenant, with the simulated CLI."""

from collections.abc import Iterator

import pytest

from tests.e2e import mcp_scenes as scenes
from tests.kit.broker import Broker, started_broker
from tests.oracle import Oracle


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[scenes.Places]:
    """Servers that all tests here share."""
    with scenes.places(tmp_path_factory.mktemp("servers")) as found:
        yield found


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle, at: scenes.Places) -> Iterator[Broker]:
    """A broker that lets a tenant reach them."""
    config = {"policy": {"mcp_url_prefixes": at.prefixes}, "pool": {"mcp_bind_timeout_s": scenes.BIND_S}}
    with started_broker(tmp_path_factory.mktemp("mcp"), config) as found:
        oracle.allow(pid=found.pid)
        yield found


@pytest.mark.parametrize(
    "scene",
    [
        scenes.servers_are_a_tenants_own,
        scenes.a_server_that_fails_is_named_and_holds_nobody_up,
        scenes.servers_are_changed_live,
        scenes.a_restored_process_has_the_same_servers,
        scenes.a_slow_server_does_not_kill_an_interrupted_turn,
    ],
    ids=lambda scene: scene.__name__,
)
async def test_on_the_simulated_cli(scene: scenes.Scene, broker: Broker, at: scenes.Places) -> None:
    """Each scene as its own words say."""
    await scene(broker, {}, at)
