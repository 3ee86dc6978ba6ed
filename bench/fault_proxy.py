"""A TCP proxy that behaves like a bad network: latency, a narrow lane, slices, cuts at a chosen byte, black holes.

Callers: ``bench.chaos`` and the end-to-end tests: ``async with fault_proxy(port) as proxy``.
``proxy.arm(At(down=700))`` is for the next connection alone; ``proxy.down = Lane(latency_s=0.1)`` for all that are
accepted from then on.  What it holds of a direction has a bound (``Passage.most_held``); behind that the sender waits.
"""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from bench.fault_stream import Ending, Stream
from bench.faults import At, How, Lane, Limit, Passage

RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER that makes close() send RST."""
LIMIT_BYTES: Final = 1 << 14
"""What the stream buffers of asyncio may hold; they take up to twice as much."""
CLOSE_DEADLINE_S: Final = 5.0


class FaultProxy:
    """Forwards to ``target_port`` on 127.0.0.1.

    ``buffer_bytes``: SO_RCVBUF of both sockets, so that a narrow lane is felt at its far end soon.
    """

    def __init__(
        self, target_port: int, *, down: Lane | None = None, up: Lane | None = None, seed: int = 0,
        buffer_bytes: int | None = None,
    ) -> None:  # fmt: skip
        self.target = target_port
        self.down = down or Lane()
        """How the bytes to the client travel, for connections from now on."""
        self.up = up or Lane()
        """The same for the bytes to the server."""
        self.buffer_bytes = buffer_bytes
        self.port = 0
        self.cuts = 0
        """Connections that ended where they were told to."""
        self._seed = seed
        self._accepted = 0
        self._armed = At()
        self._open: set[_Connection] = set()
        self._ended = asyncio.Event()

    @property
    def holes(self) -> int:
        """Directions of open connections that have fallen silent where they were told to."""
        return sum(connection.holes for connection in self._open)

    def arm(self, at: At) -> None:
        """Say where the next accepted connection ends.  One that is accepted meanwhile takes it."""
        self._armed = at

    def cut_after(self, count: int) -> None:
        """Reset the next accepted connection after ``count`` bytes have gone to the client."""
        self.arm(At(down=count))

    def cut_all(self) -> None:
        """Reset every open connection now."""
        for connection in list(self._open):
            connection.cut()

    def silence_all(self) -> None:
        """Nothing more is read or forwarded on any open connection; the sockets stay open."""
        for connection in list(self._open):
            connection.silence()

    async def wait_idle(self) -> None:
        """Until every connection has ended."""
        while self._open:
            self._ended.clear()
            await self._ended.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One proxied connection, both directions."""
        at, self._armed = self._armed, At()
        self._accepted += 1
        connection = _Connection(self, at, writer)
        self._open.add(connection)
        try:
            await connection.run(reader, random.Random(f"{self._seed}:{self._accepted}"))
        finally:
            self._open.discard(connection)
            self._ended.set()


class _Connection:
    """Both directions and their sockets."""

    def __init__(self, proxy: FaultProxy, at: At, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._at = at
        self._writers = [writer]
        self._streams: list[Stream] = []
        self._cut = asyncio.Event()

    def cut(self) -> None:
        """Reset both ends."""
        self._cut.set()
        for writer in self._writers:
            reset(writer)

    def silence(self) -> None:
        """Nothing more is read or forwarded."""
        for stream in self._streams:
            stream.silence()

    @property
    def holes(self) -> int:
        """Directions that have fallen silent where they were told to."""
        return sum(stream.is_hole for stream in self._streams)

    async def run(self, reader: asyncio.StreamReader, chance: random.Random) -> None:
        """To the end of one of the directions."""
        at, proxy, ending = self._at, self._proxy, Ending(How.RESET, is_told=False)
        try:
            upstream_reader, upstream = await _connected(proxy)
            self._writers.append(upstream)
            up = Passage(proxy.up, Limit(at.up), random.Random(chance.random()))
            down = Passage(proxy.down, Limit(at.down, at.frame, at.bytes), random.Random(chance.random()))
            self._streams.append(Stream(reader, upstream, up, at.how))
            self._streams.append(Stream(upstream_reader, self._writers[0], down, at.how))
            ending = await self._first_ending()
            proxy.cuts += ending.is_told
        except OSError:
            pass  # nobody listens there any more: the client sees its connection end
        finally:
            await self._end(ending.how)

    async def _first_ending(self) -> Ending:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(stream.run()) for stream in self._streams]
            cut = group.create_task(self._cut.wait())
            await asyncio.wait([*running, cut], return_when=asyncio.FIRST_COMPLETED)
            endings = [task.result() for task in running if task.done()]
            for task in (*running, cut):
                task.cancel()
        return max(endings, key=lambda ending: ending.is_told, default=Ending(How.RESET, is_told=False))

    async def _end(self, how: How) -> None:
        if how is not How.CLOSE:
            self.cut()
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            try:
                async with asyncio.timeout(CLOSE_DEADLINE_S):
                    await writer.wait_closed()
            except OSError:  # reset, or a peer that takes no more (a TimeoutError)
                reset(writer)


async def _connected(proxy: FaultProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the target.  Raises ``OSError``."""
    raw = _socket(proxy.buffer_bytes)
    try:
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", proxy.target))
    except BaseException:
        raw.close()
        raise
    return await asyncio.open_connection(sock=raw, limit=LIMIT_BYTES)


def _socket(buffer_bytes: int | None) -> socket.socket:
    raw = socket.socket()
    raw.setblocking(False)
    if buffer_bytes is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    return raw


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST; what is unsent is dropped."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() != -1:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


@asynccontextmanager
async def fault_proxy(
    target_port: int,
    *,
    down: Lane | None = None,
    up: Lane | None = None,
    seed: int = 0,
    buffer_bytes: int | None = None,
) -> AsyncIterator[FaultProxy]:
    """Run a proxy on a port of its own; what is open at the end is reset."""
    proxy = FaultProxy(target_port, down=down, up=up, seed=seed, buffer_bytes=buffer_bytes)
    async with serving(proxy):
        yield proxy


@asynccontextmanager
async def serving(proxy: FaultProxy) -> AsyncIterator[None]:
    """Give ``proxy`` its port; what is open at the end is reset, and waited for."""
    listener = _socket(proxy.buffer_bytes)  # what it accepts inherits the size of its buffer
    listener.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(proxy.serve, sock=listener, limit=LIMIT_BYTES)
    proxy.port = listener.getsockname()[1]
    try:
        yield
    finally:
        server.close()
        proxy.cut_all()
        await proxy.wait_idle()
