"""Conversations by ``(tenant, subject, id)``, and the owner of their tasks.

Owner task: ``run``, in the root task group of ``broker.app``.  Callers: ``broker.sessions.opening`` (find, create,
fork), ``broker.sockets.connection`` (delete), ``broker.sockets.listing``, ``broker.app`` (drain).  A socket never owns
a session: closing one only detaches it.
"""

import time
import uuid
from collections import Counter
from functools import partial

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from broker.auth import Identity
from broker.config.settings import Settings
from broker.config.tree import Config
from broker.errors import BrokerError
from broker.metrics import Metrics
from broker.pool.disk_quota import DiskQuota
from broker.pool.pool import Pool
from broker.pool.quotas import QuotaExceeded, check_cap
from broker.processes.child import Again
from broker.sessions.branch import Budget, copy_conversation
from broker.sessions.entry import Asleep, Entry
from broker.sessions.journal import Journal
from broker.sessions.record import encode, take_up
from broker.sessions.session import Session
from broker.sessions.shelf import Shelf
from broker.sessions.sleepers import Sleepers
from broker.sessions.stores import Key, Store, StoreFailed
from broker.sessions.tenure import Tenure
from broker.sessions.transcript import SCAN_THREADS, Scans, read_page
from broker.sessions.upkeep import Upkeep
from broker.turns.reader import Reader
from protocol.codes import CloseCode, ErrorCode, FailureReason, Limit
from protocol.errors import ConnectionRefused
from protocol.frames import GoAway, SessionRef

log = structlog.get_logger(__name__)

SWEEP_EVERY_S = 1.0
DRAIN_LOOK_S = 0.02


