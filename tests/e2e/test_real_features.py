"""Agents, prompts and modes on the real CLI, and what of them its API sees."""

import pytest

from simulator.messages_api import MessagesApi
from tests.e2e import feature_scenes as scenes
from tests.e2e.real import VERSIONS, options, posts, real_broker

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(180)]


@pytest.mark.parametrize("version", VERSIONS)
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
