"""Late binding on the real CLI: every request of a tenant carries exactly that tenant's own."""

import asyncio
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from simulator.messages_api import MessagesApi
from tests.e2e.real import EITHER, options, posts, real_broker
from tests.kit.broker import Broker
from tests.kit.client import connected

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(120)]

TENANTS = 4
MODELS = ("sonnet", "opus", "haiku", "sonnet")


@pytest.mark.parametrize("version", EITHER)
async def test_every_request_carries_its_tenants_own(version: str, tmp_path: Path) -> None:
    """Tenants at once, with OAuth tokens, an API key, a bearer token and another endpoint: no request mixes any two."""
    with MessagesApi() as api, MessagesApi() as second:
        config = {"policy": {"base_urls": [second.url]}, "pool": {"profiles": {"default": {"warm": 3}}}}
        async with real_broker(tmp_path, version, api, config) as broker:
            await broker.wait_spares(3)
            tenants = [
                options(f"oauth-{n}", model=MODELS[n], system_prompt=f"You are number {n}.") for n in range(TENANTS)
            ]
            tenants.append({"credentials": {"api_key": "key-4"}, "system_prompt": "You are number 4."})
            tenants.append({"credentials": {"auth_token": "bearer-5", "base_url": second.url}})
            async with asyncio.TaskGroup() as group:
                for number, own in enumerate(tenants):
                    group.create_task(_two_turns(broker, number, own))
        seen = {number: [r for r in posts(api) + posts(second) if _mentions(r, number)] for number in range(6)}
        assert all(len(found) >= 2 for found in seen.values()), {n: len(f) for n, f in seen.items()}
        assert sum(map(len, seen.values())) == len(posts(api)) + len(posts(second))
        for number in range(TENANTS):
            family = MODELS[number]
            for request in seen[number]:
                assert (request["credential_kind"], request["credential"]) == ("oauth", f"oauth-{number}")
                assert family in request["model"]
                assert f"You are number {number}." in request["system"]
        assert {(r["credential_kind"], r["credential"]) for r in seen[4]} == {("api_key", "key-4")}
        assert {r["credential"] for r in seen[5]} == {"bearer-5"}
        assert {r["n"] for r in seen[5]} == {r["n"] for r in posts(second)}, (
            "tenant 5 speaks to the second endpoint alone"
        )
        assert not [r for r in posts(api) if r["credential"] == "bearer-5"]


async def _two_turns(broker: Broker, number: int, own: dict[str, object]) -> None:
    async with connected(broker.url, hello={"options": own}) as client:
        for turn in range(2):
            end = await client.turn(f"tenant-{number} turn-{turn} [[sim tokens=5]]", within_s=60)
            assert end["type"] == "broker.turn_completed"
            assert not end["is_error"], end


def _mentions(request: dict[str, object], number: int) -> bool:
    return f"tenant-{number} " in str(request["messages"])


@pytest.mark.parametrize(("token", "model"), [("good-token", "claude-unknown-9"), ("bad-token", "claude-sonnet-4-5")])
async def test_a_refused_model_fails_the_bind(token: str, model: str, tmp_path: Path) -> None:
    """2.1.329 checks a full model name with the credential: an unknown model and a bad token are bind_failed, 4506."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, "2.1.329", api) as broker, connected(broker.url) as client:
            with pytest.raises(ConnectionClosed) as closed:
                await client.hello(options=options(token, model=model))
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4506
            assert client.frames[-1]["code"] == "bind_failed"
            assert client.frames[-1]["message"].startswith("model: ")
            await broker.wait_spares(2)


@pytest.mark.full
async def test_an_old_cli_fails_an_unknown_model_in_its_turn(tmp_path: Path) -> None:
    """2.1.197 takes any model name: the turn then ends with a typed error."""
    with MessagesApi() as api:
        async with real_broker(tmp_path, "2.1.197", api) as broker:
            hello = {"options": options("good-token", model="claude-unknown-9")}
            async with connected(broker.url, hello=hello) as client:
                end = await client.turn("hello", within_s=60)
                assert end["is_error"]
                assert end["error"] == "upstream_error"
