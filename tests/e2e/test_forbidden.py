"""What the policy forbids never reaches a CLI, whatever frame carries it: the whole way, over a socket."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.forbidden import (
    ESCALATIONS,
    FILES_FORBIDDEN,
    FORBIDDEN,
    LEAKS,
    MODEL_FORBIDDEN,
    OTHER_MONEY,
    SERVER_PAYS,
    Wish,
)
from tests.kit.broker import Broker, running_broker, started_broker
from tests.kit.client import Client, connected
from tests.oracle import Oracle

MARKS = ("bypassPermissions", "/bin/sh", "169.254.169.254", "127.0.0.1:22", "elsewhere.example", "/etc", "opus")
"""What no line on a CLI's stdin may hold in this file."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[Broker]:
    """A broker with the default policy."""
    with started_broker(tmp_path_factory.mktemp("forbidden"), {"session": {"detach_timeout_s": 1}}) as found:
        oracle.allow(pid=found.pid)
        yield found


def name(wish: Wish) -> str:
    return f"{wish.effect}-{wish.carrier}".replace(" ", "_")


async def refused(broker: Broker, wish: Wish) -> None:
    """Send the wish as a tenant would: it is answered by name, and what was there before goes on."""
    if wish.frame["type"] == "broker.hello":
        async with connected(broker.url) as client:
            with pytest.raises(ConnectionClosed) as closed:
                await client.hello(options=wish.frame["options"])
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4503
            assert_refused(client, wish)
        return
    async with connected(broker.url, hello={}) as client:
        await client.send(wish.frame)
        await client.error()
        assert_refused(client, wish)
        end = await client.turn("still here [[sim tokens=2]]")
        assert end["type"] == "broker.turn_completed"


def assert_refused(client: Client, wish: Wish) -> None:
    """The last frame is the refusal, with the setting that would allow it."""
    error = client.frames[-1]
    assert (error["type"], error["code"]) == ("broker.error", "option_not_allowed")
    assert error["message"].endswith(f"(policy.{wish.setting})")


def told(broker: Broker) -> str:
    """Everything that was written to a CLI of this broker."""
    return json.dumps(broker.ledger_rows("in"))


@pytest.mark.parametrize("wish", FORBIDDEN, ids=name)
async def test_a_forbidden_effect_never_reaches_the_cli(wish: Wish, broker: Broker) -> None:
    """It is refused by the name of its setting; the conversation, where there is one, answers the next message."""
    await refused(broker, wish)
    assert [mark for mark in MARKS if mark in told(broker)] == []


async def test_what_the_operator_has_chosen_is_not_changed(tmp_path: Path) -> None:
    """Under a list of models, a paying server, roots of directories: no carrier brings another one."""
    (tmp_path / "token").write_text("operators-own\n")
    policy = {"models": ["sonnet", "haiku"]}
    async with running_broker(tmp_path / "models", {"policy": policy}) as broker:
        for wish in MODEL_FORBIDDEN:
            await refused(broker, wish)
        assert "opus" not in told(broker)
    config: dict[str, Any] = {"policy": {"credentials": "server"}, "cli": {"env": {"CLAUDE_CODE_OAUTH_TOKEN": "own"}}}
    async with running_broker(tmp_path / "paid", config) as broker:
        for wish in SERVER_PAYS:
            await refused(broker, wish)
        assert OTHER_MONEY not in told(broker)
        async with connected(broker.url, hello={}) as client:  # what is looked for would be found
            await client.turn(f"I have {OTHER_MONEY}")
        assert OTHER_MONEY in told(broker)
    elsewhere = {"options": ["add_dirs"], "add_dir_roots": [str(tmp_path)]}
    async with running_broker(tmp_path / "files", {"policy": elsewhere}) as broker:
        for wish in FILES_FORBIDDEN:
            await refused(broker, wish)
        assert "/etc" not in told(broker)


async def test_the_operators_variables_are_not_sent_to_a_tenants_server(broker: Broker) -> None:
    """A header that the CLI would fill with its environment is refused at hello, live, and within an agent."""
    for wish in LEAKS[:4]:
        await refused(broker, wish)
    assert "${" not in told(broker)


@pytest.mark.parametrize("update", ESCALATIONS, ids=lambda update: f"{update['type']}-{update['destination']}")
async def test_a_permission_answer_changes_nothing_else(update: dict[str, Any], broker: Broker, tmp_path: Path) -> None:
    """The answer is refused, the prompt waits on, and an honest answer then ends it."""
    async with connected(broker.url, hello={}) as client:
        await client.say(f'[[sim tool="Bash:touch {tmp_path / "made"}" tokens=2]]')
        prompt = await client.prompt()
        await client.answer(prompt["request_id"], behavior="allow", updatedPermissions=[update])
        assert (await client.error())["code"] == "option_not_allowed"
        await client.answer(prompt["request_id"], behavior="deny", message="no")
        assert (await client.terminal())["type"] == "broker.turn_completed"
    assert not (tmp_path / "made").exists()
    assert "updatedPermissions" not in told(broker)