class Registry:
    """All conversations of this broker.  ``store`` None: they end with it."""

    def __init__(self, settings: Settings, pool: Pool, metrics: Metrics, store: Store | None = None) -> None:
        """Raises ``StoreFailed`` when the index cannot be read."""
        self._settings = settings
        self._pool = pool
        self._metrics = metrics
        self._store = store
        self._sleepers = Sleepers(store, metrics)
        self._entries: Shelf[Entry] = Shelf()
        self._forking: Counter[str] = Counter()
        """Sessions on their way, by tenant."""
        self._scanning = anyio.CapacityLimiter(SCAN_THREADS)
        self._group: anyio.abc.TaskGroup | None = None
        self._upkeep = Upkeep(settings, pool, self._entries, self._sleepers, self.delete)
        self.disk = DiskQuota(self._upkeep.places, metrics)

    @property
    def _config(self) -> Config:
        """What holds now."""
        return self._settings.now

    async def run(self) -> None:
        """Hold the sessions' tasks until cancelled; each ends its own process."""
        async with anyio.create_task_group() as group:
            self._group = group
            group.start_soon(self.disk.run, name="disk-quota")
            while True:
                await anyio.sleep(SWEEP_EVERY_S)
                self._upkeep.bound_logs()
                self._sleepers.settle()
                await self._upkeep.end_unused(time.monotonic())

    # -- finding ---------------------------------------------------------------------------------------------------

    def find(self, ref: SessionRef, identity: Identity, subject: str) -> Entry | None:
        """The conversation that hello names (for ``fork`` the one to branch), or None when it is to be made.

        ``continue``, and ``fork`` without an id, mean the subject's latest.  Raises ``ConnectionRefused``: 4504
        (unknown and foreign look alike) or 4505.
        """
        found: Entry | Asleep | None = None
        if ref.mode == "continue" or (ref.mode == "fork" and ref.id is None):
            found = max(self.of(identity.tenant, subject), key=lambda each: each.last_active, default=None)
        elif ref.id is not None:
            key = (identity.tenant, subject, ref.id)
            found = self._entries.get(key) or self._sleepers.get(key)
        if found is None and ref.id is not None and ref.mode != "new":
            named = (identity.tenant, subject, ref.id)  # the CLI's own session id is accepted too
            found = self._entries.named(*named) or self._sleepers.named(*named)
        if found is not None and ref.mode == "new":
            raise ConnectionRefused(CloseCode.SESSION_EXISTS)
        if found is None and ref.mode not in ("new", "open"):
            raise ConnectionRefused(CloseCode.UNKNOWN_SESSION)
        return self._wake(found, identity) if isinstance(found, Asleep) else found

    def of(self, tenant: str, subject: str | None) -> list[Entry | Asleep]:
        """The conversations of a subject, or of the whole tenant."""
        return [*self._entries.of(tenant, subject), *self._sleepers.of(tenant, subject)]

    def _wake(self, asleep: Asleep, identity: Identity) -> Entry:
        """A conversation of an earlier run, as if its process had just been stopped.

        The first frames of its new log end what that run has left open.  Raises ``BrokerError`` when the index cannot
        be read.
        """
        key, record = asleep.key, asleep.record
        assert self._store is not None
        try:
            messages = self._store.messages(key)
        except StoreFailed as error:
            raise BrokerError(
                ErrorCode.STORAGE_FAILED, "the conversation cannot be read", close=CloseCode.INTERNAL
            ) from error
        session = self._session(key, identity)
        session.turns.mark, session.turns.has_written = record.mark, record.has_written
        session.cli_session_id = record.cli_session_id
        take_up(record.bound, session.exchange.bound)
        directory = self._pool.directory(record.directory)
        again = Again(directory, record.cli_session_id, fork_of=record.fork_of)
        session.journal.is_used, session.journal.record = True, encode(record)
        self._sleepers.take(asleep)
        entry = self._start(session, again=again)
        entry.created_at, entry.touched_at = record.created_at, asleep.last_active
        session.terminals.cut_off(session.turns.take_up(messages, record.total))
        session.last_terminal_at = asleep.last_active
        return entry

    # -- making and ending -----------------------------------------------------------------------------------------

    def create(self, session_id: str | None, identity: Identity, subject: str) -> Entry:
        """A new conversation and its task.  Raises ``BrokerError`` when as many are kept as may be."""
        self._check_room(identity)
        return self._start(self._session((identity.tenant, subject, session_id or str(uuid.uuid4())), identity))

    def _session(self, key: Key, identity: Identity) -> Session:
        session = Session(key, identity, self._config, self._metrics)
        session.journal = Journal(key, self._store, self._metrics)
        return session

    def _check_room(self, identity: Identity) -> None:
        tenant, cap = identity.tenant, identity.limits.tenant_sessions
        if len(self._entries) + len(self._sleepers) + self._forking.total() >= self._config.session.max_sessions:
            message = f"session.max_sessions = {self._config.session.max_sessions} are kept"
            raise BrokerError(ErrorCode.POOL_UNAVAILABLE, message, close=CloseCode.POOL_UNAVAILABLE)
        if cap is None:
            return
        try:
            used = self._entries.count(tenant) + self._sleepers.count(tenant) + self._forking[tenant]
            check_cap(Limit.TENANT_SESSIONS, cap, used, CloseCode.POOL_UNAVAILABLE, None)
        except QuotaExceeded as full:
            self._metrics.limit_refused(full.limit)
            raise

    def _start(self, session: Session, *, base: Again | None = None, again: Again | None = None) -> Entry:
        assert self._group is not None
        tenure = Tenure(session, self._pool, session.config, base=base, again=again)
        entry = Entry(session, tenure, Scans(self._scanning))
        tenure.note = session.journal.on_first = entry.keep
        self._entries[session.key] = entry
        session.on_named = partial(self._entries.rename, session.key, entry)
        session.on_named("", session.cli_session_id)
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
        self._check_room(identity)
        key = (identity.tenant, subject, str(uuid.uuid4()))
        self._forking[identity.tenant] += 1
        try:
            base = await self._branch_of_living(parent)
        finally:
            self._forking[identity.tenant] -= 1
        if base is None and parent.session.turns.usage.total.turns:
            message = "fork: the conversation's transcript is not there"
            raise BrokerError(ErrorCode.BIND_FAILED, message, close=CloseCode.BIND_FAILED)
        session = self._session(key, identity)
        session.exchange.inherit(parent.session.exchange)
        if base is not None:
            session.turns.mark = f"~{uuid.uuid4().hex[:8]}"
        return self._start(session, base=base)

    async def _branch_of_living(self, parent: Entry) -> Again | None:
        """What ``_branch`` copied, if the parent has outlived it: of one that is being wiped any part may lack."""
        base, failure = None, None
        try:
            base = await self._branch(parent)
        except BrokerError as error:
            failure = error
        directory = parent.tenure.succession.directory
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
        await read_page(parent.scans, lambda: parent.transcript, None, 1, settles_until=parent.settles_until)
        limits = self._config.session
        try:
            return await parent.scans.run(self._copy, parent, Budget(limits.fork_max_mb, limits.fork_max_files))
        except OSError as error:
            log.warning("session.fork_failed", session=parent.session.key[2], error=str(error))
            message = "fork: the conversation's files cannot be copied"
            raise BrokerError(ErrorCode.BIND_FAILED, message, close=CloseCode.BIND_FAILED) from error

    def _copy(self, parent: Entry, budget: Budget) -> Again | None:
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
        self._remove(entry)
        entry.tenure.delete()

    def _remove(self, entry: Entry) -> None:
        """Take it out, unless another one has its key by now."""
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
        self._entries.rename(entry.key, entry, entry.cli_session_id, "")
        entry.session.on_named = lambda old, new: None

    async def _run(self, key: tuple[str, str, str], entry: Entry) -> None:
        """A bulkhead: a bug in one session ends that session only."""
        try:
            await entry.tenure.run()
        except Exception:
            log.exception("session.failed", tenant=key[0], session=key[2])
            if self._entries.get(key) is entry:
                self._sleepers.lay_down(key, entry.session.journal.record)
            for reader in list(entry.session.readers):
                reader.close_soon(CloseCode.INTERNAL, "internal")
        finally:
            self._remove(entry)
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
            entry.session.terminals.fail_queued(FailureReason.CANCELLED, "the broker is stopping")
            for reader in entry.session.readers:
                reader.send(GoAway("draining", 1000))
            entry.tenure.wake()
        entries = self._entries.values()
        try:
            while time.monotonic() < deadline and any(e.session.turns.current for e in entries):  # noqa: ASYNC110
                await anyio.sleep(DRAIN_LOOK_S)
        finally:
            for entry in entries:
                entry.session.terminals.fail_running(FailureReason.DRAINING, "stop.drain_timeout_s is over")
                entry.session.kill_reason = FailureReason.DRAINING.value  # its process goes: a late result ends nothing
                for reader in list(entry.session.readers):
                    reader.close_soon(CloseCode.DRAINING, "draining")
