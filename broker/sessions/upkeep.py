"""What keeps the conversations of a broker within their bounds: logs, what nobody uses any more, idle processes.

Owner: ``broker.sessions.registry``, whose task looks every second; the pool tells when it has no room.  Which idle
sessions rest is decided in ``broker.pool.relief``.
"""

import time
from collections import Counter
from collections.abc import Callable

import anyio.to_thread
import structlog

from broker.config.settings import Settings
from broker.pool.disk_quota import Place
from broker.pool.pool import Pool
from broker.pool.relief import Idle, chosen
from broker.sessions.entry import Entry
from broker.sessions.shelf import Shelf
from broker.sessions.sleepers import Sleepers

log = structlog.get_logger(__name__)

DAY_S = 86400.0


class Upkeep:
    """``entries`` and ``sleepers`` are the registry's; ``delete`` is how it ends an entry."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        entries: Shelf[Entry],
        sleepers: Sleepers,
        delete: Callable[[Entry], None],
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._entries = entries
        self._sleepers = sleepers
        self._delete = delete
        pool.on_pressure = self._relieve

    def bound_logs(self) -> None:
        """Above ``replay.total_bytes``, forget logs: of detached sessions first, longest detached first; then of those
        in which nothing has happened for longest.  A reader that had everything goes on; one that had not is closed.
        """
        excess = sum(entry.session.log.size for entry in self._entries.values()) - self._settings.now.replay.total_bytes
        if excess <= 0:
            return
        for entry in sorted(self._entries.values(), key=_worth):
            size, readers = entry.session.log.size, len(entry.session.readers)
            if not size:
                continue
            log.info("session.log_forgotten", tenant=entry.key[0], session=entry.key[2], bytes=size, readers=readers)
            excess -= size
            entry.session.log.expire()
            entry.session.wake_readers()
            if excess <= 0:
                return

    async def end_unused(self, now: float) -> None:
        """Delete what nobody has used for ``session.retain_days``, and what nobody is attached to.

        A cancel leaves directories for the next start, which finds them in no record and wipes them.
        """
        moment = now - self._settings.now.session.retain_days * DAY_S
        for entry in list(self._entries.values()):
            if entry.last_active < moment and entry.state == "hibernated" and not entry.session.readers:
                log.info("session.retired", tenant=entry.key[0], session=entry.key[2])
                self._delete(entry)
        for asleep in self._sleepers.unused_since(moment):
            log.info("session.retired", tenant=asleep.key[0], session=asleep.key[2])
            self._sleepers.forget(asleep)
            await anyio.to_thread.run_sync(self._pool.directory(asleep.record.directory).wipe)

    def places(self, tenant: str) -> list[Place]:
        """Where the tenant's conversations lie, those that lie anywhere."""
        awake = (entry.place for entry in self._entries.of(tenant, None))
        asleep = (
            Place(self._pool.directory(asleep.record.directory), asleep.last_active)
            for asleep in self._sleepers.of(tenant, None)
        )
        return [place for place in (*awake, *asleep) if place is not None]

    def _relieve(self, waiting: list[str]) -> None:
        """Tenants wait and there is no room: idle sessions give their processes back."""
        now, live = time.monotonic(), [entry for entry in self._entries.values() if entry.tenure.is_live]
        idle = {
            Idle(entry.key[0], entry.last_active): entry
            for entry in live
            if entry.tenure.is_idle and not entry.tenure.rest.is_asked and entry.tenure.rest.may_be_asked(now)
        }
        held = Counter(entry.key[0] for entry in live)
        asked = sum(entry.tenure.rest.is_asked for entry in live)
        for each in chosen(list(idle), held, waiting, self._pool.limit, len(waiting) - asked):
            idle[each].tenure.rest.is_asked = True
            idle[each].tenure.wake()


def _worth(entry: Entry) -> tuple[bool, float]:
    """The less, the sooner its log is forgotten."""
    is_attached = bool(entry.session.readers)
    return is_attached, entry.last_active if is_attached else entry.tenure.rest.detached_at
