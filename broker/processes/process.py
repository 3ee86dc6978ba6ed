"""One child process: start, write lines, get batches of lines, know its death, end its whole tree.

Owner: the pool's supervisor of the slot, inside ``broker.pool.pool``.  Whoever holds the lease sets ``on_lines``.
Linux only: a pidfd decides death, never EOF (a grandchild may hold the pipe for ever).
Over 300 lines because a frame that crosses it and the death that may come in between are read together.
"""

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import anyio
import structlog

from broker.errors import ProcessError
from broker.processes import orphans, pipes
from broker.processes.launcher import Launch
from broker.processes.resident import offer_first
from protocol.codes import FailureReason
from protocol.lines import Line, LineFramer

log = structlog.get_logger(__name__)

STDERR_RING_BYTES = 64 * 1024
LINES_PER_TURN = 512
"""Lines of one child that are handed on in one turn of the event loop; what one read brought beyond them waits."""
READ_BYTES = 64 * 1024
"""What a pipe holds.  A child that makes its own larger is not read again in the same turn."""
STDIN_BUFFER_BYTES = 32 * 1024 * 1024
"""Unread input that a child may pile up: one message of the largest size, its controls, and some air."""
DRAIN_AFTER_DEATH_S = 0.25
"""How long stdout may stay open after the process is dead: its last lines are in the pipe, an heir may hold it."""

SILENT_GRACE_S = 2.0
"""How long a process may live on after it has closed its stdout."""

Lines = Callable[[list[Line]], None]


class _Stdout(asyncio.Protocol):
    """Turns each read into one batch of lines, or into several when a child says more than its share (docs/adr/0015).

    It is not read on before they are handed on: what waits is bounded by one read.
    """

    _transport: asyncio.ReadTransport

    def __init__(self, process: "Process") -> None:
        self._process = process
        self._framer = LineFramer()
        self._waiting: list[Line] = []
        self._at = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.ReadTransport", transport)  # uvloop's is of no class of asyncio's

    def data_received(self, data: bytes) -> None:
        lines = self._framer.feed(data)
        if (len(lines) > LINES_PER_TURN or len(data) > READ_BYTES) and not self._process.dead.is_set():
            self._waiting, self._at = lines, 0
            self._transport.pause_reading()
            self._go_on()
        elif lines:
            self._process.hand_on(lines)

    def _go_on(self) -> None:
        if self._transport.is_closing():
            return
        # A dead child says no more than its pipe holds, and has little time left to be heard.
        share = len(self._waiting) if self._process.dead.is_set() else LINES_PER_TURN
        lines = self._waiting[self._at : self._at + share]
        self._at += len(lines)
        if lines:
            self._process.hand_on(lines)
        if self._at < len(self._waiting):
            asyncio.get_running_loop().call_soon(self._go_on)
        else:
            self._waiting = []
            asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._process.stdout_closed.set()


class _Stderr(asyncio.Protocol):
    """Always drained, the last 64 KiB kept."""

    def __init__(self, ring: bytearray) -> None:
        self._ring = ring

    def data_received(self, data: bytes) -> None:
        self._ring += data[-STDERR_RING_BYTES:]
        del self._ring[:-STDERR_RING_BYTES]


