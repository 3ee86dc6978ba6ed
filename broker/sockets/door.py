"""The way in to one port: a socket too many is reset as it comes, counted, and told of once a second.

Owner: whoever listens, ``broker.sockets.server`` and ``broker.app`` (for ``broker.sockets.admin``).  Callers: the
connection classes, when the loop has accepted one and when it is gone.
"""

import asyncio
import time
from collections.abc import Callable
from typing import cast

import structlog
from websockets.asyncio.server import ServerConnection

from broker.metrics import Metrics
from broker.sockets.headroom import descriptor_limit
from protocol.codes import Limit

log = structlog.get_logger(__name__)

TOLD_EVERY_S = 1.0


class Door:
    """Of one port.

    ``first_refused``: the descriptor from which on a socket is refused, asked for each (None: none is).  ``most``:
    sockets at a time, and ``spared``: of them, those that are let in whatever their descriptor is.
    """

    def __init__(
        self,
        port: str,
        metrics: Metrics,
        first_refused: Callable[[], int | None],
        most: int | None = None,
        spared: int = 0,
    ) -> None:
        self._port = port
        self._metrics = metrics
        self._first_refused = first_refused
        self._most = most
        self._spared = spared
        self._inside = 0
        self._refused, self._told_at = 0, 0.0

    def enter(self, descriptor: int) -> bool:
        """Whether the socket may stay; then ``leave`` is called once, when it is gone."""
        first_refused = self._first_refused()
        if self._most is not None and self._inside >= self._most:
            self._refuse(self._most, f"none: sockets of the {self._port} port")
        elif self._inside >= self._spared and first_refused is not None and descriptor >= first_refused:
            self._refuse(descriptor_limit(), "RLIMIT_NOFILE, LimitNOFILE of a unit")
        else:
            self._inside += 1
            return True
        return False

    def leave(self) -> None:
        """One of those inside is gone."""
        self._inside -= 1

    def _refuse(self, limit: int, setting: str) -> None:
        self._metrics.limit_refused(Limit.DESCRIPTORS)
        self._refused += 1
        if time.monotonic() - self._told_at >= TOLD_EVERY_S:
            self._told_at = time.monotonic()
            log.error("connection.no_descriptor", port=self._port, refused=self._refused, limit=limit, setting=setting)


class GuardedSocket(ServerConnection):
    """A connection behind a door.  Refused, it is nobody's: the library is not even told of it."""

    door: Door | None = None
    _is_refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop (asyncio.Protocol)."""
        raw = transport.get_extra_info("socket")
        if self.door is not None and not self.door.enter(raw.fileno()):
            self._is_refused = True
            cast("asyncio.Transport", transport).abort()  # uvloop's are none by name
        else:
            self.entered(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop when nobody is there any more."""
        if not self._is_refused:
            if self.door is not None:
                self.door.leave()
            self.left(exc)

    def entered(self, transport: asyncio.BaseTransport) -> None:
        """Let in."""
        super().connection_made(transport)

    def left(self, exc: Exception | None) -> None:
        """Gone, of those that were let in."""
        super().connection_lost(exc)


def guarded(by: Door) -> type[GuardedSocket]:
    """The class for ``websockets.serve(create_connection=...)``."""

    class Guarded(GuardedSocket):
        door = by

    return Guarded
