"""One direction of a proxied connection: what is read, held until it is due, and written.

Owner and caller: ``bench.fault_proxy``.  What happens to the bytes is decided by ``bench.faults``.
"""

import asyncio
from collections import deque
from typing import Final, NamedTuple

from bench.faults import How, Passage, Piece

READ_BYTES: Final = 1 << 16


class Ending(NamedTuple):
    """How a direction ended, and whether it was told to."""

    how: How
    is_told: bool


class Stream:
    """One direction: one task takes in, the other passes on what is due."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passage: Passage, how: How) -> None:
        self._reader = reader
        self._writer = writer
        self._passage = passage
        self._how = how
        self._held: deque[Piece] = deque()
        self._held_bytes = 0
        self._sender_ended: How | None = None
        self._ends_at = 0.0
        self._is_silent = False
        self._changed = asyncio.Event()
        self.is_hole = False
        """It fell silent where it was told to."""

    def silence(self) -> None:
        """Take in and pass on nothing more."""
        self._is_silent = True
        self._changed.set()

    async def run(self) -> Ending:
        """To the end of this direction."""
        async with asyncio.TaskGroup() as group:
            intake = group.create_task(self._take_in())
            ending = await self._pass_on()
            intake.cancel()
        return ending

    async def _take_in(self) -> None:
        loop = asyncio.get_running_loop()
        most = self._passage.most_held
        while self._sender_ended is None and not self._is_silent and not self._passage.is_over:
            if self._held_bytes >= most:
                await self._wait()
                continue
            try:
                data, how = await self._reader.read(min(READ_BYTES, most)), How.CLOSE
            except OSError:
                data, how = b"", How.RESET
            if data:
                pieces = self._passage.feed(data, loop.time())
                self._held += pieces
                self._held_bytes += sum(len(piece.data) for piece in pieces)
            else:
                self._sender_ended, self._ends_at = how, self._passage.closes_at(loop.time())
            self._changed.set()

    async def _pass_on(self) -> Ending:
        loop = asyncio.get_running_loop()
        while True:
            if self._is_silent:
                await self._wait()
            elif self._held and (early := self._held[0].due - loop.time()) > 0:
                await asyncio.sleep(early)
            elif self._held:
                if not await self._write(self._held.popleft().data):
                    return Ending(How.RESET, is_told=False)
            elif self._passage.is_over and self._how is How.HOLE:
                self._is_silent = self.is_hole = True
            elif self._passage.is_over:
                return Ending(self._how, is_told=True)
            elif self._sender_ended is not None:
                await asyncio.sleep(self._ends_at - loop.time())
                return Ending(self._sender_ended, is_told=False)
            else:
                await self._wait()

    async def _write(self, data: bytes) -> bool:
        """False when nobody takes it any more."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            return False
        self._held_bytes -= len(data)
        self._changed.set()
        return True

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()
