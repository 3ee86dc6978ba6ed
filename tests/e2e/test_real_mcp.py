"""MCP servers on the real CLI: real servers with a bearer header, for one tenant alone; programs; questions."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from simulator.messages_api import MessagesApi
from tests.e2e import mcp_scenes as scenes
from tests.e2e.hook_scenes import LONG_S, tool_results
from tests.e2e.real import EITHER, options, posts, real_broker, started_real_broker
from tests.kit.broker import Broker
from tests.kit.client import connected
from tests.kit.host import Host
from tests.kit.mcp_child import STDIO, configuration
from tests.oracle import Oracle

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(180)]


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short one: sockets of the CLI's sandbox lie below it, and their paths may have 107 bytes."""
    return tmp_path_factory.mktemp("m")


def broker_config(**policy: Any) -> dict[str, Any]:
    """What the scenes want, and this policy."""
    return {"policy": policy, "pool": {"mcp_bind_timeout_s": scenes.BIND_S}, "session": {"detach_timeout_s": 1}}


@asynccontextmanager
async def staged(folder: Path, version: str, **policy: Any) -> AsyncIterator[tuple[Broker, MessagesApi]]:
    """A broker over that CLI with this policy."""
    with MessagesApi() as api:
        async with real_broker(folder, version, api, broker_config(**policy)) as broker:
            yield broker, api


@pytest.fixture(scope="module", params=EITHER)
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, oracle: Oracle
) -> Iterator[tuple[Broker, scenes.Places]]:
    """One broker for all scenes of a version, and the servers."""
    folder = tmp_path_factory.mktemp("s")
    with scenes.places(folder) as at:
        config = broker_config(mcp_url_prefixes=at.prefixes)
        with started_real_broker(folder, request.param, oracle, config) as broker:
            yield broker, at


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
async def test_on_the_real_cli(scene: scenes.Scene, stage: tuple[Broker, scenes.Places]) -> None:
    """Each scene as its own words say."""
    await scene(stage[0], options("good"), stage[1])


@pytest.mark.parametrize("version", EITHER)
async def test_no_request_of_another_tenant_knows_the_server(version: str, folder: Path) -> None:
    """Its tools stand in the requests of the tenant that brought it, and in no other."""
    with scenes.places(folder) as at:
        async with staged(folder, version, mcp_url_prefixes=at.prefixes) as (broker, api):
            servers = {"acme": configuration(at.http, scenes.SECRET)}
            own = options("a", mcp_servers=servers, allowed_tools=["mcp__acme"])
            async with connected(broker.url, hello={"options": own}) as client:
                await client.turn(f'[[sim tool="{scenes.CALL}" tokens=2]] add', within_s=LONG_S)
            async with connected(broker.url, hello={"options": options("b")}) as client:
                await client.turn("[[sim tokens=2]] nothing", within_s=LONG_S)
            calls = {r["credential"]: "mcp__acme" in str(r["messages"]) + str(r["tools"]) for r in posts(api)}
            assert calls == {"a": True, "b": False}


@pytest.mark.parametrize("version", EITHER)
async def test_a_program_is_started_only_where_the_policy_lets_it(version: str, folder: Path) -> None:
    """By default a tenant may name no program of this machine; where it may, the CLI talks to it."""
    own = options("good", mcp_servers={"acme": STDIO}, allowed_tools=["mcp__acme"])
    async with staged(folder, version) as (broker, _), connected(broker.url) as client:
        with pytest.raises(ConnectionClosed):
            await client.hello(options=own)
        assert client.frames[-1]["code"] == "option_not_allowed"
        assert "policy.mcp_stdio" in client.frames[-1]["message"]
    async with staged(folder, version, mcp_stdio=True) as (broker, _):
        async with connected(broker.url, hello={"options": own}) as client:
            await client.turn(f'[[sim tool="{scenes.CALL}" tokens=2]] add', within_s=LONG_S)
            assert "4242" in tool_results(client) or scenes.told_errors(client), "slow to start, and told so"
            assert await scenes.status(client) in ({"acme": "connected"}, {"acme": "failed"})


@pytest.mark.full
@pytest.mark.parametrize("version", EITHER)
async def test_the_operators_server_is_there_for_everybody(version: str, folder: Path) -> None:
    """No tenant asked for it, none can take it away, switch it off or put its own in its place."""
    with scenes.places(folder) as at:
        operators = {"acme": configuration(at.http, scenes.SECRET)}
        async with staged(folder, version, mcp_servers=operators, mcp_url_prefixes=[at.dead]) as (broker, _):
            own = options("good", mcp_servers={"acme": {"type": "http", "url": at.dead}}, allowed_tools=["mcp__acme"])
            async with connected(broker.url, hello={"options": own}) as client:
                await client.turn(f'[[sim tool="{scenes.CALL}" tokens=2]] add', within_s=LONG_S)
                assert "4242" in tool_results(client)
                assert scenes.told_errors(client) == [{"acme": "the name is the operator's (policy.mcp_servers)"}]
                reply = await client.control("mcp_set_servers", servers={})
                assert reply["response"] == {"added": [], "removed": [], "errors": {}}
                await client.ask("mcp_toggle", "t-1", serverName="acme", enabled=False)
                assert (await client.error())["code"] == "option_not_allowed"
                assert await scenes.status(client) == {"acme": "connected"}


@pytest.mark.full
@pytest.mark.parametrize("version", EITHER)
async def test_a_question_of_a_server_reaches_the_user(version: str, folder: Path) -> None:
    """An elicitation is shown to everybody, answered once, and its answer reaches the server."""
    call = r"mcp__acme__ask:{\"question\": \"which colour?\"}"
    with scenes.places(folder) as at:
        async with staged(folder, version, mcp_url_prefixes=at.prefixes) as (broker, _):
            servers = {"acme": configuration(at.sse, scenes.SECRET)}
            own = options("good", mcp_servers=servers, allowed_tools=["mcp__acme"])
            answers = [{"action": "accept", "content": {"colour": "blue"}}, {"action": "decline"}]
            async with connected(broker.url, hello={"options": own}) as client:
                host = Host(client, elicitation=lambda request: answers.pop(0))
                for number in range(2):
                    await host.turn(f'[[sim tool="{call}" tokens=2]] ask', f"m-{number}", LONG_S)
                asked = host.requests("elicitation")
                assert [request["message"] for request in asked] == ["which colour?"] * 2
                assert all("seq" in frame for frame in client.of_type("control_request"))
                results = tool_results(client)
                assert "blue" in results
                assert "no answer: decline" in results
                outcomes = [frame["outcome"] for frame in client.of_type("broker.request_resolved")]
                assert outcomes == ["allowed", "denied"]
