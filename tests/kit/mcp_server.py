"""A real MCP server (streamable HTTP, PyPI ``mcp``) that demands a bearer token and counts what it is asked.

Run as a child: ``python -m tests.kit.mcp_server TOKEN PORT_FILE``.  Caller: ``tests/e2e/test_real_mcp.py``.
"""

import asyncio
import socket
import sys
from pathlib import Path

import uvicorn
from mcp.server.mcpserver import MCPServer
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response


def main(token: str, port_file: str) -> None:
    """Serve one tool, ``add``, on a port of the system's choice."""
    server = MCPServer("acme")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    async def guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
        if request.headers.get("authorization") != f"Bearer {token}":
            return PlainTextResponse("unauthorized", 401)
        return await call_next(request)

    app = server.streamable_http_app(stateless_http=True, json_response=True)
    app.add_middleware(BaseHTTPMiddleware, dispatch=guard)
    listener = socket.create_server(("127.0.0.1", 0))
    Path(port_file).write_text(str(listener.getsockname()[1]))
    config = uvicorn.Config(app, log_level="error", lifespan="on")
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
