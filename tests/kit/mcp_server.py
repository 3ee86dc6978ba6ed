"""A real MCP server (PyPI ``mcp``): streamable HTTP or SSE behind a bearer token, or stdio.

Its tools are ``add``, ``slow`` (sleeps) and ``ask`` (asks the user a question through the client).  Run as a child:
``python -m tests.kit.mcp_server TOKEN PORT_FILE [http|sse]`` or ``python -m tests.kit.mcp_server stdio``.
Caller: ``tests/kit/mcp_child.py``.
"""

import asyncio
import socket
import sys
from pathlib import Path
from typing import Annotated

import uvicorn
from mcp.server.mcpserver import AcceptedElicitation, Elicit, ElicitationResult, MCPServer, Resolve
from pydantic import BaseModel
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class Colour(BaseModel):
    """What ``ask`` wants to know."""

    colour: str


async def _colour(question: str) -> Elicit[Colour]:
    # Works with either protocol revision; Context.elicit() needs a back channel, which 2026-07-28 does not have.
    return Elicit(question, Colour)


def build() -> MCPServer:
    """The server without a transport."""
    server = MCPServer("acme", log_level="ERROR")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool()
    async def slow(seconds: float) -> str:
        """Answer after a while."""
        await asyncio.sleep(seconds)
        return "slept"

    @server.tool()
    async def ask(question: str, answer: Annotated[ElicitationResult[Colour], Resolve(_colour)]) -> str:
        """Ask the user for a colour; says what became of the question."""
        return answer.data.colour if isinstance(answer, AcceptedElicitation) else f"no answer: {answer.action}"

    return server


class Guard:
    """Answers 401 to every request without the token.  Plain ASGI: a streamed answer passes untouched."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._wanted = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and dict(scope["headers"]).get(b"authorization") != self._wanted:
            await PlainTextResponse("unauthorized", 401)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def main(token: str, port_file: str, transport: str = "http") -> None:
    """Serve on a port of the system's choice, which is written to ``port_file``."""
    server = build()
    app = server.sse_app() if transport == "sse" else server.streamable_http_app()
    listener = socket.create_server(("127.0.0.1", 0))
    # asyncio switches Nagle's algorithm off only for sockets that say they are TCP's, which those of create_server do
    # not: each answer in two parts would then wait 40 ms for the client's acknowledgement.  What is accepted inherits.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    Path(port_file).write_text(str(listener.getsockname()[1]))
    config = uvicorn.Config(Guard(app, token), log_level="error", lifespan="on")
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    if sys.argv[1:] == ["stdio"]:
        build().run("stdio")
    else:
        main(*sys.argv[1:])
