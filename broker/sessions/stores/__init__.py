"""Where the index of conversations outlives the broker.

A ``Store`` keeps one opaque record a conversation and the ids of its messages with how each ended; what is in a record
is known to ``broker.sessions.record`` alone.  All methods block, for tens of microseconds, and belong to one thread: an
id has to be kept before its message is written to a CLI, and nothing may come between.  Owner: ``broker.app``.
"""

from collections.abc import Iterable
from typing import Protocol

from broker.turns.message_ids import Noted, Outcome

Key = tuple[str, str, str]
"""Tenant, subject, id."""


class StoreFailed(Exception):
    """What was to be kept is not; the text says why (a full disk, a file that cannot be read).

    ``is_passing``: the disk is full, or has failed, or another program holds the file: the same may work later.
    """

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        super().__init__(message)
        self.is_passing = is_passing


class Store(Protocol):
    """One broker's index.  Every method but ``close`` raises ``StoreFailed``; then nothing of it was kept."""

    def conversations(self) -> list[tuple[Key, bytes]]:
        """All records."""

    def messages(self, key: Key) -> list[tuple[str, bytes, Noted]]:
        """Ids of a conversation, oldest first, with the digest of the content and how far each came.

        ``waiting`` is told only where a later ``write`` cannot have been lost.
        """

    def keep(self, key: Key, record: bytes) -> None:
        """A conversation, from now on or once more."""

    def accept(self, key: Key, message_id: str, digest: bytes, *, is_waiting: bool) -> None:
        """A message that is about to be written, or (``is_waiting``) that ``write`` is called for first."""

    def write(self, key: Key, message_id: str) -> None:
        """A message that waited is about to be written."""

    def end(self, key: Key, outcomes: Iterable[tuple[str, Outcome]]) -> None:
        """How messages have ended; ids that are unknown are passed over."""

    def forget(self, key: Key) -> None:
        """A conversation and its ids are gone.  When it fails it is owed: it comes before whatever is kept next."""

    def settle(self) -> None:
        """Do what is owed, if anything is."""

    def close(self) -> None:
        """Nothing more is asked.  Harmless when closed."""
