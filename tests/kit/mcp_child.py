"""The MCP server of ``tests/kit/mcp_server.py`` as a child process: started, reachable, ended.

Callers: the conformance test's situations, tests of the simulated CLI and of the broker that use a real MCP server.
"""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.kit.broker import ROOT
from tests.waiting import eventually, eventually_sync

STARTUP_S: Final = 20.0
PATHS: Final = {"http": "mcp", "sse": "sse"}
STDIO: Final[dict[str, Any]] = {
    "type": "stdio", "command": sys.executable, "args": ["-m", "tests.kit.mcp_server", "stdio"],
    "env": {"PYTHONPATH": str(ROOT)},
}  # fmt: skip
"""The server as a program that the CLI starts itself."""


def configuration(url: str, token: str) -> dict[str, Any]:
    """How a client names the server at ``url``."""
    kind = "sse" if url.endswith(PATHS["sse"]) else "http"
    return {"type": kind, "url": url, "headers": {"Authorization": f"Bearer {token}"}}


@contextmanager
def mcp_server(folder: Path, token: str, transport: str = "http") -> Iterator[str]:
    """The URL of a running server, for tests without an event loop."""
    with _child(folder, token, transport) as ports:
        yield _url(eventually_sync(lambda: _port(ports), STARTUP_S), transport)


@asynccontextmanager
async def open_mcp_server(folder: Path, token: str, transport: str = "http") -> AsyncIterator[str]:
    """The same for a test with one."""
    with _child(folder, token, transport) as ports:
        yield _url(await eventually(lambda: _port(ports), STARTUP_S), transport)


@contextmanager
def _child(folder: Path, token: str, transport: str) -> Iterator[Path]:
    ports = folder / f"mcp-{transport}.port"
    ports.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "tests.kit.mcp_server", token, str(ports), transport]
    with subprocess.Popen(argv, cwd=ROOT) as child:
        try:
            yield ports
        finally:
            # SIGTERM would wait for the streams that a client still holds open.
            child.kill()


def _port(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _url(port: str, transport: str) -> str:
    return f"http://127.0.0.1:{port}/{PATHS[transport]}"
