"""The fault proxy on real sockets, in both directions: what arrives, what does not, and how it ends."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from bench.fault_proxy import FaultProxy, fault_proxy, reset
from bench.faults import At, How, Lane
from tests.waiting import eventually

DATA = bytes(range(256)) * 4
NOTHING_WITHIN_S = 0.1
"""How long nothing must come: a real one would be there after a millisecond."""


class End(NamedTuple):
    """One end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def rest(self) -> tuple[bytes, bool]:
        """Everything until the end, and whether that was orderly."""
        data = b""
        try:
            async with asyncio.timeout(5):
                while more := await self.reader.read(1 << 16):
                    data += more
        except ConnectionResetError:
            return data, False
        return data, True

    async def is_silent(self) -> bool:
        """Nothing comes, no end either."""
        try:
            async with asyncio.timeout(NOTHING_WITHIN_S):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False


class Line(NamedTuple):
    """A client, the server's end of its connection, and the proxy between them."""

    client: End
    server: End
    proxy: FaultProxy

    def ends(self, direction: str) -> tuple[End, End]:
        """Who sends and who receives."""
        return (self.server, self.client) if direction == "down" else (self.client, self.server)


@asynccontextmanager
async def line(at: At | None = None, *, down: Lane | None = None, up: Lane | None = None) -> AsyncIterator[Line]:
    accepted: list[End] = []
    server = await asyncio.start_server(lambda r, w: accepted.append(End(r, w)), "127.0.0.1", 0)
    async with server, fault_proxy(server.sockets[0].getsockname()[1], down=down, up=up) as proxy:
        if at is not None:
            proxy.arm(at)
        client = End(*await asyncio.open_connection("127.0.0.1", proxy.port))
        await eventually(lambda: accepted)
        try:
            yield Line(client, accepted[0], proxy)
        finally:
            for end in (client, accepted[0]):
                end.writer.transport.abort()


DIRECTIONS = pytest.mark.parametrize("direction", ["down", "up"])


@DIRECTIONS
@pytest.mark.parametrize(("how", "is_orderly"), [(How.RESET, False), (How.CLOSE, True)])
async def test_a_cut_lets_the_first_bytes_through(direction: str, how: How, is_orderly: bool) -> None:
    """Behind them comes an RST, or a FIN, at both ends; the next connection is whole."""
    async with line(At(**{direction: 700}, how=how)) as found:
        sender, receiver = found.ends(direction)
        sender.writer.write(DATA)
        data, was_orderly = await receiver.rest()
        assert was_orderly == is_orderly
        assert data == DATA[:700] or not is_orderly  # an RST may overtake what was sent before it
        assert DATA.startswith(data)
        assert (await sender.rest())[1] == is_orderly
        assert found.proxy.cuts == 1


@DIRECTIONS
async def test_a_black_hole_keeps_the_sockets_open(direction: str) -> None:
    """After the last byte nothing more comes, no end either; the other direction goes on; cut_all() ends it."""
    async with line(At(**{direction: 700}, how=How.HOLE)) as found:
        sender, receiver = found.ends(direction)
        sender.writer.write(DATA)
        assert await receiver.reader.readexactly(700) == DATA[:700]
        await eventually(lambda: found.proxy.holes == 1)
        assert await receiver.is_silent()
        receiver.writer.write(b"still here")
        assert await sender.reader.readexactly(10) == b"still here"
        found.proxy.cut_all()
        assert (await receiver.rest()) == (b"", False)


async def test_all_can_be_silenced_at_once() -> None:
    """An open connection falls silent in both directions, and even the end of one peer is not passed on."""
    async with line() as found:
        found.client.writer.write(b"hello")
        assert await found.server.reader.readexactly(5) == b"hello"
        found.proxy.silence_all()
        found.client.writer.write(b"lost")
        found.server.writer.write(b"lost")
        found.client.writer.close()
        assert await found.server.is_silent()


