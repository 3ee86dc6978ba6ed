"""A child's pipes handed to the event loop, so that each descriptor is closed exactly once.

uvloop closes the descriptor of a pipe, and then the file object that it was given: by then another thread may have
opened a file under the same number, and loses it; in the end the loop aborts the program.  It is therefore given a file
object that closes nothing.  asyncio's loop closes the file object alone, and gets the pipe itself.
Caller: ``broker.processes.process``.
"""

import asyncio
import io
import os
from collections.abc import Callable
from typing import IO


async def read_from(pipe: IO[bytes], protocol: Callable[[], asyncio.Protocol]) -> asyncio.ReadTransport:
    """Read ``pipe`` on the loop; the transport owns its descriptor.

    Raises ``OSError`` when none is left to copy it, or the loop has no room.  Either, and a cancel, closes it.
    """
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(protocol, _lent(loop, pipe))
    return transport


async def write_to(pipe: IO[bytes]) -> asyncio.WriteTransport:
    """The same for a pipe to write to."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_write_pipe(asyncio.Protocol, _lent(loop, pipe))
    return transport


def _lent(loop: asyncio.AbstractEventLoop, pipe: IO[bytes]) -> IO[bytes] | io.FileIO:
    if not type(loop).__module__.startswith("uvloop"):
        return pipe
    mode = "rb" if pipe.readable() else "wb"
    try:
        # A copy, because the pipe of a Popen cannot be told to close nothing.
        descriptor = os.dup(pipe.fileno())
    finally:
        pipe.close()
    return io.FileIO(descriptor, mode, closefd=False)
