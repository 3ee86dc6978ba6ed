"""What is true of MCP servers of a tenant, whatever CLI is behind the broker.

Callers: ``test_mcp.py`` (the simulated CLI) and ``test_real_mcp.py`` (the real one).  Each scene is given a broker
that lets a tenant reach ``Places``, with two spares and ``pool.mcp_bind_timeout_s`` of 2 s.
"""

import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.e2e.hook_scenes import LONG_S, tool_results
from tests.e2e.processes import killed
from tests.kit.broker import Broker
from tests.kit.client import Client, Frame, connected
from tests.kit.mcp_child import configuration, mcp_server

CALL = r"mcp__acme__add:{\"a\": 4200, \"b\": 42}"
"""A call of the server's tool, as the stand-in's model makes it."""
SECRET = "mcp-secret-1234"
BIND_S = 2.0


class Places(NamedTuple):
    """Where MCP servers are: two that work, one that takes connections and never says a word, one that is not there."""

    http: str
    sse: str
    silent: str
    dead: str

    @property
    def prefixes(self) -> list[str]:
        """For ``policy.mcp_url_prefixes``."""
        return list(self)


@contextmanager
def places(folder: Path) -> Iterator[Places]:
    """Servers that run until the end of the block."""
    with ExitStack() as stack:
        urls = [stack.enter_context(mcp_server(folder, SECRET, kind)) for kind in ("http", "sse")]
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        dead = stack.enter_context(socket.socket())
        dead.bind(("127.0.0.1", 0))  # and never listens
        urls += [f"http://127.0.0.1:{found.getsockname()[1]}/mcp" for found in (silent, dead)]
        yield Places(*urls)


Scene = Callable[[Broker, Frame, Places], Awaitable[None]]


def told_errors(client: Client) -> list[Frame]:
    """What was told about servers that did not connect."""
    return [frame["mcp_errors"] for frame in client.of_type("broker.state") if "mcp_errors" in frame]


async def status(client: Client) -> dict[str, str]:
    """State of each server."""
    reply = await client.control("mcp_status")
    rows = reply["response"]["mcpServers"]
    assert SECRET not in str(reply)
    assert not [row for row in rows if "config" in row]
    return {row["name"]: row["status"] for row in rows}


async def servers_are_a_tenants_own(broker: Broker, options: Frame, at: Places) -> None:
    """Over both HTTP transports, with a bearer header: the tool runs; another tenant sees no server."""
    for number, url in enumerate((at.http, at.sse)):
        servers = {"acme": configuration(url, SECRET)}
        own = {**options, "mcp_servers": servers, "allowed_tools": ["mcp__acme"]}
        async with (
            connected(broker.url, hello={"options": own}) as client,
            connected(broker.url, hello={"options": options}) as other,
        ):
            end = await client.turn(f'[[sim tool="{CALL}" tokens=2]] add', f"m-{number}", within_s=LONG_S)
            assert not end["is_error"], end
            assert "4242" in tool_results(client), url
            assert await status(client) == {"acme": "connected"}
            assert await status(other) == {}
            assert not told_errors(client)


async def a_server_that_fails_is_named_and_holds_nobody_up(broker: Broker, options: Frame, at: Places) -> None:
    """Dead, unauthorized, silent: told by name and within the limit; the good one beside them works, and so does the
    turn.  Nothing that is told holds an address or a secret."""
    servers = {
        "acme": configuration(at.http, SECRET),
        "dead": {"type": "http", "url": at.dead},
        "wrong": configuration(at.http, "wrong-token"),
        "slow": {"type": "http", "url": at.silent, "headers": {"Authorization": f"Bearer {SECRET}"}},
    }
    own = {**options, "mcp_servers": servers, "allowed_tools": ["mcp__acme"]}
    async with connected(broker.url) as client:
        welcomed = time.monotonic()
        await client.hello(options=own)
        welcomed = time.monotonic() - welcomed
        assert welcomed < BIND_S, "the welcome does not wait for servers"
        asked = time.monotonic()
        end = await client.turn(f'[[sim tool="{CALL}" tokens=2]] add', within_s=LONG_S)
        print(f"turn behind a silent server: {time.monotonic() - asked:.2f} s")
        assert not end["is_error"], end
        assert "4242" in tool_results(client)
        errors: Frame = {}
        for told in told_errors(client):
            errors |= told
        assert set(errors) == {"dead", "wrong", "slow"}, errors
        assert "2000ms" in errors["slow"] or "2" in errors["slow"], errors
        assert "127.0.0.1" not in str(client.frames)
        assert SECRET not in str(client.frames)
        assert end["queue_ms"] < (BIND_S + 3) * 1000
        asked = time.monotonic()
        await client.turn("[[sim tokens=2]]", within_s=LONG_S)
        assert time.monotonic() - asked < 30


