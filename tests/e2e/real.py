"""A broker over the real Claude Code CLI, against the Messages API stand-in on loopback.

Callers: the tests named ``test_real_*``.  Nothing here ever talks to a CLI directly: every line goes through a socket.
"""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from simulator.messages_api import MessagesApi
from tests.kit.broker import Broker, running_broker, started_broker
from tests.oracle import Oracle
from tests.real_cli import require
from tests.waiting import eventually_sync

VERSIONS = ("2.1.197", "2.1.329")
EITHER = (pytest.param("2.1.197", marks=pytest.mark.full), "2.1.329")
"""Both in `make test-full`; the newer one in `make test`, which has ten minutes."""
API_START_S = 20.0


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


@contextmanager
def started_real_broker(
    folder: Path, version: str, oracle: Oracle, config: Mapping[str, Any] | None = None
) -> Iterator[Broker]:
    """The same without an event loop, for a fixture that many tests share, since each start costs seconds.

    The API is a program of its own: its sockets would look like leaks of the first test.
    """
    binary, port_file = str(require(version)[version]), folder / "api-port"
    argv = [sys.executable, "-m", "simulator.messages_api", "--port", "0", "--port-file", str(port_file)]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as api:
        try:
            oracle.allow(pid=api.pid)
            eventually_sync(port_file.exists, API_START_S)
            url = f"http://127.0.0.1:{port_file.read_text().strip()}"
            base: dict[str, Any] = {**(config or {})}
            known = base.get("cli", {})
            environment = {**known.get("env", {}), "ANTHROPIC_BASE_URL": url, "CLAUDE_CODE_MAX_RETRIES": "0"}
            base["cli"] = {**known, "env": environment}
            with started_broker(folder, base, cli=binary) as broker:
                oracle.allow(pid=broker.pid)
                yield broker
        finally:
            api.terminate()


def posts(api: MessagesApi) -> list[dict[str, Any]]:
    """The requests for a message that the stand-in saw."""
    return [r for r in api.requests() if r["method"] == "POST" and r["path"] == "/v1/messages"]
