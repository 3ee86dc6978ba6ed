"""Credentials and isolation on the real CLI: agents of several tenants look for every secret, and find none."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from simulator.messages_api import MessagesApi
from tests.e2e.apart import LOOK, MEMORY, apart, bash, folder_of
from tests.e2e.real import EITHER, VERSIONS, posts
from tests.e2e.test_canaries import Canaries
from tests.kit.broker import Broker
from tests.kit.client import connected
from tests.oracle import Oracle
from tests.processes import process_table
from tests.real_cli import require
from tests.waiting import eventually

pytestmark = [pytest.mark.real_cli, pytest.mark.slow, pytest.mark.timeout(240)]
CLOSED_PORT = "http://127.0.0.1:9/"
KINDS = ("oauth_token", "api_key", "auth_token")

FULL = pytest.mark.full
PAIRS = [
    pytest.param("none", VERSIONS[0], marks=FULL),
    ("none", VERSIONS[1]),
    ("uid", VERSIONS[0]),
    pytest.param("userns", VERSIONS[1], marks=FULL),
]
"""Every mode and every version, and both versions where nothing but the scrub protects."""


@asynccontextmanager
async def real(mode: str, version: str, api: MessagesApi, **cli: Any) -> AsyncIterator[Broker]:
    """A broker of that mode over the real CLI, that may contact a closed port for MCP."""
    environment = {"ANTHROPIC_BASE_URL": api.url, "CLAUDE_CODE_MAX_RETRIES": "0"}
    config = {"cli": {"env": environment, **cli}, "policy": {"mcp_url_prefixes": [CLOSED_PORT]}}
    async with apart(mode, config, cli=str(require(version)[version])) as broker:
        yield broker


def hello(kind: str, new: Canaries) -> dict[str, Any]:
    """A tenant with secrets: a credential and the header of an MCP server."""
    headers = {"Authorization": f"Bearer {new(f'{kind}: MCP header')}"}
    servers = {"acme": {"type": "http", "url": CLOSED_PORT, "headers": headers}}
    return {"options": {"credentials": {kind: new(kind)}, "allowed_tools": ["Bash"], "mcp_servers": servers}}


def places(broker: Broker, new: Canaries) -> list[str]:
    """Which secret is in which file below the broker's folder, or in which command line."""
    found = []
    for path in broker.state.rglob("*"):
        if path.is_file() and not path.is_symlink():
            text = path.read_bytes()
            found += [f"{place} is in {path}" for place, canary in new.made.items() if canary.encode() in text]
    for pid in process_table():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        found += [f"{place} is in argv" for place, canary in new.made.items() if canary.encode() in command]
    return found


@pytest.mark.parametrize(("mode", "version"), PAIRS)
async def test_no_tool_sees_a_credential(mode: str, version: str, oracle: Oracle) -> None:
    """Its own or another tenant's: not in environments, command lines, memories, files, nor in a request's body."""
    new = Canaries(oracle)
    with MessagesApi() as api:
        async with real(mode, version, api) as broker:
            assert broker.log_events("broker.isolation")[0]["scrub"] is True, "bubblewrap or socat does not work here"
            async with AsyncExitStack() as tenants:
                clients = [await tenants.enter_async_context(connected(broker.url, hello=hello(k, new))) for k in KINDS]
                for client in clients:
                    await bash(client, "echo first")
                for client in clients:
                    seen = await bash(client, f"{LOOK}; echo done")
                    assert new.seen_in(seen) == set(), seen
                    assert seen.endswith("done"), seen
                assert places(broker, new) == []
            sent = {request["credential"] for request in posts(api)}
            assert sent == {new.made[kind] for kind in KINDS}, "the secrets were in use"
            bodies = str([request["messages"] for request in posts(api)])
            assert new.seen_in(bodies) == set()


