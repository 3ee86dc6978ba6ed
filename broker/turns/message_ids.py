"""Which messages a session has accepted, by their ids: a repeat is told from a conflict, and how each ended.

Pure.  Owner: one ``broker.turns.turns.Turns``.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from protocol.codes import ErrorCode
from protocol.errors import ClientError

REMEMBERED_IDS = 1024
"""Finished ids per session that still answer a repeat with their outcome."""

Outcome = Literal["completed", "failed"]
Noted = Outcome | Literal["waiting"] | None
"""How far a message of an earlier run came.  ``waiting``: no CLI was given it; None: one may have been."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """The id was accepted before, with the same content."""

    id: str
    outcome: Outcome | None


@dataclass(slots=True)
class _Record:
    digest: bytes
    outcome: Outcome | None = None


def digest(content: bytes) -> bytes:
    """The hash by which a repeat is told from a conflict."""
    return hashlib.sha256(content).digest()


class MessageIds:
    """The last ``REMEMBERED_IDS`` ids, and every one that has not ended."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._records

    def repeat(self, message_id: str, content_digest: bytes) -> Repeat | None:
        """The repeat that a message is, or None when its id is new.  Raises ``ClientError(id_conflict)``."""
        record = self._records.get(message_id)
        if record is None:
            return None
        if record.digest != content_digest:
            raise ClientError(ErrorCode.ID_CONFLICT, "this id was used for other content", ref=message_id)
        return Repeat(message_id, record.outcome)

    def accept(self, message_id: str, content_digest: bytes) -> None:
        """Remember a message from now on."""
        self._records[message_id] = _Record(content_digest)
        while len(self._records) > REMEMBERED_IDS:
            oldest = next((key for key, record in self._records.items() if record.outcome is not None), None)
            if oldest is None:
                return
            del self._records[oldest]

    def restore(self, message_id: str, content_digest: bytes, outcome: Outcome | None) -> None:
        """Remember a message of an earlier run, oldest first."""
        self.accept(message_id, content_digest)
        self._records[message_id].outcome = outcome

    def ended(self, message_id: str, outcome: Outcome) -> None:
        """Note how a message ended."""
        self._records[message_id].outcome = outcome
