"""The floor under a warm start: a bare server that, on hello, writes one line to a child and answers when it answered.

It has no sessions, no log, no options, no pool and no metrics: what it costs is the price of a WebSocket, a pipe and
the child on this machine.  ``python -m bench.floor --cli simulated --children 50 --port-file F``; caller: ``running``.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from bench.children import Child, child
from bench.direct import environment, request_line
from broker.processes.launcher import BASELINE
from broker.processes.program import Cli, find_cli

ROOT: Final = Path(__file__).resolve().parent.parent
LINE_BYTES: Final = 2**20
READY: Final = request_line("ready", {"subtype": "get_binary_version"})
BIND: Final = request_line("bind", {"subtype": "initialize"})
STARTS_AT_ONCE: Final = 2


class Bare:
    """The server's whole state: children that answered a first question and belong to nobody yet."""

    def __init__(self, cli: Cli, home: Path) -> None:
        self._cli = cli
        self._home = home
        self._spare: list[asyncio.subprocess.Process] = []
        self._started: list[asyncio.subprocess.Process] = []

    async def start(self, count: int) -> None:
        """Start the children and wait until each has answered once."""
        room = asyncio.Semaphore(STARTS_AT_ONCE)

        async def one() -> None:
            async with room:
                process = await asyncio.create_subprocess_exec(
                    *self._cli.command, *BASELINE, "--setting-sources=", stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE, cwd=self._home, env=environment(self._home, self._cli),
                    limit=LINE_BYTES,
                )  # fmt: skip
                self._started.append(process)
                await ask(process, READY)
                self._spare.append(process)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one())

    async def on_socket(self, socket: ServerConnection) -> None:
        """One tenant: hello, one line to a child, its answer, welcome."""
        try:
            await socket.recv()
            await ask(self._spare.pop(), BIND)
            await socket.send('{"type":"broker.welcome"}')
            await socket.wait_closed()
        except ConnectionClosed:
            pass

    async def stop(self) -> None:
        """End the children."""
        for process in self._started:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def ask(process: asyncio.subprocess.Process, line: bytes) -> None:
    """Write one line and wait for one."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    await process.stdout.readuntil(b"\n")


async def run(cli: Cli, children: int, port_file: Path) -> None:
    """Serve until cancelled."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    with TemporaryDirectory(prefix="bench-floor-") as folder:
        bare = Bare(cli, Path(folder))
        try:
            await bare.start(children)
            subprotocols = [Subprotocol("broker.v1")]
            async with serve(
                bare.on_socket, "127.0.0.1", 0, compression=None, subprotocols=subprotocols, close_timeout=1
            ) as server:
                loop.add_signal_handler(15, ended.set)
                part = port_file.with_name("part")
                part.write_text(str(next(iter(server.sockets)).getsockname()[1]))
                part.replace(port_file)
                await ended.wait()
        finally:
            await bare.stop()


def main() -> int:
    """Run the server."""
    parser = argparse.ArgumentParser(prog="python -m bench.floor", description="The floor under a warm start.")
    parser.add_argument("--cli", default="simulated")
    parser.add_argument("--children", type=int, required=True)
    parser.add_argument("--port-file", type=Path, required=True)
    chosen = parser.parse_args()
    asyncio.run(run(find_cli(chosen.cli), chosen.children, chosen.port_file))
    return 0


@dataclass(frozen=True)
class Floor:
    """A running floor."""

    process: Child
    url: str


@asynccontextmanager
async def running(cli: str, children: int) -> AsyncIterator[Floor]:
    """Start the floor's server with its children.  Raises ``ChildFailed``."""
    with TemporaryDirectory(prefix="bench-floor-") as folder:
        port_file = Path(folder) / "port"
        argv = [sys.executable, "-m", "bench.floor", "--cli", cli, "--children", str(children),
                "--port-file", str(port_file)]  # fmt: skip
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        async with child("the floor", argv, Path(folder) / "floor.log", environ) as process:
            yield Floor(process, f"ws://127.0.0.1:{await process.wait_file(port_file)}/")


if __name__ == "__main__":
    sys.exit(main())
