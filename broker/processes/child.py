"""One slot's process from launch to wipe: started, proven ready, ended.

Owner: the slot's supervisor task in ``broker.pool.pool``.  A ``Lease`` is what a session gets of it.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import anyio

from broker.config.launch_profile import LaunchProfile
from broker.config.tree import Stop
from broker.errors import ProcessError
from broker.processes.debug_log import DebugLog, Lines
from broker.processes.last_words import last_words
from broker.processes.launcher import Launch, Launcher
from broker.processes.process import Process
from broker.processes.session_directory import SessionDirectory
from protocol.cli import control_line, decode_answer_line
from protocol.codes import FailureReason, MissReason, Start
from protocol.lines import Line

PROBE_ID = "ready"
PROBE = control_line(PROBE_ID, {"subtype": "get_binary_version"})
"""The one question that a CLI answers without spending its ``initialize``."""
REHEARSAL = control_line("rehearsal", {"subtype": "apply_flag_settings", "settings": {}}) + PROBE
"""Settings that change nothing, before the question: the CLI loads what a bind needs.  With it the same bind took 20 ms
of 74 less on 2.1.197 and 3 of 105 less on 2.1.329 (p50, n = 10, interleaved)."""
STARTING_NICE = 10
"""Niceness while a spare starts: starting burns about a second of CPU that live turns need more."""


@dataclass(frozen=True, slots=True)
class Again:
    """A conversation that wants its next process."""

    directory: SessionDirectory
    session_id: str
    fork_of: str | None = None
    """The conversation of the CLI that it branched off, and begins with as long as it has no transcript of its own."""


@dataclass(slots=True, eq=False)
class Lease:
    """A process that is one session's until the ``async with`` block ends.  It is never leased again."""

    process: Process
    launch: Launch
    start: Start
    miss_reason: MissReason | None
    pool: str
    """The configured profile that it is counted under, or ``other``."""
    found_transcript: bool = True
    on_exit: Callable[[], None] = lambda: None
    on_debug: Lines | None = None
    """Who gets the lines of the CLI's debug log, where its profile asks for one."""


class Child:
    """A slot's process, and the scope whose cancellation ends it."""

    def __init__(self, profile: LaunchProfile, again: Again | None) -> None:
        self.profile = profile
        self.again = again
        self.process: Process | None = None
        self.launch: Launch | None = None
        self.begun_at = 0.0
        """When its launch had its turn; monotonic seconds."""
        self.lease: Lease | None = None
        self.found_transcript = True
        self.has_refused = False
        """It ended by itself with an error before it was ready."""
        self._debug_log: DebugLog | None = None
        self.scope = anyio.CancelScope()

    @property
    def last_words(self) -> str:
        """What it said on stderr, in short; empty when it said nothing."""
        return last_words(self.process.stderr_tail) if self.process is not None else ""

    async def bring_up(self, launcher: Launcher, timeout_s: float, *, is_urgent: bool) -> None:
        """Launch the process and wait until it has proven itself ready.  ``is_urgent``: somebody waits for it.

        Launches come one by one: each holds the event loop for some milliseconds, and others get a turn in between.
        Raises ``ProcessError``, ``OSError``, ``TimeoutError``.  A cancel leaves the process to ``take_down``.
        """
        with anyio.fail_after(timeout_s):
            async with launcher.one_by_one:
                self.begun_at = time.monotonic()
                await self._launch(launcher, nice=0 if is_urgent else STARTING_NICE)
            assert self.process is not None
            try:
                await prove_ready(self.process, PROBE if is_urgent else REHEARSAL)
            except ProcessError:
                self.has_refused = (self.process.returncode or 0) > 0
                raise
        self.process.set_priority(0)

    async def _launch(self, launcher: Launcher, nice: int) -> None:
        if self.again is None:
            self.launch = launcher.fresh(self.profile)
        else:
            again = self.again
            self.launch, self.found_transcript = launcher.again(
                self.profile, again.directory, again.session_id, again.fork_of
            )
        if self.profile.options.debug is not None:
            self._debug_log = DebugLog(self.launch.directory.debug_log)
        self.process = await Process.start(self.launch, nice)

    async def supervise(self) -> None:
        """Wait for the end of the process, and follow its debug log meanwhile; a cancel leaves it running."""
        assert self.process is not None
        async with anyio.create_task_group() as group:
            if self._debug_log is not None:
                group.start_soon(self._debug_log.follow, self._audience)
            await self.process.supervise()
            group.cancel_scope.cancel()

    def _audience(self) -> Lines | None:
        return None if self.lease is None else self.lease.on_debug

    async def take_down(self, grace: Stop) -> None:
        """End the process and its tree, and wipe a directory that became nobody's.

        Bounded by the stop ladder; the caller shields it from cancellation.  What cancels it all the same has the
        process killed at once: the loop reaps it and its pipes, the sweep at the broker's end finds the rest.
        """
        process = self.process
        if process is not None:
            try:
                async with anyio.create_task_group() as group:
                    if not process.exited.is_set():
                        group.start_soon(process.supervise)
                    await process.stop(grace.eof_grace_s, grace.term_grace_s)
                    await process.exited.wait()
            finally:
                process.kill()
        if self._debug_log is not None:
            await self._debug_log.tell(self._audience())
            self._debug_log.close()

    async def wipe(self) -> None:
        """Remove the directory unless it belongs to a conversation; in a thread.  A cancel that no shield holds back
        leaves it to the sweep at the broker's end."""
        if self.launch is not None and not self.launch.directory.is_kept:
            await anyio.to_thread.run_sync(self.launch.directory.wipe)

    def make_lease(self, pool: str, start: Start, miss_reason: MissReason | None) -> Lease:
        """The lease of a process that is ready."""
        assert self.process is not None
        assert self.launch is not None
        found = self.found_transcript
        self.lease = Lease(self.process, self.launch, start, miss_reason, pool, found_transcript=found)
        return self.lease


async def prove_ready(process: Process, question: bytes) -> None:
    """Write ``question``, which ends with ``PROBE``, and wait until that is answered.

    Raises ``ProcessError`` when the process dies first; the caller sets the deadline.
    """
    settled = anyio.Event()

    def on_lines(lines: list[Line]) -> None:
        for line in lines:
            answer = decode_answer_line(line) if isinstance(line, bytes) and line[:1] == b"{" else None
            if answer is not None and answer.request_id == PROBE_ID:
                settled.set()

    async def until_dead() -> None:
        await process.dead.wait()
        settled.set()

    process.on_lines = on_lines
    with contextlib.suppress(ProcessError):  # it reads nothing any more: how it ended is told below
        process.write(question)
    async with anyio.create_task_group() as group:
        group.start_soon(until_dead)
        await settled.wait()
        group.cancel_scope.cancel()
    if process.returncode is not None:
        if process.end[0] is FailureReason.CLI_KILLED_MEMORY:
            raise ProcessError(*process.end)
        raise ProcessError(FailureReason.CLI_EXITED, f"exited with {process.returncode} before it was ready")
