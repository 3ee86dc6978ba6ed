"""One slot's process from launch to wipe: started, proven ready, ended.

Owner: the slot's supervisor task in ``broker.pool``.  A ``Lease`` is what a session gets of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import anyio

from broker.config import Stop
from broker.errors import ProcessError
from broker.launcher import Launch, Launcher, SessionDirectory
from broker.process import Process
from protocol.cli import control_line, decode_answer_line
from protocol.codes import FailureReason, MissReason, Start
from protocol.lines import Line

PROBE_ID = "ready"
STARTING_NICE = 10
"""Niceness while a spare starts: starting burns about a second of CPU that live turns need more."""


@dataclass(frozen=True, slots=True)
class Again:
    """A conversation that wants its next process."""

    directory: SessionDirectory
    session_id: str


@dataclass(slots=True, eq=False)
class Lease:
    """A process that is one session's until the ``async with`` block ends.  It is never leased again."""

    process: Process
    launch: Launch
    start: Start
    miss_reason: MissReason | None
    profile: str
    keep_directory: bool = False
    found_transcript: bool = True
    on_exit: Callable[[], None] = lambda: None


class Child:
    """A slot's process, and the scope whose cancellation ends it."""

    def __init__(self, again: Again | None) -> None:
        self.again = again
        self.process: Process | None = None
        self.launch: Launch | None = None
        self.lease: Lease | None = None
        self.found_transcript = True
        self.has_refused = False
        """It ended by itself with an error before it was ready."""
        self.scope = anyio.CancelScope()

    async def bring_up(self, launcher: Launcher, profile: str, timeout_s: float, *, is_urgent: bool) -> None:
        """Launch the process and wait until it has proven itself ready.  ``is_urgent``: somebody waits for it.

        Raises ``ProcessError``, ``OSError``, ``TimeoutError``.  A cancel leaves the process to ``take_down``.
        """
        if self.again is None:
            self.launch = launcher.fresh(profile)
        else:
            again = self.again
            self.launch, self.found_transcript = launcher.again(profile, again.directory, again.session_id)
        self.process = await Process.start(self.launch)
        if not is_urgent:
            self.process.set_priority(STARTING_NICE)
        try:
            with anyio.fail_after(timeout_s):
                await _prove_ready(self.process)
        except ProcessError:
            self.has_refused = (self.process.returncode or 0) > 0
            raise
        self.process.set_priority(0)

    async def take_down(self, grace: Stop) -> None:
        """End the process and its tree, and wipe a directory that became nobody's.

        Bounded by the stop ladder; the caller shields it from cancellation.
        """
        process = self.process
        if process is not None:
            async with anyio.create_task_group() as group:
                if not process.exited.is_set():
                    group.start_soon(process.supervise)
                await process.stop(grace.eof_grace_s, grace.term_grace_s)
                await process.exited.wait()

    async def wipe(self) -> None:
        """Remove the directory unless it belongs to a conversation; in a thread."""
        is_kept = self.again is not None or (self.lease is not None and self.lease.keep_directory)
        if self.launch is not None and not is_kept:
            await anyio.to_thread.run_sync(self.launch.directory.wipe)

    def make_lease(self, profile: str, start: Start, miss_reason: MissReason | None) -> Lease:
        """The lease of a process that is ready."""
        assert self.process is not None
        assert self.launch is not None
        found = self.found_transcript
        self.lease = Lease(self.process, self.launch, start, miss_reason, profile, found_transcript=found)
        return self.lease


async def _prove_ready(process: Process) -> None:
    """Ask for the binary's version, the one question that a CLI answers without spending its ``initialize``.

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
    process.write(control_line(PROBE_ID, {"subtype": "get_binary_version"}))
    async with anyio.create_task_group() as group:
        group.start_soon(until_dead)
        await settled.wait()
        group.cancel_scope.cancel()
    if process.returncode is not None:
        raise ProcessError(FailureReason.CLI_EXITED, f"exited with {process.returncode} before it was ready")
