"""What a session's next process takes up: a directory, and a conversation of the CLI in it.

Owner: one ``broker.sessions.tenure.Tenure``.
"""

from dataclasses import dataclass

from broker.errors import ProcessError, ResumeRefused, SpareLost
from broker.processes.child import Again, Lease
from broker.processes.session_directory import SessionDirectory, Transcript
from protocol.codes import FailureReason, Start


@dataclass(slots=True)
class Succession:
    """``base``: what the first process takes up, of a conversation that branched off another one; ``again``: what the
    next one does, None before the first."""

    base: Again | None
    again: Again | None

    @property
    def now(self) -> Again | None:
        """What a process that is started now takes up; None for a conversation that begins."""
        return self.again or self.base

    @property
    def directory(self) -> SessionDirectory | None:
        """Where the conversation lies, None while it has nothing on disk that is its own."""
        return None if self.now is None else self.now.directory

    def transcript(self, session_id: str) -> Transcript | None:
        """The CLI's file of the conversation, None while there is none.  Blocks for a look at a folder.

        ``session_id``: as the CLI knows it, empty before its first process.
        """
        now = self.now
        if now is None:
            return None
        own = now.directory.transcript(session_id or now.session_id)
        return own if own is not None or now.fork_of is None else now.directory.transcript(now.fork_of)

    def go_on(self, directory: SessionDirectory, session_id: str) -> None:
        """A process is there, or was: the next one takes up what it has."""
        is_base = self.base is not None and self.base.session_id == session_id
        fork_of = self.base.fork_of if is_base and self.base is not None else None
        self.again = Again(directory, session_id, fork_of)

    def cut_short(self, lease: Lease) -> ProcessError:
        """Why there is no bind: the process has died meanwhile."""
        code = lease.process.returncode
        reason, words = lease.process.end
        detail = f"{words} while binding"
        if lease.start is not Start.RESTORED:
            return SpareLost(detail, lease.pool)
        kind = ResumeRefused if self.again is not None and code is not None and code > 0 else ProcessError
        return kind(reason, detail)

    def unheard(self, lease: Lease) -> ProcessError:
        """End a process that has answered nothing by the bind's deadline; returns what its tenant is told.

        It is killed: what does not answer heeds no stop ladder, and the tenant would wait for that.
        """
        lease.process.kill()
        detail = "no answer within pool.bind_timeout_s"
        if lease.start is not Start.RESTORED:
            return SpareLost(detail, lease.pool)
        return ProcessError(FailureReason.CLI_EXITED, detail)
