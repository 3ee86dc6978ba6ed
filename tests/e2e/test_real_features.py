"""Agents, prompts and modes on the real CLI, and what of them its API sees."""

import json

import pytest

from simulator.messages_api import MessagesApi
from tests.e2e import feature_scenes as scenes
from tests.e2e.real import EITHER, options, posts, real_broker
from tests.kit.client import connected

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(180)]


@pytest.mark.parametrize("version", EITHER)
async def test_on_the_real_cli(version: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every scene in one broker; the agent's prompt is the system prompt of its own request, on its own model."""
    folder = tmp_path_factory.mktemp("f")
    with MessagesApi() as api:
        async with real_broker(folder, version, api) as broker:
            for scene in scenes.ALL:
                await scene(broker, options("good", append_system_prompt="Speak softly."), folder)
        own = [request for request in posts(api) if "You are the digger." in request["system"]]
    assert [("haiku" in request["model"], request["user_texts"][-1]) for request in own] == [
        (True, "dig deep [[sim text=found]]")
    ]
    assert all("Speak softly." in request["system"] for request in posts(api) if request not in own)


@pytest.mark.parametrize("version", EITHER)
async def test_an_agent_names_no_model_that_the_policy_does_not(
    version: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A subagent that the model wants on another model runs on the session's own."""
    given = {"description": "d", "prompt": "dig [[sim text=x]]", "subagent_type": "general-purpose", "model": "opus"}
    call = json.dumps({**given, "run_in_background": False}).replace('"', '\\"')
    with MessagesApi() as api:
        config = {"policy": {"models": ["haiku", "sonnet"]}}
        async with real_broker(tmp_path_factory.mktemp("f"), version, api, config) as broker:
            async with connected(broker.url, hello={"options": options("good", model="haiku")}) as client:
                end = await client.turn(f'[[sim tool="Task:{call}" text=done]] go', within_s=scenes.LONG_S)
                assert not end["is_error"], end
        models = [request["model"] for request in posts(api)]
    assert len(models) >= 3
    assert all("haiku" in model for model in models), models
