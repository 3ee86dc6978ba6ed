"""What is compared, and how each of them is started on the same simulated CLI.

Caller: ``bench.peers.command``: a fresh one for every measurement, ended with its block.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final

import anyio

from bench.broker_process import ROOT, Setup, broker_in, with_token
from bench.children import POLL_S, START_DEADLINE_S, Child, ChildFailed, child
from bench.clock import now
from bench.direct import environment
from bench.peers.job import Target
from broker.config.launch_profile import LaunchProfile
from broker.processes.launcher import BASELINE
from broker.processes.program import Cli

TOKEN: Final = "peers-token-of-this-run-0123456789"  # noqa: S105 - of this run
LIMIT_SOURCE: Final = Path(__file__).with_name("limit.c")
COMPILE_S: Final = 60.0
SERVER: Final = "max_unauthenticated = 5000\nmax_unauthenticated_per_ip = 5000"
SESSION: Final = "detach_timeout_s = 0\nmin_resident_s = 0\nmax_sessions = 1000000"
SETTLE_S: Final = 60.0
"""For the broker's spares to be warm; a second more for each."""
STOP: Final = "[stop]\ndrain_timeout_s = 1\neof_grace_s = 2\nterm_grace_s = 1"


class Subject(StrEnum):
    """What stands between the client and the CLI."""

    DIRECT = "direct"
    """Nothing: pipes."""
    WEBSOCKETD = "websocketd"
    PLAIN = "plain"
    """``bench.peers.plain_script``."""
    BROKER = "broker"
    LIMIT = "limit"
    """``limit.c``: what a program can do at best that frames each read and writes it at once."""


def missing(subject: Subject) -> str | None:
    """Why it cannot be started on this machine, None when it can."""
    if subject is Subject.WEBSOCKETD and shutil.which("websocketd") is None:
        return "websocketd is not installed (make system; Debian: apt-get install websocketd)"
    if subject is Subject.LIMIT and not LIMIT_SOURCE.exists():
        return "limit.c is not there"
    if subject is Subject.LIMIT and shutil.which("cc") is None:
        return "there is no C compiler (cc)"
    return None


def say(subject: Subject, text: str) -> str:
    """A user message as the subject takes it: the broker its own frame, the others a line for the CLI's stdin."""
    if not text:
        return ""
    if subject is Subject.BROKER:
        return json.dumps({"type": "user_message", "content": text})
    message = {"role": "user", "content": text}
    return json.dumps({"type": "user", "message": message, "parent_tool_use_id": None})


@asynccontextmanager
async def started(subject: Subject, cli: Cli, sessions: int, place: Path) -> AsyncIterator[Target]:
    """A running subject with room for ``sessions``; 0: nobody will say anything, and no process is needed.

    ``place`` is a directory for what it writes.  Raises ``ChildFailed``, ``OSError``.
    """
    with tempfile.TemporaryDirectory(dir=place, prefix=f"{subject.value}-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        argv = (*cli.command, *BASELINE, *LaunchProfile("sonnet").flags(""))
        environ = environment(home, cli)
        match subject:
            case Subject.DIRECT:
                yield Target(argv=argv, environ=environ)
            case Subject.BROKER:
                async with _broker(cli, sessions, home) as target:
                    yield target
            case Subject.WEBSOCKETD:
                async with _websocketd(argv, environ, home) as target:
                    yield target
            case Subject.PLAIN:
                script = (sys.executable, "-m", "bench.peers.plain_script")
                async with _program(subject, script, argv, environ, home) as target:
                    yield target
            case Subject.LIMIT:
                async with _program(subject, (await _compiled(place),), argv, environ, home) as target:
                    yield target


@asynccontextmanager
async def _broker(cli: Cli, sessions: int, home: Path) -> AsyncIterator[Target]:
    """Warm for all of them; the limit of its profile keeps it from starting spares while it is measured."""
    setup = Setup(
        "simulated" if cli.simulated else cli.command[0], warm=sessions, limit=max(1, sessions),
        processes=max(2, sessions), server=SERVER, pool='isolation = "none"', session=SESSION,
        tables=f'{STOP}\n{with_token(home, "peers", TOKEN)}',
    )  # fmt: skip
    hello = {
        "type": "broker.hello", "auth": {"token": TOKEN}, "session": {"mode": "new"},
        "options": {"lazy": True} if sessions == 0 else {"credentials": {"oauth_token": "peers"}},
    }  # fmt: skip
    async with broker_in(home, setup) as running:
        await running.wait_settled(SETTLE_S + sessions)
        yield Target(
            pid=running.process.pid, port=running.port, subprotocol="broker.v1", hello=json.dumps(hello),
            goodbye='{"type":"broker.end"}',
        )  # fmt: skip


@asynccontextmanager
async def _websocketd(argv: tuple[str, ...], environ: Mapping[str, str], home: Path) -> AsyncIterator[Target]:
    """It takes no port 0: one that is free now.  Its log of connections is switched off, in its favour."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["websocketd", "--address=127.0.0.1", f"--port={port}", f"--passenv={','.join(environ)}",
               "--loglevel=error", *argv]  # fmt: skip
    async with child("websocketd", command, home / "websocketd.log", environ) as process:
        await _accepts(process, port)
        yield Target(pid=process.pid, port=port)


async def _accepts(process: Child, port: int) -> None:
    deadline = now() + START_DEADLINE_S
    while True:
        process.check()
        try:
            async with await anyio.connect_tcp("127.0.0.1", port):
                return
        except OSError as error:
            if now() > deadline:
                raise ChildFailed(f"websocketd accepted nothing within {START_DEADLINE_S:g} s") from error
        await anyio.sleep(POLL_S)


@asynccontextmanager
async def _program(
    subject: Subject, program: tuple[str, ...], argv: tuple[str, ...], environ: Mapping[str, str], home: Path
) -> AsyncIterator[Target]:
    """A program that is given a port file and the command to start for each connection."""
    port_file = home / "port"
    async with child(subject.value, [*program, str(port_file), *argv], home / "server.log", environ) as process:
        yield Target(pid=process.pid, port=int(await process.wait_file(port_file)))


async def _compiled(place: Path) -> str:
    """``limit.c`` as a program, compiled once in a run.  Raises ``ChildFailed``."""
    program = place / "limit"
    if not await anyio.Path(program).exists():
        command = ["cc", "-O2", "-o", str(program), str(LIMIT_SOURCE)]
        with anyio.fail_after(COMPILE_S):
            done = await anyio.run_process(command, check=False, stderr=subprocess.STDOUT, cwd=ROOT, env=os.environ)
        if done.returncode:
            raise ChildFailed(f"cc: {done.stdout.decode(errors='replace')[-2000:]}")
    return str(program)
