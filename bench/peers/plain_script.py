"""What people write: a WebSocket server that starts a program for each connection and passes lines on.

Kept as it is usually found, so that the comparison is with that: the library's defaults, asyncio's own loop and
streams, one ``send`` for each line.  ``python -m bench.peers.plain_script PORT_FILE COMMAND [ARGUMENT...]``; it is a
program of its own.  Caller: ``bench.peers.subject``.
"""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


async def to_program(websocket: ServerConnection, process: Process) -> None:
    """Messages of the client to stdin, until it leaves."""
    assert process.stdin is not None
    async for message in websocket:
        assert isinstance(message, str)
        process.stdin.write(message.encode() + b"\n")
        await process.stdin.drain()
    process.stdin.close()


async def to_client(websocket: ServerConnection, process: Process) -> None:
    """Lines of stdout to the client, until the program ends."""
    assert process.stdout is not None
    async for line in process.stdout:
        await websocket.send(line.decode().rstrip("\n"))
    await websocket.close()


async def main(port_file: Path, command: list[str]) -> None:
    """Serve until SIGTERM."""

    async def handle(websocket: ServerConnection) -> None:
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(to_program(websocket, process))
                group.create_task(to_client(websocket, process))
        except* (ConnectionClosed, ConnectionError):
            pass
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with serve(handle, "127.0.0.1", 0) as server:
        part = port_file.with_name("part")
        part.write_text(str(next(iter(server.sockets)).getsockname()[1]))
        part.replace(port_file)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
