"""Conversations by ``(tenant, subject, id)``, and the owner of their tasks.

Owner task: ``run``, in the root task group of ``broker.app``.  Callers: ``broker.opening`` (find, create, fork),
``broker.connection`` (delete), ``broker.listing``, ``broker.app`` (drain).  A socket never owns a session: closing one
only detaches it.
"""

import time
import uuid
from dataclasses import dataclass, field

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from broker.auth import Identity
from broker.branch import Budget, copy_conversation
from broker.child import Again
from broker.config import Config
from broker.errors import BrokerError
from broker.metrics import Metrics
from broker.pool import Pool
from broker.reader import Reader
from broker.session import Session
from broker.settings import Settings
from broker.tenure import Tenure
from broker.transcript import SCAN_THREADS, SETTLE_S, Scans, read_page
from protocol.codes import CloseCode, ErrorCode, FailureReason
from protocol.errors import ConnectionRefused
from protocol.frames import GoAway, SessionRef

log = structlog.get_logger(__name__)

SWEEP_EVERY_S = 1.0
DRAIN_LOOK_S = 0.02


@dataclass(slots=True, eq=False)
class Entry:
    """A session and the task that gives it its processes.  ``created_at`` is seconds since 1970."""

    session: Session
    tenure: Tenure
    scans: Scans
    created_at: float = field(default_factory=time.time)
    touched_at: float = field(default_factory=time.monotonic)

    def touch(self) -> None:
        """A controller came, spoke or left."""
        self.touched_at = time.monotonic()

    @property
    def last_active(self) -> float:
        """The last time that anything happened in it; monotonic seconds."""
        return max(self.touched_at, self.session.last_terminal_at)

    @property
    def settles_until(self) -> float:
        """Until when the answer of the turn that ended may be missing in the transcript; monotonic seconds."""
        turns = self.session.turns
        is_idle = self.tenure.is_live and turns.current is None and turns.has_written
        return self.session.last_terminal_at + SETTLE_S if is_idle else 0.0

    @property
    def state(self) -> str:
        """``running`` a turn, ``idle`` with a process, ``starting`` one, or ``hibernated`` without."""
        if self.session.turns.current is not None:
            return "running"
        if self.tenure.is_live:
            return "idle"
        is_starting = self.session.process is not None or self.tenure.lobby.is_process_wanted
        return "starting" if is_starting else "hibernated"