@DIRECTIONS
async def test_latency_is_a_delay_not_a_rate(direction: str) -> None:
    """Ten pieces written 20 ms apart, each 150 ms late, arrive within 150 ms of the last: they travel together."""
    async with line(down=Lane(latency_s=0.15), up=Lane(latency_s=0.15)) as found:
        sender, receiver = found.ends(direction)
        began = time.monotonic()
        sender.writer.write(b"a")
        assert await receiver.reader.readexactly(1) == b"a"
        assert time.monotonic() - began >= 0.15
        sent = time.monotonic()
        for _ in range(10):
            sender.writer.write(b"bc")
            await sender.writer.drain()
        assert await receiver.reader.readexactly(20) == b"bc" * 10
        assert 0.15 <= time.monotonic() - sent < 1.0  # ten of them one after another would take 1.5 s


@DIRECTIONS
async def test_a_narrow_lane_holds_the_sender_back(direction: str) -> None:
    """At 20,000 bytes per second 4,000 bytes take 0.2 s, and all of them arrive."""
    lane = Lane(bytes_per_s=20_000)
    async with line(down=lane, up=lane) as found:
        sender, receiver = found.ends(direction)
        began = time.monotonic()
        sender.writer.write(b"x" * 4000)
        assert await receiver.reader.readexactly(4000) == b"x" * 4000
        assert time.monotonic() - began >= 0.19


async def test_small_buffers_let_the_sender_feel_it_soon() -> None:
    """With ``buffer_bytes`` a sender that the lane is too narrow for can hand over a few hundred kilobytes, no more."""
    accepted: list[End] = []
    server = await asyncio.start_server(lambda r, w: accepted.append(End(r, w)), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, fault_proxy(port, down=Lane(bytes_per_s=1000), buffer_bytes=4096) as proxy:
        client = End(*await asyncio.open_connection("127.0.0.1", proxy.port))
        await eventually(lambda: accepted)
        raw = accepted[0].writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        accepted[0].writer.write(b"x" * 1_000_000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(NOTHING_WITHIN_S):
                await accepted[0].writer.drain()
        size = accepted[0].writer.transport.get_write_buffer_size()
        assert size > 500_000
        for end in (client, accepted[0]):
            end.writer.transport.abort()


@DIRECTIONS
async def test_slices_change_nothing_but_the_size(direction: str) -> None:
    """A stream in pieces of one to three bytes is the same stream."""
    lane = Lane(slice_bytes=3)
    async with line(down=lane, up=lane) as found:
        sender, receiver = found.ends(direction)
        sender.writer.write(DATA)
        assert await receiver.reader.readexactly(len(DATA)) == DATA


@DIRECTIONS
async def test_a_slow_close_is_passed_on_late(direction: str) -> None:
    """The last bytes come at once, the end 0.2 s later."""
    lane = Lane(close_after_s=0.2)
    async with line(down=lane, up=lane) as found:
        sender, receiver = found.ends(direction)
        began = time.monotonic()
        sender.writer.write(b"bye")
        sender.writer.close()
        assert await receiver.reader.readexactly(3) == b"bye"
        assert await receiver.rest() == (b"", True)
        assert time.monotonic() - began >= 0.19


@DIRECTIONS
async def test_the_end_of_a_peer_is_passed_on_as_it_was(direction: str) -> None:
    """An orderly close arrives as one, behind everything that was sent; a reset as a reset."""
    async with line() as found:
        sender, receiver = found.ends(direction)
        sender.writer.write(DATA * 100)
        sender.writer.close()
        assert await receiver.rest() == (DATA * 100, True)
    async with line() as found:
        sender, receiver = found.ends(direction)
        reset(sender.writer)
        assert (await receiver.rest())[1] is False


async def test_nobody_behind_it_ends_the_connection() -> None:
    """Where the target listens no more the client sees its connection end, and the proxy goes on."""
    async with fault_proxy(1) as proxy:
        for _ in range(2):
            client = End(*await asyncio.open_connection("127.0.0.1", proxy.port))
            assert (await client.rest())[0] == b""
            client.writer.close()
