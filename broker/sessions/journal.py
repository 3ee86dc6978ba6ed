"""What is kept of one conversation, as it happens: its record, its messages' ids, their ends.

Synchronous; each call blocks for one transaction.  Owner: one ``broker.sessions.session.Session``; its record is made
by ``broker.sessions.tenure``.  A message that cannot be kept is refused.  What cannot be kept of an end, or of the
record, is owed: it is told once, counted, and kept with the next thing that can be.
"""

from collections.abc import Callable, Sequence

import structlog

from broker.metrics import Metrics
from broker.sessions.stores import Key, Store, StoreFailed
from broker.turns.message_ids import Outcome
from protocol.codes import ErrorCode
from protocol.errors import ClientError

log = structlog.get_logger(__name__)

UNNOTED = "the message could not be noted (state.dir): nothing was written"
MAX_OWED = 1024
"""Ends that wait for the store; above it the oldest are given up, and their messages count as cut off."""


class Journal:
    """One conversation's.  Without a store nothing is kept."""

    def __init__(self, key: Key, store: Store | None, metrics: Metrics, *, is_used: bool = False) -> None:
        self._key = key
        self._store = store
        self._metrics = metrics
        self.record = b""
        """As it was told last; empty before the first time."""
        self._is_record_owed = False
        self._owed: dict[str, Outcome] = {}
        self._has_told = False
        self.is_used = is_used
        """A message was accepted: before, there is nothing that anybody would come back to."""
        self.on_first: Callable[[], None] = lambda: None

    def accept(self, message_id: str, digest: bytes, is_waiting: bool) -> None:
        """A message, before it is written.  ``is_waiting``: it is not written before ``write`` was called for it.

        Raises ``ClientError(storage_failed)``; it is then not accepted.
        """
        if self._store is None:
            return
        try:
            self._store.accept(self._key, message_id, digest, is_waiting=is_waiting)
        except StoreFailed as error:
            raise self._refusal("accept", message_id, error) from error
        if not self.is_used:
            self.is_used = True
            self.on_first()

    def write(self, message_id: str) -> None:
        """A message that waited is about to be written.  Raises ``ClientError(storage_failed)``; it must not be then,
        or another run would say of it that it never was."""
        if self._store is None:
            return
        try:
            self._store.write(self._key, message_id)
        except StoreFailed as error:
            raise self._refusal("write", message_id, error) from error

    def _refusal(self, operation: str, message_id: str, error: StoreFailed) -> ClientError:
        self._failed(operation, error)
        return ClientError(ErrorCode.STORAGE_FAILED, UNNOTED, ref=message_id)

    def end(self, outcomes: Sequence[tuple[str, Outcome]]) -> None:
        """How messages have ended."""
        self._owed |= outcomes
        while len(self._owed) > MAX_OWED:
            del self._owed[next(iter(self._owed))]
            self._metrics.store_failed("give_up")
        self._pay("end")

    def keep(self, record: bytes) -> None:
        """The conversation as it is now; harmless when nothing has changed."""
        if record != self.record or self._is_record_owed:
            self.record, self._is_record_owed = record, True
            self._pay("keep")

    def forget(self) -> None:
        """The conversation is gone.  What cannot be deleted the store owes."""
        self._owed.clear()
        self._is_record_owed = False
        if self._store is not None and self.is_used:
            try:
                self._store.forget(self._key)
            except StoreFailed as error:
                self._failed("forget", error)

    def _pay(self, operation: str) -> None:
        if self._store is None:
            self._owed.clear()
            return
        try:
            if self._owed:
                self._store.end(self._key, self._owed.items())
                self._owed.clear()
            if self._is_record_owed:
                self._store.keep(self._key, self.record)
                self._is_record_owed = False
        except StoreFailed as error:
            self._failed(operation, error)
        else:
            self._has_told = False

    def _failed(self, operation: str, error: StoreFailed) -> None:
        self._metrics.store_failed(operation)
        if not self._has_told:
            self._has_told = True
            log.error("store.failed", operation=operation, session=self._key[2], error=str(error))
