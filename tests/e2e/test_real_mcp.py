"""MCP over streamable HTTP on the real CLI: a real server with a bearer header, for one tenant alone."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from simulator.messages_api import MessagesApi
from tests.e2e.real import VERSIONS, options, posts, real_broker
from tests.kit.broker import ROOT
from tests.kit.client import connected
from tests.waiting import eventually

CALL = r"mcp__acme__add:{\"a\": 4200, \"b\": 42}"
"""A call of the server's tool, as the stand-in's model makes it."""

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(120)]


@asynccontextmanager
async def mcp_server(folder: Path, token: str) -> AsyncIterator[str]:
    """The URL of a running MCP server."""
    ports = folder / "mcp.port"
    argv = [sys.executable, "-m", "tests.kit.mcp_server", token, str(ports)]
    with subprocess.Popen(argv, cwd=ROOT) as child:
        try:
            await eventually(lambda: ports.exists() and ports.read_text(), 20)
            yield f"http://127.0.0.1:{ports.read_text()}/mcp"
        finally:
            child.terminate()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_tenants_mcp_server_is_bound_late_and_is_its_own(version: str, tmp_path: Path) -> None:
    """The tool is offered in the tenant's own requests only; a server that refuses is named, and blocks nothing."""
    with MessagesApi() as api:
        async with mcp_server(tmp_path, "mcp-secret") as url:
            config = {"policy": {"mcp_url_prefixes": [url]}}
            async with real_broker(tmp_path, version, api, config) as broker:
                good = {"acme": {"type": "http", "url": url, "headers": {"Authorization": "Bearer mcp-secret"}}}
                own = options("a", mcp_servers=good, allowed_tools=["mcp__acme"])
                async with connected(broker.url, hello={"options": own}) as client:
                    end = await client.turn(f'first [[sim tokens=2 tool="{CALL}"]]', within_s=60)
                    assert not end["is_error"]
                    results = [f["message"]["content"] for f in client.frames if f["type"] == "user"]
                    assert "4242" in str(results), "the tool ran without a prompt, and its result came back"
                    status = {"type": "control_request", "request_id": "s1", "request": {"subtype": "mcp_status"}}
                    await client.send(status)
                    reply = await client.until_type("control_response")
                    servers = reply["response"]["response"]["mcpServers"]
                    assert [(s["name"], s["status"]) for s in servers] == [("acme", "connected")]
                    assert "mcp-secret" not in str(reply)
                bad = {"acme": {"type": "http", "url": url, "headers": {"Authorization": "Bearer wrong"}}}
                async with connected(broker.url, hello={"options": options("b", mcp_servers=bad)}) as client:
                    end = await client.turn("second [[sim tokens=2]]", within_s=60)
                    assert not end["is_error"]
                    told = [f["mcp_errors"] for f in client.frames if f.get("mcp_errors")]
                    assert [list(errors) for errors in told] == [["acme"]]
        calls = {r["credential"]: "mcp__acme" in str(r["messages"]) + str(r["tools"]) for r in posts(api)}
        assert calls == {"a": True, "b": False}
