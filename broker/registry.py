"""Conversations by ``(tenant, subject, id)``, and the owner of their tasks.

Owner task: ``run``, in the root task group of ``broker.app``.  Callers: ``broker.connection`` (open and attach),
``broker.app`` (drain).  A socket never owns a session: closing one only detaches it.
"""

import time
import uuid
from dataclasses import dataclass

import anyio
import anyio.abc
import structlog

from broker.auth import Identity
from broker.config import Config
from broker.errors import BrokerError
from broker.exchange import Reader
from broker.metrics import Metrics
from broker.pool import Pool
from broker.session import Session
from broker.tenure import Tenure
from protocol.codes import CloseCode, ErrorCode, FailureReason
from protocol.errors import ConnectionRefused
from protocol.frames import GoAway, SessionRef

log = structlog.get_logger(__name__)

SWEEP_EVERY_S = 1.0
DRAIN_LOOK_S = 0.02


@dataclass(slots=True, eq=False)
class Entry:
    """A session and the task that gives it its processes."""

    session: Session
    tenure: Tenure


class Registry:
    """All conversations of this broker.  Records live in memory until the broker ends."""

    def __init__(self, config: Config, pool: Pool, metrics: Metrics) -> None:
        self._config = config
        self._pool = pool
        self._metrics = metrics
        self._entries: dict[tuple[str, str, str], Entry] = {}
        self._group: anyio.abc.TaskGroup | None = None

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

    def find(self, ref: SessionRef, identity: Identity, subject: str) -> Entry | None:
        """The conversation that hello names, or None when it is to be made.

        Raises ``ConnectionRefused``: 4504 (unknown and foreign look alike) or 4505.
        """
        entry = self._entries.get((identity.tenant, subject, ref.id)) if ref.id is not None else None
        if entry is None and ref.id is not None and ref.mode != "new":
            entry = self._by_cli_id(identity.tenant, subject, ref.id)
        if entry is not None and ref.mode == "new":
            raise ConnectionRefused(CloseCode.SESSION_EXISTS)
        if entry is None and ref.mode == "resume":
            raise ConnectionRefused(CloseCode.UNKNOWN_SESSION)
        return entry

    def _by_cli_id(self, tenant: str, subject: str, session_id: str) -> Entry | None:
        """The CLI's own session id is accepted too."""
        of_subject = (entry for key, entry in self._entries.items() if key[:2] == (tenant, subject))
        return next((entry for entry in of_subject if entry.session.cli_session_id == session_id), None)

    def create(self, ref: SessionRef, identity: Identity, subject: str) -> Entry:
        """A new conversation and its task.  Raises ``BrokerError`` when ``session.max_sessions`` are kept."""
        assert self._group is not None
        if len(self._entries) >= self._config.session.max_sessions:
            message = f"session.max_sessions = {self._config.session.max_sessions} are kept"
            raise BrokerError(ErrorCode.POOL_UNAVAILABLE, message, close=CloseCode.POOL_UNAVAILABLE)
        key = (identity.tenant, subject, ref.id or str(uuid.uuid4()))
        session = Session(key, identity, self._config, self._metrics)
        entry = Entry(session, Tenure(session, self._pool, self._config))
        self._entries[key] = entry
        self._metrics.session_moved(None, "open")
        self._group.start_soon(self._run, key, entry, name=f"session-{key[2]}")
        return entry

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
            del self._entries[key]
            self._metrics.session_moved("open", None)

    def replace(self, entry: Entry, newcomer: Reader) -> None:
        """A second connection of one client instance replaces the first: a reconnect never fights its dead socket."""
        for reader in [*entry.session.readers, *entry.tenure.arriving]:
            if newcomer.instance and reader.instance == newcomer.instance and reader is not newcomer:
                reader.close_soon(CloseCode.REPLACED, "replaced")

    async def drain(self, timeout_s: float) -> None:
        """Tell everybody, let running turns end until the deadline, fail the rest, close with 1012.

        Bounded by ``timeout_s``; a cancel skips the waiting.
        """
        deadline = time.monotonic() + timeout_s
        for entry in self._entries.values():
            entry.tenure.is_draining = entry.session.turns.is_closed = True
            entry.session.fail_queued(FailureReason.CANCELLED, "the broker is stopping")
            for reader in entry.session.readers:
                reader.send(GoAway("draining", 1000))
        entries = self._entries.values()
        while time.monotonic() < deadline and any(e.session.turns.current for e in entries):  # noqa: ASYNC110 - rare
            await anyio.sleep(DRAIN_LOOK_S)
        for entry in self._entries.values():
            entry.session.fail_turn(FailureReason.DRAINING, "stop.drain_timeout_s is over")
            for reader in list(entry.session.readers):
                reader.close_soon(CloseCode.DRAINING, "draining")
