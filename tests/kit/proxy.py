"""A TCP proxy that cuts a connection at a chosen byte, in either direction, or on command.

Callers: the end-to-end tests: ``async with fault_proxy(port) as proxy``; ``proxy.arm(At(down=700))`` is for the next
connection alone.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.kit.raw import ServerBytes
from tests.waiting import eventually

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes close() send RST."""


@dataclass(frozen=True, slots=True)
class At:
    """Where a connection ends: after ``down`` bytes to the client, after ``up`` bytes to the server, or after ``bytes``
    of the header of frame number ``frame`` (from 0) of the server.  ``quietly``: by an orderly FIN, not by RST."""

    down: int | None = None
    up: int | None = None
    frame: int | None = None
    bytes: int = 1
    quietly: bool = False


class FaultProxy:
    """Forwards to ``target_port`` on 127.0.0.1."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._armed = At()
        self._open: set[asyncio.StreamWriter] = set()
        self._busy = 0
        self.port = 0
        self.cuts = 0
        """Connections that ended where they were told to."""

    def arm(self, at: At) -> None:
        """Say where the next accepted connection ends."""
        self._armed = at

    def cut_after(self, count: int) -> None:
        """Reset the next accepted connection after ``count`` bytes have gone to the client."""
        self.arm(At(down=count))

    def cut_all(self) -> None:
        """Reset every open connection now."""
        for writer in list(self._open):
            _end(writer, quietly=False)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One proxied connection, both directions."""
        at, self._armed = self._armed, At()
        pair = {writer}
        self._busy += 1
        try:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._target)
            pair.add(upstream)
            self._open |= pair
            async with asyncio.TaskGroup() as group:
                up = group.create_task(_copy(reader, upstream, _Limit(at.up)))
                down = group.create_task(_copy(upstream_reader, writer, _Limit(at.down, at.frame, at.bytes)))
                done, _ = await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
                up.cancel()
                down.cancel()
            self.cuts += any(task.result() for task in done)
        except OSError:
            pass  # nobody listens there any more: the client sees its connection end
        finally:
            self._open -= pair
            for one in pair:
                _end(one, quietly=at.quietly)
            self._busy -= 1

    async def wait_idle(self) -> None:
        """Until every connection has ended; at most 5 s."""
        await eventually(lambda: not self._busy)


class _Limit:
    """How many bytes of one direction may pass."""

    def __init__(self, count: int | None, frame: int | None = None, header_bytes: int = 0) -> None:
        self._left = count
        self._frame = frame
        self._header_bytes = header_bytes
        self._seen = ServerBytes()

    def allowed(self, chunk: bytes) -> int | None:
        """How much of ``chunk`` passes before the end; None: all of it, and the connection goes on."""
        if self._frame is not None:
            before = self._seen.total
            self._seen.feed(chunk)
            if len(self._seen.starts) > self._frame:
                self._left = self._seen.starts[self._frame] + self._header_bytes - before
                self._frame = None
        if self._left is None:
            return None
        if len(chunk) >= self._left:
            return self._left
        self._left -= len(chunk)
        return None


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: _Limit) -> bool:
    """True when the limit ended it, False when one of the peers did."""
    try:
        while chunk := await reader.read(65536):
            allowed = limit.allowed(chunk)
            writer.write(chunk if allowed is None else chunk[:allowed])
            await writer.drain()
            if allowed is not None:
                return True
    except OSError:
        pass
    return False


def _end(writer: asyncio.StreamWriter, *, quietly: bool) -> None:
    raw = writer.get_extra_info("socket")
    if quietly:
        writer.close()
        return
    if raw is not None and raw.fileno() != -1:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


@asynccontextmanager
async def fault_proxy(target_port: int) -> AsyncIterator[FaultProxy]:
    """Run a proxy on a port of its own."""
    proxy = FaultProxy(target_port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut_all()
        await proxy.wait_idle()
