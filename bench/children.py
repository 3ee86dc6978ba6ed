"""Programs that a bench starts beside itself: their port file, their log, their end.

Owner: the ``async with`` block that started one.  Callers: ``bench.broker_process``, ``bench.api_process``,
``bench.floor``.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio

from bench.clock import now

START_DEADLINE_S: Final = 30.0
STOP_DEADLINE_S: Final = 20.0
POLL_S: Final = 0.02
LOG_TAIL: Final = 2000


class ChildFailed(Exception):
    """A program did not start, or ended before its time; the text holds the end of its log."""


class Child:
    """A running program with a log file."""

    def __init__(self, popen: "subprocess.Popen[bytes]", name: str, log: Path) -> None:
        self._popen = popen
        self._name = name
        self._log = log

    def check(self) -> None:
        """Raises ``ChildFailed`` when it is gone."""
        if self._popen.poll() is not None:
            raise ChildFailed(f"{self._name} ended with {self._popen.returncode}:\n{self.log_tail()}")

    @property
    def pid(self) -> int:
        """Its process id; ``setpriv`` has become the program itself."""
        return self._popen.pid

    def signal(self, number: int) -> None:
        """Send a signal to the program alone."""
        self._popen.send_signal(number)

    async def wait_end(self) -> None:
        """Until it has ended and is reaped."""
        while self._popen.poll() is None:  # noqa: ASYNC110 - a process has no event
            await anyio.sleep(POLL_S)

    def scheduled(self) -> tuple[float, float]:
        """Seconds for which its main thread has run, and for which it was ready to run and had to wait for a core.

        Both are 0 where the kernel does not count them.
        """
        try:
            text = Path(f"/proc/{self._popen.pid}/task/{self._popen.pid}/schedstat").read_text()
        except OSError:
            return 0.0, 0.0
        ran, waited, _ = text.split()
        return int(ran) / 1e9, int(waited) / 1e9

    def log_tail(self) -> str:
        """The end of what it wrote to its log."""
        return self._log.read_bytes()[-LOG_TAIL:].decode(errors="replace")

    async def wait_file(self, path: Path, within_s: float = START_DEADLINE_S) -> str:
        """The content of a file that the program writes once it is ready.  Raises ``ChildFailed``."""
        deadline = now() + within_s
        while True:
            is_running = self._popen.poll() is None  # looked at first: what it wrote before its end is there by then
            if os.path.exists(path):  # noqa: ASYNC240 - a local file
                break
            if not is_running:
                self.check()
            if now() > deadline:
                raise ChildFailed(f"{self._name} was not ready within {within_s:g} s:\n{self.log_tail()}")
            await anyio.sleep(POLL_S)
        with open(path) as file:  # noqa: ASYNC230
            return file.read()

    async def stop(self) -> None:
        """SIGTERM, after 20 s SIGKILL to its group; returns when it is reaped."""
        deadline = now() + STOP_DEADLINE_S
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
        while self._popen.poll() is None:
            if now() > deadline:
                os.killpg(self._popen.pid, signal.SIGKILL)
                self._popen.wait()
            await anyio.sleep(POLL_S)


@asynccontextmanager
async def child(name: str, argv: Sequence[str], log: Path, environ: Mapping[str, str]) -> AsyncIterator[Child]:
    """Start ``argv`` with stdout and stderr in ``log``; it is stopped when the block ends.  Raises ``OSError``.

    Where the system has ``setpriv`` the program is told to end even when this one is killed.
    """
    setpriv = shutil.which("setpriv")
    prefix = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv is not None else []
    with log.open("ab") as sink:
        popen = subprocess.Popen(  # noqa: ASYNC220 - vfork, about 1 ms, and nothing is being measured yet
            [*prefix, *argv], stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env=dict(environ),
            start_new_session=True,
        )  # fmt: skip
    started = Child(popen, name, log)
    try:
        yield started
    finally:
        with anyio.CancelScope(shield=True):
            await started.stop()
