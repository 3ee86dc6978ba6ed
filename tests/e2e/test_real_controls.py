"""Late options and control requests on the real CLI: in force in the next request, and in the next process."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from simulator.messages_api import MessagesApi
from tests.e2e import control_scenes as scenes
from tests.e2e.hook_scenes import LONG_S
from tests.e2e.processes import killed
from tests.e2e.real import EITHER, options, posts, real_broker, started_real_broker
from tests.kit.broker import Broker
from tests.kit.client import Client, connected
from tests.oracle import Oracle

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(180)]


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short one: sockets of the CLI's sandbox lie below it, and their paths may have 107 bytes."""
    return tmp_path_factory.mktemp("c")


@asynccontextmanager
async def staged(folder: Path, version: str, **policy: Any) -> AsyncIterator[tuple[Broker, MessagesApi]]:
    """A broker over that CLI as the scenes want it, with more of a policy."""
    config = scenes.config(folder)
    with MessagesApi() as api:
        config["cli"]["env"] |= {"ANTHROPIC_BASE_URL": api.url, "CLAUDE_CODE_MAX_RETRIES": "0"}
        config["policy"] |= policy
        async with real_broker(folder, version, api, config) as broker:
            yield broker, api


@pytest.fixture(scope="module", params=EITHER)
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, oracle: Oracle
) -> Iterator[tuple[Broker, Path]]:
    """One broker for all scenes of a version, and the folder that its policy names."""
    folder = tmp_path_factory.mktemp("s")
    with started_real_broker(folder, request.param, oracle, scenes.config(folder)) as broker:
        yield broker, folder


@pytest.mark.parametrize("scene", scenes.ALL, ids=lambda scene: scene.__name__)
async def test_on_the_real_cli(scene: scenes.Scene, stage: tuple[Broker, Path]) -> None:
    """Each scene as its own words say."""
    await scene(stage[0], options("good"), stage[1])


async def _said(client: Client, text: str) -> None:
    end = await client.turn(f"{text} [[sim tokens=2]]", text, within_s=LONG_S)
    assert (end["type"], end["is_error"]) == ("broker.turn_completed", False), end


def _paid(api: MessagesApi, text: str) -> set[tuple[str, str]]:
    """What the requests that carry ``text`` as their latest words were paid with."""
    mine = [r for r in posts(api) if r["user_texts"] and text in str(r["user_texts"][-1])]
    assert mine, text
    return {(r["credential_kind"], r["credential"]) for r in mine}


@pytest.mark.full
@pytest.mark.parametrize("version", EITHER)
async def test_credentials_are_rotated_between_two_turns(version: str, folder: Path) -> None:
    """Every kind after every other, and another address and back: the next request has the new one and nothing of the
    old; the process that is started after a crash has it too."""
    with MessagesApi() as second:
        async with staged(folder, version, base_urls=[second.url]) as (broker, api):
            async with connected(broker.url, hello={"options": options("oauth-1")}) as client:
                await _said(client, "first-words")
                wanted = {"first-words": ("oauth", "oauth-1")}
                kinds = [
                    ({"api_key": "key-2"}, ("api_key", "key-2")),
                    ({"auth_token": "bearer-3"}, ("auth_token", "bearer-3")),
                    ({"oauth_token": "oauth-4"}, ("oauth", "oauth-4")),
                    ({"auth_token": "bearer-5"}, ("auth_token", "bearer-5")),
                    ({"api_key": "key-6"}, ("api_key", "key-6")),
                    ({"oauth_token": "oauth-7"}, ("oauth", "oauth-7")),
                ]
                for number, (credentials, seen) in enumerate(kinds):
                    reply = await client.control("set_credentials", credentials=credentials)
                    assert (reply["subtype"], reply["response"]) == ("success", {})
                    await _said(client, f"words-{number}")
                    wanted[f"words-{number}"] = seen
                for text, paid in wanted.items():
                    assert _paid(api, text) == {paid}, text
                sources = [f["apiKeySource"] for f in client.of_type("system") if f["subtype"] == "init"]
                assert sources == ["none", "ANTHROPIC_API_KEY", "none", "none", "none", "ANTHROPIC_API_KEY", "none"]
                told = [next(iter(credentials)) for credentials, _ in kinds]
                assert [state["credentials"] for state in scenes.states(client)] == told
                elsewhere = {"api_key": "key-8", "base_url": second.url}
                assert (await client.control("set_credentials", credentials=elsewhere))["subtype"] == "success"
                await _said(client, "elsewhere-words")
                assert _paid(second, "elsewhere-words") == {("api_key", "key-8")}
                await client.control("set_credentials", credentials={"api_key": "key-9"})
                await _said(client, "back-words")
                assert _paid(api, "back-words") == {("api_key", "key-9")}
                await killed(broker, client)
                await _said(client, "restored-words")
                assert _paid(api, "restored-words") == {("api_key", "key-9")}
        assert len(posts(second)) == 1


@pytest.mark.parametrize("version", EITHER)
async def test_credentials_are_rotated_in_mid_turn(version: str, folder: Path) -> None:
    """The next request of the same turn is paid with the new one, and the turn is not taken for a mistake."""
    async with staged(folder, version) as (broker, api):
        hello = {"options": options("oauth-1", allowed_tools=["Bash(sleep:*)"])}
        async with connected(broker.url, hello=hello) as client:
            await client.say('[[sim tool="Bash:sleep 3" tokens=2]] long-words', "m-1")
            await client.until(lambda f: f["type"] == "assistant", LONG_S)
            assert (await client.control("set_credentials", credentials={"api_key": "key-2"}))["subtype"] == "success"
            end = await client.terminal("m-1", LONG_S)
            assert (end["type"], end["is_error"]) == ("broker.turn_completed", False), end
            await _said(client, "next-words")
        paid = [(r["credential_kind"], r["credential"]) for r in posts(api)]
        assert paid == [("oauth", "oauth-1"), ("api_key", "key-2"), ("api_key", "key-2")]


@pytest.mark.parametrize("version", EITHER)
async def test_late_options_are_in_the_request(version: str, folder: Path) -> None:
    """Effort, output style, schema, agents and betas of hello, and another effort from the next turn on."""
    late = options(
        "good", effort="high", betas=["context-1m-2025-08-07"], json_schema=scenes.SCHEMA,
        agents={"helper": {"description": "helps", "prompt": "You help."}}, system_prompt="You are a parrot.",
        settings={"outputStyle": "Explanatory"}, max_output_tokens=4321,
    )  # fmt: skip
    async with staged(folder, version) as (broker, api):
        async with connected(broker.url, hello={"options": late}) as client:
            await client.turn(f'one [[sim tool="{scenes.ANSWER}"]]', within_s=LONG_S)
            await client.control("apply_flag_settings", settings={"effortLevel": "low"})
            await client.turn(f'two [[sim tool="{scenes.ANSWER}"]]', within_s=LONG_S)
            assert "helper" in scenes.init(client)["agents"]
    first, second = posts(api)[0], posts(api)[-1]
    assert (first["effort"], second["effort"]) == ("high", "low")
    assert "StructuredOutput" in first["tools"]
    assert "context-1m-2025-08-07" in first["betas"]
    assert "You are a parrot." in first["system"]
    assert first["max_tokens"] == 4321
