"""A broker over the real Claude Code CLI, against the Messages API stand-in on loopback.

Callers: the tests named ``test_real_*``.  Nothing here ever talks to a CLI directly: every line goes through a socket.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from simulator.messages_api import MessagesApi
from tests.kit.broker import Broker, running_broker
from tests.real_cli import require

VERSIONS = ("2.1.197", "2.1.329")


def options(token: str, **others: Any) -> dict[str, Any]:
    """Hello's options with an OAuth token."""
    return {"credentials": {"oauth_token": token}, **others}


@asynccontextmanager
async def real_broker(
    folder: Path, version: str, api: MessagesApi, config: Mapping[str, Any] | None = None
) -> AsyncIterator[Broker]:
    """A broker whose CLI is the pinned ``version``, with two spares, that retries nothing."""
    environment = {"ANTHROPIC_BASE_URL": api.url, "CLAUDE_CODE_MAX_RETRIES": "0"}
    base: dict[str, Any] = {"cli": {"env": environment}, **(config or {})}
    async with running_broker(folder, base, cli=str(require(version)[version])) as broker:
        yield broker


def posts(api: MessagesApi) -> list[dict[str, Any]]:
    """The requests for a message that the stand-in saw."""
    return [r for r in api.requests() if r["method"] == "POST" and r["path"] == "/v1/messages"]
