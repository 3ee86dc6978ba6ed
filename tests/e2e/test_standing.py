"""A tenant's policy that became stricter: what a conversation was bound to before is no way round it."""

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.kit.broker import Broker, running_broker
from tests.kit.client import connected
from tests.oracle import Oracle
from tests.waiting import eventually

TOKEN = "brk_standing-ann"
LOOSE = 'permission_modes = ["default", "bypassPermissions"]\nmcp_stdio = true'
OWN = {"own": {"type": "stdio", "command": "/bin/true"}}


def put(folder: Path, policy: str) -> None:
    """Write the tenants' file in one step."""
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    text = (
        f'[tenants.acme]\ntokens = [{{hash = "sha256:{digest}", subject = "ann"}}]\n[tenants.acme.policy]\n{policy}\n'
    )
    (folder / "next.toml").write_text(text)
    os.replace(folder / "next.toml", folder / "tenants.toml")


def hello(mode: str, **options: Any) -> dict[str, Any]:
    """Hello's fields."""
    return {"auth": {"token": TOKEN}, "session": {"mode": mode, "id": "p"}, "options": options}


async def refusal(broker: Broker, fields: dict[str, Any]) -> tuple[int, str]:
    """With which code the connection closes, and what it is told."""
    async with connected(broker.url) as client:
        with pytest.raises(ConnectionClosed):
            await client.hello(**fields)
        return await client.closed(), client.of_type("broker.error")[-1]["message"]


@asynccontextmanager
async def tightened(folder: Path, **options: Any) -> AsyncIterator[Broker]:
    """A broker with a sleeping conversation that was made when more was allowed."""
    put(folder, LOOSE)
    config = {
        "auth": {"mode": "tokens", "file": str(folder / "tenants.toml")},
        "pool": {"isolation": "none", "mcp_bind_timeout_s": 1, "profiles": {"default": {"warm": 1}}},
        "cli": {"env": {"IS_SANDBOX": "1"}},
        "session": {"detach_timeout_s": 0.2},
    }
    async with running_broker(folder, config) as broker:
        async with connected(broker.url, hello=hello("new", **options)) as client:
            await client.turn("one", "m-1", 30)
        await eventually(lambda: broker.pool()["leased"] == 0, 20)
        before = len(broker.log_events("auth.tenants_loaded"))
        put(folder, 'permission_modes = ["default"]')
        await eventually(lambda: len(broker.log_events("auth.tenants_loaded")) > before, 20)
        yield broker


@pytest.mark.parametrize("mode", ["resume", "fork"])
async def test_a_program_that_is_forbidden_now(tmp_path: Path, oracle: Oracle, mode: str) -> None:
    """Refused by name, and the conversation is there once hello names no such server."""
    oracle.canaries.add(TOKEN)
    async with tightened(tmp_path, mcp_servers=OWN) as broker:
        assert await refusal(broker, hello(mode)) == (4503, "mcp_servers.own: stdio: not allowed (policy.mcp_stdio)")
        async with connected(broker.url, hello=hello(mode, mcp_servers={})) as client:
            assert client.welcome["start"] == "restored"
            assert (await client.turn("two", "m-2", 30))["type"] == "broker.turn_completed"


@pytest.mark.parametrize("mode", ["resume", "fork"])
async def test_a_mode_that_is_forbidden_now(tmp_path: Path, mode: str) -> None:
    """A process that may bypass every prompt is not started again."""
    async with tightened(tmp_path, permission_mode="bypassPermissions") as broker:
        told = (4503, "permission_mode 'bypassPermissions': not allowed (policy.permission_modes)")
        assert await refusal(broker, hello(mode)) == told
        assert await refusal(broker, hello(mode, permission_mode="default")) == told
