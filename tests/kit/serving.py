"""``broker serve`` by its command line alone, for brokers that do not start, or do not get far.

Callers: the end-to-end tests, ``async with serving(folder, ...)`` or ``await ended(folder, ...)``.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from tests.kit.broker import ROOT

ENDS_WITHIN_S = 20.0


class Ended(NamedTuple):
    """A broker that has ended."""

    code: int
    out: str
    err: str


@asynccontextmanager
async def serving(folder: Path, *arguments: str, **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """``broker serve`` with these arguments and nothing of the machine's own; killed at the end if it still runs."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BROKER")}
    own = {"BROKER__STATE__DIR": str(folder / "state"), "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "broker", "serve", *arguments, cwd=ROOT, env=clean | own | environ,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(folder: Path, *arguments: str, **environ: str) -> Ended:
    """What became of a broker that cannot start."""
    async with serving(folder, *arguments, **environ) as process, asyncio.timeout(ENDS_WITHIN_S):
        out, err = await process.communicate()
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), err.decode())


def program(path: Path, text: str) -> str:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)
