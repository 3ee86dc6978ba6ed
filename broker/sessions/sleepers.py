"""Conversations of an earlier run of the broker that nobody has come back to: records, and no more.

Owner: ``broker.sessions.registry``, which makes a session of one when somebody comes.
"""

from collections.abc import Iterator

from broker.sessions.entry import Asleep
from broker.sessions.record import decode
from broker.sessions.stores import Key, Store


class Sleepers:
    """All of them, by key.  ``store`` None: none are kept."""

    def __init__(self, store: Store | None) -> None:
        """Read the index.  Raises ``StoreFailed``."""
        self._found: dict[Key, Asleep] = {}
        self.unreadable: list[Key] = []
        """Their records say nothing, so which folders are theirs is not known either."""
        for key, data in [] if store is None else store.conversations():
            record = decode(data)
            if record is None:
                self.unreadable.append(key)
            else:
                self._found[key] = Asleep(key, record)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def directories(self) -> set[str]:
        """The folders that are theirs."""
        return {asleep.record.directory for asleep in self._found.values()}

    def get(self, key: Key) -> Asleep | None:
        """The conversation of that key."""
        return self._found.get(key)

    def of(self, tenant: str, subject: str | None) -> Iterator[Asleep]:
        """The conversations of a subject, or of the whole tenant."""
        for asleep in self._found.values():
            if asleep.key[0] == tenant and subject in (None, asleep.key[1]):
                yield asleep

    def take(self, asleep: Asleep) -> None:
        """It is a session now, or gone."""
        del self._found[asleep.key]

    def unused_since(self, moment: float) -> list[Asleep]:
        """Those that were last used before ``moment``, a monotonic time."""
        return [asleep for asleep in self._found.values() if asleep.last_active < moment]