class Registry:
    """All conversations of this broker.  Records live in memory until the broker ends."""

    def __init__(self, settings: Settings, pool: Pool, metrics: Metrics) -> None:
        self._settings = settings
        self._pool = pool
        self._metrics = metrics
        self._entries: dict[tuple[str, str, str], Entry] = {}
        self._forking = 0
        self._scanning = anyio.CapacityLimiter(SCAN_THREADS)
        self._group: anyio.abc.TaskGroup | None = None

    @property
    def _config(self) -> Config:
        """What holds now."""
        return self._settings.now

    async def run(self) -> None:
        """Hold the sessions' tasks until cancelled; each ends its own process."""
        async with anyio.create_task_group() as group:
            self._group = group
            while True:
                await anyio.sleep(SWEEP_EVERY_S)
                self._bound_logs()

    def _bound_logs(self) -> None:
        """Above ``replay.total_bytes``, forget the logs of detached sessions, longest detached first."""
        excess = sum(entry.session.log.size for entry in self._entries.values()) - self._config.replay.total_bytes
        detached = [entry for entry in self._entries.values() if not entry.session.readers]
        for entry in sorted(detached, key=lambda entry: entry.tenure.detached_at):
            if excess <= 0:
                return
            excess -= entry.session.log.size
            entry.session.log.expire()

    # -- finding ---------------------------------------------------------------------------------------------------

    def find(self, ref: SessionRef, identity: Identity, subject: str) -> Entry | None:
        """The conversation that hello names (for ``fork`` the one to branch), or None when it is to be made.

        ``continue``, and ``fork`` without an id, mean the subject's latest.  Raises ``ConnectionRefused``: 4504
        (unknown and foreign look alike) or 4505.
        """
        if ref.mode == "continue" or (ref.mode == "fork" and ref.id is None):
            entry = max(self.of(identity.tenant, subject), key=lambda found: found.last_active, default=None)
        else:
            entry = self._entries.get((identity.tenant, subject, ref.id)) if ref.id is not None else None
        if entry is None and ref.id is not None and ref.mode != "new":
            entry = self._by_cli_id(identity.tenant, subject, ref.id)
        if entry is not None and ref.mode == "new":
            raise ConnectionRefused(CloseCode.SESSION_EXISTS)
        if entry is None and ref.mode not in ("new", "open"):
            raise ConnectionRefused(CloseCode.UNKNOWN_SESSION)
        return entry

    def of(self, tenant: str, subject: str | None) -> list[Entry]:
        """The conversations of a subject, or of the whole tenant."""
        return [
            entry for key, entry in self._entries.items() if key[0] == tenant and (subject is None or key[1] == subject)
        ]

    def _by_cli_id(self, tenant: str, subject: str, session_id: str) -> Entry | None:
        """The CLI's own session id is accepted too."""
        found = (entry for entry in self.of(tenant, subject) if entry.session.cli_session_id == session_id)
        return next(found, None)

    # -- making and ending -----------------------------------------------------------------------------------------

    def create(self, session_id: str | None, identity: Identity, subject: str) -> Entry:
        """A new conversation and its task.  Raises ``BrokerError`` when ``session.max_sessions`` are kept."""
        self._check_room()
        key = (identity.tenant, subject, session_id or str(uuid.uuid4()))
        return self._start(Session(key, identity, self._config, self._metrics), None)

    def _check_room(self) -> None:
        if len(self._entries) + self._forking >= self._config.session.max_sessions:
            message = f"session.max_sessions = {self._config.session.max_sessions} are kept"
            raise BrokerError(ErrorCode.POOL_UNAVAILABLE, message, close=CloseCode.POOL_UNAVAILABLE)

    def _start(self, session: Session, base: Again | None) -> Entry:
        assert self._group is not None
        entry = Entry(session, Tenure(session, self._pool, session.config, base), Scans(self._scanning))
        self._entries[session.key] = entry
        self._metrics.session_moved(None, "open")
        self._group.start_soon(self._run, session.key, entry, name=f"session-{session.key[2]}")
        return entry

    async def fork(self, parent: Entry, identity: Identity, subject: str) -> Entry:
        """A new conversation that begins with what ``parent`` holds now, in a directory of its own.

        It inherits what the parent's processes are told.  A parent that has said nothing yet is branched off from its
        options alone.  Raises ``BrokerError`` (``bind_failed`` when there is too much to copy, or it cannot be read)
        and ``ConnectionRefused``: 4504 when the parent ended meanwhile, and with it what there was to copy.  A cancel
        waits for the copy and wipes it.
        """
        self._check_room()
        key = (identity.tenant, subject, str(uuid.uuid4()))
        self._forking += 1
        try:
            base = await self._branch_of_living(parent)
        finally:
            self._forking -= 1
        session = Session(key, identity, self._config, self._metrics)
        session.exchange.inherit(parent.session.exchange)
        if base is not None:
            session.turns.mark = f"~{uuid.uuid4().hex[:8]}"
        return self._start(session, base)

    async def _branch_of_living(self, parent: Entry) -> Again | None:
        """What ``_branch`` copied, if the parent has outlived it: of one that is being wiped any part may lack."""
        base, failure = None, None
        try:
            base = await self._branch(parent)
        except BrokerError as error:
            failure = error
        directory = parent.tenure.directory
        is_wiped = directory is not None and not directory.is_kept
        if is_wiped or self._entries.get(parent.session.key) is not parent:
            if base is not None:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(base.directory.wipe)
            raise ConnectionRefused(CloseCode.UNKNOWN_SESSION)
        if failure is not None:
            raise failure
        return base

    async def _branch(self, parent: Entry) -> Again | None:
        """The parent's files, copied; None when there are none."""
        await read_page(parent.scans, lambda: parent.tenure.transcript, None, 1, settles_until=parent.settles_until)
        limits = self._config.session
        try:
            return await parent.scans.run(self._copy, parent.tenure, Budget(limits.fork_max_mb, limits.fork_max_files))
        except OSError as error:
            log.warning("session.fork_failed", session=parent.session.key[2], error=str(error))
            message = "fork: the conversation's files cannot be copied"
            raise BrokerError(ErrorCode.BIND_FAILED, message, close=CloseCode.BIND_FAILED) from error

    def _copy(self, parent: Tenure, budget: Budget) -> Again | None:
        """In a thread.  Whatever fails leaves no directory behind."""
        transcript = parent.transcript
        if transcript is None:
            return None
        session_id, child = self._pool.place()
        try:
            copy_conversation(transcript, child, budget)
        except BaseException:
            child.wipe()
            raise
        child.is_kept = True
        return Again(child, session_id, fork_of=transcript.session_id)

    def delete(self, entry: Entry) -> None:
        """End the conversation and wipe it; its id is free at once."""
        if self._entries.get(entry.session.key) is entry:
            del self._entries[entry.session.key]
        entry.tenure.delete()

    async def _run(self, key: tuple[str, str, str], entry: Entry) -> None:
        """A bulkhead: a bug in one session ends that session only."""
        try:
            await entry.tenure.run()
        except Exception:
            log.exception("session.failed", tenant=key[0], session=key[2])
            entry.session.detach_process(FailureReason.INTERNAL, "the session failed")
            for reader in list(entry.session.readers):
                reader.close_soon(CloseCode.INTERNAL, "internal")
        finally:
            if self._entries.get(key) is entry:
                del self._entries[key]
            self._metrics.session_moved("open", None)

    def replace(self, entry: Entry, newcomer: Reader) -> None:
        """A second connection of one client instance replaces the first: a reconnect never fights its dead socket.

        One that only observes replaces no controller: whoever may only read cannot push anybody out.
        """
        for reader in [*entry.session.readers, *entry.tenure.lobby.arriving]:
            is_same = bool(newcomer.instance) and reader.instance == newcomer.instance and reader is not newcomer
            if is_same and (newcomer.is_controller or not reader.is_controller):
                reader.close_soon(CloseCode.REPLACED, "replaced")

    async def drain(self, timeout_s: float) -> None:
        """Tell everybody, let running turns end until the deadline, fail the rest, close with 1012.

        Bounded by ``timeout_s``; a cancel skips the waiting only.  Idle processes begin to end at once.
        """
        deadline = time.monotonic() + timeout_s
        for entry in self._entries.values():
            entry.tenure.is_draining = entry.session.turns.is_closed = True
            entry.session.fail_queued(FailureReason.CANCELLED, "the broker is stopping")
            for reader in entry.session.readers:
                reader.send(GoAway("draining", 1000))
            entry.tenure.wake()
        entries = self._entries.values()
        try:
            while time.monotonic() < deadline and any(e.session.turns.current for e in entries):  # noqa: ASYNC110
                await anyio.sleep(DRAIN_LOOK_S)
        finally:
            for entry in entries:
                entry.session.fail_turn(FailureReason.DRAINING, "stop.drain_timeout_s is over")
                entry.session.kill_reason = FailureReason.DRAINING.value  # its process goes: a late result ends nothing
                for reader in list(entry.session.readers):
                    reader.close_soon(CloseCode.DRAINING, "draining")
