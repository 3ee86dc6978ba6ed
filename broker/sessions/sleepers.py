"""Conversations of an earlier run of the broker, or whose task has failed, that nobody has come back to: records, and
no more.

Owner: ``broker.sessions.registry``, which makes a session of one when somebody comes.
"""

import time

from msgspec.structs import replace

from broker.metrics import Metrics
from broker.sessions.entry import EPOCH_S, Asleep
from broker.sessions.journal import Journal
from broker.sessions.record import decode
from broker.sessions.shelf import Shelf
from broker.sessions.stores import Key, Store, StoreFailed


class Sleepers:
    """All of them, by key.  ``store`` None: none are kept."""

    def __init__(self, store: Store | None, metrics: Metrics) -> None:
        """Read the index.  Raises ``StoreFailed``."""
        self._store = store
        self._metrics = metrics
        self._found: Shelf[Asleep] = Shelf()
        self.unreadable: list[Key] = []
        """Their records say nothing, so which folders are theirs is not known either."""
        for key, data in [] if store is None else store.conversations():
            record = decode(data)
            if record is None:
                self.unreadable.append(key)
            else:
                self._add(Asleep(key, record))

    def __len__(self) -> int:
        return len(self._found)

    @property
    def directories(self) -> set[str]:
        """The folders that are theirs."""
        return {asleep.record.directory for asleep in self._found.values()}

    def get(self, key: Key) -> Asleep | None:
        """The conversation of that key."""
        return self._found.get(key)

    def of(self, tenant: str, subject: str | None) -> list[Asleep]:
        """The conversations of a subject, or of the whole tenant."""
        return self._found.of(tenant, subject)

    def count(self, tenant: str) -> int:
        """How many the tenant has."""
        return self._found.count(tenant)

    def named(self, tenant: str, subject: str, cli_id: str) -> Asleep | None:
        """The subject's conversation that the CLI knows by that id."""
        return self._found.named(tenant, subject, cli_id)

    def _add(self, asleep: Asleep) -> None:
        self._found[asleep.key] = asleep
        self._found.rename(asleep.key, asleep, "", asleep.cli_session_id)

    def lay_down(self, key: Key, data: bytes) -> None:
        """Its task has failed: whoever comes back to it wakes it, as after a restart.  ``data``: its last record, empty
        when it has none; its process has only just gone."""
        record = decode(data)
        if self._store is not None and record is not None:
            self._add(Asleep(key, replace(record, last_active=time.monotonic() + EPOCH_S)))

    def take(self, asleep: Asleep) -> None:
        """It is a session now, or gone."""
        del self._found[asleep.key]
        self._found.rename(asleep.key, asleep, asleep.cli_session_id, "")

    def forget(self, asleep: Asleep) -> None:
        """It is gone, though nobody came back for it."""
        self.take(asleep)
        Journal(asleep.key, self._store, self._metrics, is_used=True).forget()

    def settle(self) -> None:
        """Let the index delete what it could not before; the journals of those are gone, and have told of it."""
        if self._store is not None:
            try:
                self._store.settle()
            except StoreFailed:
                self._metrics.store_failed("forget")

    def unused_since(self, moment: float) -> list[Asleep]:
        """Those that were last used before ``moment``, a monotonic time."""
        return [asleep for asleep in self._found.values() if asleep.last_active < moment]
