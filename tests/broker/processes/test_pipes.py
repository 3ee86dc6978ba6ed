"""A child's pipes on both event loops: what is read and written, and that every descriptor is closed once."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from broker.processes import pipes

ROOT = Path(__file__).resolve().parents[3]

# Pipes come and go on the loop while threads open and close files of their own, as the broker's do.
PROGRAM = """
import asyncio, os, sys, threading, time
from broker.processes import pipes

lost, over = [], threading.Event()

def keep_opening():
    while not over.is_set():
        mine = os.open("/", os.O_RDONLY)
        try:
            os.fstat(mine)
            os.close(mine)
        except OSError as error:
            lost.append(error)

def target(name):
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:  # a thread has closed it meanwhile
        return ""

def pipes_open():
    return sum(target(name).startswith("pipe:") for name in os.listdir("/proc/self/fd"))

async def main():
    before = pipes_open()
    end = time.monotonic() + 2
    while time.monotonic() < end and not lost:
        transports = []
        for _ in range(20):
            ends = os.pipe()
            reading, writing = (os.fdopen(fd, mode, 0) for fd, mode in zip(ends, ("rb", "wb")))
            transports.append(await pipes.read_from(reading, asyncio.Protocol))
            transports.append(await pipes.write_to(writing))
        for transport in transports:
            transport.close()
        await asyncio.sleep(0)
    over.set()
    while pipes_open() > before and time.monotonic() < end + 5:
        await asyncio.sleep(0.01)
    print(len(lost), "lost,", pipes_open() - before, "left")

for _ in range(3):
    threading.Thread(target=keep_opening, daemon=True).start()
if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_no_descriptor_of_another_thread_is_closed(loop: str) -> None:
    """Thousands of pipes are closed beside threads that open files: none of these is lost, no pipe is left open."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, loop], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "0 lost, 0 left\n"


async def test_what_is_written_is_read() -> None:
    """On the loop of the tests: bytes go through, and the end is seen when the writer closes."""
    reading, writing = (os.fdopen(fd, mode, 0) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
    reader = asyncio.StreamReader()
    source = await pipes.read_from(reading, lambda: asyncio.StreamReaderProtocol(reader))
    sink = await pipes.write_to(writing)
    sink.write(b"hello")
    sink.close()
    assert await asyncio.wait_for(reader.read(), 5) == b"hello"
    source.close()
