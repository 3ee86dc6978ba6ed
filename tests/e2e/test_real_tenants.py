"""Many tenants at once on the real CLI: no request ever carries the token of another one."""

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from simulator.messages_api import MessagesApi
from tests.e2e.real import EITHER, options, posts, real_broker
from tests.kit.broker import Broker
from tests.kit.client import connected

pytestmark = [pytest.mark.real_cli, pytest.mark.slow, pytest.mark.timeout(900)]

TENANTS = 20
TURNS = int(os.environ.get("TENANT_TURNS", "2"))
"""Turns of each tenant; 100 make the 2,000 requests of docs/features.md."""
WITHIN_S = 300.0


@pytest.mark.parametrize("version", EITHER)
async def test_no_request_of_twenty_tenants_carries_a_foreign_token(version: str, tmp_path: Path) -> None:
    """Interleaved turns of 20 tenants with a token each: every request has the token and the prompt of its text."""
    config = {
        "pool": {"max_processes": 24, "queue_timeout_s": 300, "profiles": {"default": {"warm": 4}}},
        "session": {"detach_timeout_s": 0},
    }
    with MessagesApi() as api:
        async with real_broker(tmp_path, version, api, config) as broker:
            together = asyncio.Barrier(TENANTS)
            async with asyncio.TaskGroup() as group:
                for number in range(TENANTS):
                    group.create_task(_turns(broker, number, together))
        seen = Counter(_tenants_of(request) for request in posts(api))
        requests = len(posts(api))
        assert not [request for request in posts(api) if not _is_its_own(request)]
    assert requests >= TENANTS * TURNS
    assert seen.keys() == set(range(TENANTS))
    assert set(seen.values()) == {requests // TENANTS}
    print(f"{version}: {requests} requests of {TENANTS} tenants, none with a foreign token")


async def _turns(broker: Broker, number: int, together: asyncio.Barrier) -> None:
    own = options(f"oauth-tenant-{number:02}", system_prompt=f"You work for tenant-{number:02}.")
    async with connected(broker.url) as client:
        await client.send({"type": "broker.hello", "options": own})
        await client.until(lambda frame: frame["type"] == "broker.welcome", WITHIN_S)
        await together.wait()
        for turn in range(TURNS):
            end = await client.turn(f"tenant-{number:02} turn-{turn} [[sim tokens=3]]", within_s=WITHIN_S)
            assert not end["is_error"], end


def _tenants_of(request: Mapping[str, Any]) -> int:
    return int(request["credential"].rpartition("-")[2])


def _is_its_own(request: Mapping[str, Any]) -> bool:
    """The token's tenant, and no other, is named by the system prompt and by the messages."""
    names = {f"tenant-{number:02}" for number in range(TENANTS)}
    found = {name for name in names if name in str(request["system"]) or name in str(request["messages"])}
    return request["credential_kind"] == "oauth" and found == {request["credential"].removeprefix("oauth-")}