class Process:
    """A running child.  Make one with ``await Process.start(launch)``."""

    def __init__(self, popen: "subprocess.Popen[bytes]", launch: Launch) -> None:
        self._popen = popen
        self._launch = launch
        self.pid = popen.pid
        self.returncode: int | None = None
        self.on_lines: Lines = _ignore
        self.stdout_closed = asyncio.Event()
        self.exited = asyncio.Event()
        """Set once the process is dead, its stdout read to the end (or given up) and its tree killed."""
        self._stderr = bytearray()
        self.dead = asyncio.Event()
        self._end: tuple[FailureReason, str] | None = None
        self._pidfd = -1
        self._stdin: asyncio.WriteTransport | None = None
        self._readers: list[asyncio.ReadTransport] = []
        self._unattached: list[IO[bytes]] = [
            pipe for pipe in (popen.stderr, popen.stdout, popen.stdin) if pipe is not None
        ]
        """Pipes that no transport closes: only while ``start`` has not got so far."""

    @classmethod
    async def start(cls, launch: Launch, nice: int = 0) -> "Process":
        """Spawn the child, with that niceness (see ``set_priority``).

        Raises ``ProcessError`` when it cannot be executed.  The standard library's ``subprocess`` uses vfork: about
        1 ms, whatever the broker's size, where a loop's own spawn may fork.  Called on the main thread: PDEATHSIG fires
        when the spawning *thread* ends.  A cancel does not interrupt it: the child is there then, for ``stop``.
        """
        try:
            popen = subprocess.Popen(  # noqa: ASYNC220 - vfork, about 1 ms; argv is the broker's own
                launch.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=launch.cwd,
                env=launch.environment,
                start_new_session=True,
                umask=0o077,
                bufsize=0,
            )
        except OSError as error:
            raise ProcessError(FailureReason.CLI_EXITED, f"cannot start {launch.argv[0]}: {error.strerror}") from error
        orphans.awaited.add(popen.pid)
        offer_first(popen.pid)
        process = cls(popen, launch)
        if nice:
            process.set_priority(nice)
        try:
            # A few turns of the loop: not worth a way back from a half-made child.
            with anyio.CancelScope(shield=True):
                await launch.cgroup.take_in(popen.pid)
                await process._attach()
        except BaseException as error:
            process._abandon()
            if isinstance(error, OSError):  # no file descriptor is left for the pidfd, or no room in the loop's poll
                words = f"cannot watch the process: {error.strerror}"
                raise ProcessError(FailureReason.CLI_EXITED, words) from error
            raise
        return process

    async def _attach(self) -> None:
        self._pidfd = os.pidfd_open(self.pid)
        self._stdin = await pipes.write_to(self._unattached.pop())
        self._readers.append(await pipes.read_from(self._unattached.pop(), lambda: _Stdout(self)))
        self._readers.append(await pipes.read_from(self._unattached.pop(), lambda: _Stderr(self._stderr)))
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_death)

    def _abandon(self) -> None:
        """Half made, and nobody's: it is killed, reaped and closed without waiting for anything but the kernel."""
        self._kill_tree()
        self.returncode = self._reap()
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._launch.cgroup.leave()
        self._close_pipes()

    # -- talking --

    def write(self, line: bytes) -> None:
        """Queue ``line`` for stdin; never waits.  Raises ``ProcessError`` when the child is gone or reads nothing."""
        if self._stdin is None or self._stdin.is_closing() or self.returncode is not None:
            raise ProcessError(FailureReason.CLI_EXITED, "the process has exited")
        if self._stdin.get_write_buffer_size() + len(line) > STDIN_BUFFER_BYTES:
            raise ProcessError(FailureReason.CLI_PROTOCOL, "the process does not read its stdin")
        self._stdin.write(line)

    def hand_on(self, lines: list[Line]) -> None:
        """Give lines to whoever listens.  A bug there ends the process, whose pipe might never be read again: the event
        loop logs it once, and nobody listens any more."""
        try:
            self.on_lines(lines)
        except Exception:
            self.on_lines = _ignore
            self._end = self._end or (FailureReason.INTERNAL, "its output could not be taken")
            self.kill()
            raise

    @property
    def stderr_tail(self) -> str:
        """The last words of stderr, for an operator's log."""
        return self._stderr[-2000:].decode(errors="replace")

    # -- dying --

    def _on_death(self) -> None:
        """The pidfd is readable: a zombie now.  Its tree is killed before it is reaped, so that the number is ours."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._kill_tree()
        self.returncode = self._reap()
        self.dead.set()

    def _reap(self) -> int:
        code = self._popen.wait()
        orphans.awaited.discard(self.pid)
        # A wrapper tells of a signal as a shell does.
        return 128 - code if self._launch.wrappers and code > 128 else code

    async def supervise(self) -> None:
        """Wait for the death, read what is left, end the tree, close the pipes; then ``exited`` is set.

        A cancel leaves the process running: the slot's supervisor then calls ``stop`` and this again, shielded.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._kill_when_silent)
            await self.dead.wait()
            group.cancel_scope.cancel()
        try:
            with anyio.move_on_after(DRAIN_AFTER_DEATH_S):
                await self.stdout_closed.wait()
            await self._launch.cgroup.remove()
            orphans.reap_strays()
            await orphans.kill_marked(self._launch.marker, self.pid, self._launch.user)
        except Exception:  # it is dead all the same; after a cancel this is called again
            self._has_exited()
            raise
        self._has_exited()

    def _has_exited(self) -> None:
        self._close_pipes()
        self.exited.set()

    async def _kill_when_silent(self) -> None:
        """A process that lives on without its stdout can tell nothing any more."""
        await self.stdout_closed.wait()
        await anyio.sleep(SILENT_GRACE_S)
        self.kill()

    def _close_pipes(self) -> None:
        for transport in self._readers:
            transport.close()
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.abort()
        for pipe in self._unattached:
            pipe.close()

    async def stop(self, eof_grace_s: float, term_grace_s: float) -> None:
        """The stop ladder: stdin EOF, SIGTERM to the group, SIGKILL to the tree; returns when the process is dead.

        Bounded by the two graces plus the kernel's time to kill.  Safe to call at any time and more than once.
        """
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.close()
        if self.is_stopped:  # it heeds neither; what is written to it waits for nothing
            self.kill()
        with anyio.move_on_after(eof_grace_s):
            await self.dead.wait()
        if self.returncode is None:
            self._signal_group(signal.SIGTERM)
            with anyio.move_on_after(term_grace_s):
                await self.dead.wait()
        self.kill()
        await self.dead.wait()

    def kill(self, because: str | None = None) -> None:
        """SIGKILL to the whole tree at once; ``exited`` follows.  ``because``: it holds too much memory, in words."""
        if self.returncode is None:
            if because is not None:
                self._end = self._end or (FailureReason.CLI_KILLED_MEMORY, because)
            self._kill_tree()

    def _kill_tree(self) -> None:
        """What is in the group and in the cgroup.  Before the reap only: after it the number may be a stranger's."""
        self._signal_group(signal.SIGKILL)
        self._launch.cgroup.kill()

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # empty, or only zombies are left of it
            os.killpg(self.pid, number)

    @property
    def end(self) -> tuple[FailureReason, str]:
        """Why a turn ends that it had, and in words that a tenant may read."""
        if self._end is not None:
            return self._end
        code = self.returncode
        words = "stopped by the broker" if code is None else f"signal {-code}" if code < 0 else f"exit {code}"
        return FailureReason.CLI_EXITED, words

    # -- being watched --

    @property
    def marker(self) -> str:
        """What its descendants have in their environment, unless they remove it."""
        return self._launch.marker

    @property
    def is_dead(self) -> bool:
        """Whether the process has died, noticed by the loop or not yet: one system call, about a microsecond."""
        if self.returncode is not None:
            return True
        return os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped the process (SIGSTOP), and none has let it go on: one system call, as above.

        Of the process that was started: where wrappers stand before the CLI, a stopped CLI is not seen.
        """
        if self.returncode is not None:
            return False
        asked = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        found = os.waitid(os.P_PIDFD, self._pidfd, asked)
        return found is not None and found.si_code == os.CLD_STOPPED

    @property
    def resident_bytes(self) -> int:
        """Resident memory of the CLI's own process, 0 when it is gone."""
        if self.returncode is not None:
            return 0
        try:
            pid = self.pid
            for _ in range(self._launch.wrappers):
                pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
            return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGESIZE")
        except (OSError, IndexError):
            return 0

    def set_priority(self, nice: int) -> None:
        """Set the niceness of every thread of the group, where it can be taken back (CAP_SYS_NICE); else do nothing."""
        if self.returncode is None and _may_renice():
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PGRP, self.pid, nice)


@functools.cache
def _may_renice() -> bool:
    """Whether this process holds CAP_SYS_NICE (capabilities(7), bit 23)."""
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> 23 & 1)


def _ignore(lines: list[Line]) -> None:
    """Before anybody listens."""
