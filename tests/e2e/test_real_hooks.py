"""Hooks and MCP servers that live in a client, on the real CLI: asked over the socket, obeyed, never failing open."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from simulator.messages_api import MessagesApi
from tests.e2e import hook_scenes as scenes
from tests.e2e.real import EITHER, options, posts, real_broker, started_real_broker
from tests.kit.broker import Broker
from tests.oracle import Oracle

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(180)]
CONFIG = {"session": {"detach_timeout_s": 1}, "pool": {"bind_timeout_s": 5, "mcp_bind_timeout_s": 4}}


@asynccontextmanager
async def staged(folder: Path, version: str) -> AsyncIterator[tuple[Broker, MessagesApi]]:
    """A broker over that CLI, whose sessions rest soon after their last client has left."""
    with MessagesApi() as api:
        async with real_broker(folder, version, api, CONFIG) as broker:
            yield broker, api


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short one: sockets of the CLI's sandbox lie below it, and their paths may have 107 bytes."""
    return tmp_path_factory.mktemp("h")


@pytest.fixture(scope="module", params=EITHER)
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, oracle: Oracle
) -> Iterator[Broker]:
    """One broker for all scenes of a version."""
    folder = tmp_path_factory.mktemp("s")
    with started_real_broker(folder, request.param, oracle, CONFIG) as broker:
        yield broker


@pytest.mark.parametrize(
    "scene",
    [
        scenes.the_owner_is_asked_and_obeyed,
        scenes.a_guard_never_fails_open,
        scenes.an_owner_that_is_away_blocks_until_it_is_back,
        scenes.hooks_of_another_are_refused,
        scenes.a_restored_process_keeps_the_hooks,
        scenes.a_server_in_the_client_is_called,
        scenes.a_server_whose_client_is_away_holds_nobody_up,
    ],
    ids=lambda scene: scene.__name__,
)
async def test_on_the_real_cli(scene: scenes.Scene, shared: Broker) -> None:
    """Each scene as its own words say."""
    await scene(shared, options("good"))


@pytest.mark.full
@pytest.mark.parametrize("version", EITHER)
async def test_messages_wait_for_the_clients_initialize(version: str, folder: Path) -> None:
    """What is sent before it is held; the prompt that it brings is in the first request."""
    async with staged(folder, version) as (broker, api):
        await scenes.messages_wait_for_the_clients_initialize(broker, options("good"))
        assert all("You are a parrot." in request["system"] for request in posts(api))
        assert posts(api)
