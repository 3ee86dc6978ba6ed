"""The admin listener: metrics and probes, GET only.

Owner: ``broker.app``, for as long as the ``async with`` block lasts.  Its sockets are few, so that they take no file
descriptor that a process needs; the first of them may also where tenants' sockets may take no more: a probe that fails
in a flood would have the broker restarted.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from broker.metrics import Metrics
from broker.sockets.door import Door, guarded
from broker.sockets.headroom import ACCEPT_BATCH
from broker.sockets.http import AdminSite
from broker.sockets.listeners import Listener, place

OPEN_TIMEOUT_S = 10.0
ADMIN_SOCKETS = 32
"""At a time; one more is reset at once."""
SPARED = 8
"""Of them, those that are let in whatever descriptors are left."""


def admin_door(metrics: Metrics, first_refused: Callable[[], int | None]) -> Door:
    """The bound of the admin port's sockets."""
    return Door("admin", metrics, first_refused, most=ADMIN_SOCKETS, spared=SPARED)


@asynccontextmanager
async def admin_port(site: AdminSite, listen: str, sock: Listener | None, door: Door) -> AsyncIterator[int]:
    """Answer on ``sock``, or on ``listen`` (HOST:PORT); gives the real port.  Raises ``OSError`` when it is taken."""

    def answer(connection: ServerConnection, request: Request) -> Response:
        return site.respond(request)

    server = await serve(
        _never, process_request=answer, create_connection=guarded(door), server_header=None,
        open_timeout=OPEN_TIMEOUT_S, backlog=ACCEPT_BATCH, **place(listen, sock),
    )  # fmt: skip
    real_port: int = next(iter(server.sockets)).getsockname()[1]
    site.listening_on(real_port)
    try:
        yield real_port
    finally:
        server.close()


async def _never(connection: ServerConnection) -> None:
    """Never called: every request is answered before an upgrade."""