@pytest.mark.full
@pytest.mark.parametrize("version", EITHER)
async def test_without_the_scrub_keys_are_seen_and_an_oauth_token_is_not_handed_out(
    version: str, oracle: Oracle
) -> None:
    """The counter-proof, and what the warning says: keys are in a tool's environment; OAuth tokens are not."""
    new = Canaries(oracle)
    with MessagesApi() as api:
        async with real("none", version, api, scrub="off") as broker:
            seen = {}
            for kind in KINDS:
                async with connected(broker.url, hello=hello(kind, new)) as client:
                    shown = await bash(client, "env; for p in /proc/[0-9]*; do tr '\\0' '\\n' <$p/environ; done")
                    seen[kind] = new.seen_in(shown)
                    if kind == "api_key":
                        assert new.made[kind] in await bash(client, MEMORY), "one system user: it is in reach"
            assert seen == {kind: set() if kind == "oauth_token" else {new.made[kind]} for kind in KINDS}
    oracle.canaries.difference_update(new.made.values())


@pytest.mark.parametrize(("mode", "version"), PAIRS[2:])
async def test_an_agent_finds_nothing_of_another_one(mode: str, version: str, oracle: Oracle) -> None:
    """Also without the scrub: no file, process, environment or memory of another session; and work goes on as usual."""
    new = Canaries(oracle)
    with MessagesApi() as api:
        async with real(mode, version, api, scrub="off") as broker:
            async with connected(broker.url, hello=hello("api_key", new)) as victim:
                await bash(
                    victim, f"echo {new('file')} >secret; KEY={new('environment')} sleep 300 >/dev/null 2>&1 & echo"
                )
                there = folder_of(broker, victim)
                async with connected(broker.url, hello=hello("oauth_token", new)) as spy:
                    shown = await bash(spy, f"{LOOK}; ls {there}; cat {there}/work/secret; ls {broker.state}/sessions")
                    mine = {new.made["oauth_token"], new.made["oauth_token: MCP header"]}
                    assert new.seen_in(shown) <= mine, "of its own CLI's memory at most"
                    assert "git" in await bash(spy, "git init -q . && ls -A")
                assert "file" not in await bash(victim, f"test -w {there}/work && echo ok")
    oracle.canaries.difference_update(new.made.values())


def helpers(broker: Broker) -> list[int]:
    """The processes that a scrubbed CLI has started for itself."""
    found = []
    for process in broker.descendants():
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        if command.startswith(b"socat") and process.state != "Z":
            found.append(process.pid)
    return found


async def count_of(broker: Broker, count: int) -> None:
    """Until that many helpers are there."""
    await eventually(lambda: len(helpers(broker)) == count, 20)


@pytest.mark.parametrize(("mode", "version"), PAIRS[1:])
async def test_a_scrubbed_cli_leaves_no_helper_behind(mode: str, version: str) -> None:
    """kill -9 of the CLI and the end of the broker: its socat processes and its commands go with it."""
    with MessagesApi() as api:
        async with real(mode, version, api) as broker:
            async with connected(broker.url, hello={"options": _paying()}) as client:
                await bash(client, "(setsid sleep 300 >/dev/null 2>&1 &); sleep 300 >/dev/null 2>&1 & echo started")
                await broker.wait_spares(2)
                await count_of(broker, 3)
                session = client.welcome["cli"]["session_id"].encode()
                own = [p.pid for p in broker.descendants() if session in Path(f"/proc/{p.pid}/cmdline").read_bytes()]
                os.kill(max(own), signal.SIGKILL)
                await client.until(lambda f: f["type"] == "broker.state" and f.get("state") == "restored", 30)
                await count_of(broker, 3)
            before = {process.pid for process in broker.descendants()}
            assert await broker.stop() == 0
            alive = [row for pid in before if (row := process_table().get(pid)) is not None and row.state != "Z"]
            assert alive == []


def _paying() -> dict[str, Any]:
    return {"credentials": {"oauth_token": "t"}, "allowed_tools": ["Bash"]}
