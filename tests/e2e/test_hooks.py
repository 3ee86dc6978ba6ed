"""Hooks and MCP servers that live in a client, with the simulated CLI."""

from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed

from tests.e2e import hook_scenes as scenes
from tests.kit.broker import Broker, started_broker
from tests.kit.client import connected
from tests.oracle import Oracle

CONFIG = {"session": {"detach_timeout_s": 1}, "pool": {"bind_timeout_s": 5, "mcp_bind_timeout_s": 2}}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker whose sessions rest soon after their last client has left."""
    with started_broker(tmp_path_factory.mktemp("hooks"), CONFIG) as found:
        oracle.allow(pid=found.pid)
        yield found


@pytest.mark.parametrize(
    "scene",
    [
        scenes.the_owner_is_asked_and_obeyed,
        scenes.a_guard_never_fails_open,
        scenes.an_owner_that_is_away_blocks_until_it_is_back,
        scenes.hooks_of_another_are_refused,
        scenes.messages_wait_for_the_clients_initialize,
        scenes.a_restored_process_keeps_the_hooks,
        scenes.a_server_in_the_client_is_called,
        scenes.a_server_whose_client_is_away_holds_nobody_up,
    ],
    ids=lambda scene: scene.__name__,
)
async def test_on_the_simulated_cli(scene: scenes.Scene, broker: Broker) -> None:
    """Each scene as its own words say."""
    await scene(broker, {})


@pytest.mark.parametrize(
    "wish",
    [
        {"system_prompt": "p"},
        {"append_system_prompt": "p"},
        {"agents": {"a": {"description": "d", "prompt": "p"}}},
        {"json_schema": {"type": "object"}},
    ],
    ids=lambda wish: str(next(iter(wish))),
)
async def test_what_the_clients_initialize_brings_hello_does_not(wish: dict[str, object], broker: Broker) -> None:
    """Two places for one thing are a mistake, told with its path."""
    async with connected(broker.url) as client:
        with pytest.raises(ConnectionClosed) as closed:
            await client.hello(options={"initialize": "client", **wish})
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4500
        assert client.frames[-1]["code"] == "bad_options"
        assert client.frames[-1]["message"].endswith(f"at `$.options.{next(iter(wish))}`")
