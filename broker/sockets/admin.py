"""The admin listener: metrics and probes, GET only.

Owner: ``broker.app``, for as long as the ``async with`` block lasts.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from broker.sockets.http import AdminSite
from broker.sockets.listeners import Listener, place

OPEN_TIMEOUT_S = 10.0


@asynccontextmanager
async def admin_port(site: AdminSite, listen: str, sock: Listener | None) -> AsyncIterator[int]:
    """Answer on ``sock``, or on ``listen`` (HOST:PORT); gives the real port.  Raises ``OSError`` when it is taken."""

    def answer(connection: ServerConnection, request: Request) -> Response:
        return site.respond(request)

    server = await serve(
        _never, process_request=answer, server_header=None, open_timeout=OPEN_TIMEOUT_S, **place(listen, sock)
    )
    real_port: int = next(iter(server.sockets)).getsockname()[1]
    site.listening_on(real_port)
    try:
        yield real_port
    finally:
        server.close()


async def _never(connection: ServerConnection) -> None:
    """Never called: every request is answered before an upgrade."""