async def servers_are_changed_live(broker: Broker, options: Frame, at: Places) -> None:
    """Added, taken away, switched off and on, connected again; everybody is told their names."""
    acme = {"acme": configuration(at.http, SECRET)}
    async with connected(broker.url, hello={"options": {**options, "allowed_tools": ["mcp__acme"]}}) as client:
        reply = await client.control("mcp_set_servers", servers=acme)
        assert reply["response"] == {"added": ["acme"], "removed": [], "errors": {}}
        await client.turn(f'[[sim tool="{CALL}" tokens=2]] add', within_s=LONG_S)
        assert "4242" in tool_results(client)
        assert (await client.control("mcp_toggle", serverName="acme", enabled=False))["subtype"] == "success"
        assert await status(client) == {"acme": "disabled"}
        assert (await client.control("mcp_toggle", serverName="acme", enabled=True))["subtype"] == "success"
        assert (await client.control("mcp_reconnect", serverName="acme"))["subtype"] == "success"
        assert await status(client) == {"acme": "connected"}
        assert (await client.control("mcp_reconnect", serverName="nope"))["subtype"] == "error"
        dead = {"dead": {"type": "http", "url": at.dead}}
        reply = await client.control("mcp_set_servers", servers=acme | dead)
        assert (reply["response"]["added"], list(reply["response"]["errors"])) == (["dead"], ["dead"])
        reply = await client.control("mcp_set_servers", servers={})
        assert sorted(reply["response"]["removed"]) == ["acme", "dead"]
        assert await status(client) == {}
        told = [frame["mcp_servers"] for frame in client.of_type("broker.state") if "mcp_servers" in frame]
        assert told == [["acme"], [], ["acme"], ["acme", "dead"], []]
        assert SECRET not in str(client.frames)
        assert "127.0.0.1" not in str(client.frames)


async def a_restored_process_has_the_same_servers(broker: Broker, options: Frame, at: Places) -> None:
    """Those of hello and those of a later change, and one that was switched off is off."""
    acme = {"acme": configuration(at.http, SECRET)}
    hello: Frame = {
        "session": {"mode": "open", "id": "mcp-restored"},
        "options": {**options, "mcp_servers": acme, "allowed_tools": ["mcp__acme"]},
    }
    async with connected(broker.url, hello=hello) as client:
        await client.turn("[[sim tokens=2]] one", "m-1", within_s=LONG_S)
        both = acme | {"second": configuration(at.http, SECRET)}
        await client.control("mcp_set_servers", servers=both)
        await client.control("mcp_toggle", serverName="second", enabled=False)
        await killed(broker, client)
        end = await client.turn(f'[[sim tool="{CALL}" tokens=2]] add', "m-2", within_s=LONG_S)
        assert not end["is_error"], end
        assert "4242" in tool_results(client)
        assert await status(client) == {"acme": "connected", "second": "disabled"}


async def a_slow_server_does_not_kill_an_interrupted_turn(broker: Broker, options: Frame, at: Places) -> None:
    """The CLI reads nothing while it connects: an interrupt waits for that, and then stops the turn."""
    async with connected(broker.url, hello={"options": options}) as client:
        await client.say("[[sim tokens=4000 itl_ms=20]] long", "m-1")
        await client.until_type("stream_event", LONG_S)
        await client.ask("mcp_set_servers", "c-1", servers={"slow": {"type": "http", "url": at.silent}})
        await client.ask("interrupt", "c-2")
        end = await client.terminal("m-1", LONG_S)
        assert (end["type"], end.get("stopped")) == ("broker.turn_completed", True), end
