"""User messages that wait for their turn, in the order of their priority.

``now`` goes before ``next`` (what a message without one has), ``later`` behind.  Bound: 10,000 messages.
Owner: ``simulator.session``.  Callers: ``simulator.session``, ``simulator.turn``, ``simulator.controls``.
"""

from typing import Any, Final, NamedTuple

from simulator.messages import Message
from simulator.transcript import text_of

MAX_MESSAGES: Final = 10_000
PRIORITIES: Final = {"now": 0, "next": 1, "later": 2}


class UserMessage(NamedTuple):
    """A ``user`` line of stdin."""

    content: Any
    text: str
    uuid: str
    is_composed: bool
    priority: int

    @property
    def is_command(self) -> bool:
        return self.text.startswith("/") and not self.is_composed

    @property
    def is_urgent(self) -> bool:
        """It cuts the running turn short."""
        return self.priority == PRIORITIES["now"]


class Inbox:
    """The queue."""

    def __init__(self) -> None:
        self._waiting: list[UserMessage] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def uuids(self) -> list[str]:
        return [message.uuid for message in self._waiting if message.uuid]

    def put(self, line: Message, content: Any, uuid: str) -> UserMessage:
        """Take a message in, behind those of its priority."""
        priority = PRIORITIES.get(str(line.get("priority")), PRIORITIES["next"])
        message = UserMessage(content, text_of(content), uuid, bool(line.get("client_composed")), priority)
        place = sum(one.priority <= priority for one in self._waiting)
        self._waiting.insert(place, message)
        return message

    def take(self, *, alone: bool) -> list[UserMessage]:
        """The next message, and with it those that may share its turn unless it is to be ``alone``."""
        first = self._waiting.pop(0)
        batch = [first]
        while self._waiting and not alone and not first.is_command:
            following = self._waiting[0]
            if following.is_command or following.priority != first.priority:
                break
            batch.append(self._waiting.pop(0))
        return batch

    def take_joining(self) -> list[UserMessage]:
        """What joins a running turn between two requests: neither commands nor what is for ``later``."""
        found = []
        while self._waiting and not self._waiting[0].is_command and self._waiting[0].priority != PRIORITIES["later"]:
            found.append(self._waiting.pop(0))
        return found

    def clear(self) -> list[str]:
        """Forget everything; returns the uuids."""
        uuids = self.uuids
        self._waiting.clear()
        return uuids

    def cancel(self, uuid: Any) -> bool:
        """Forget one message."""
        found = [message for message in self._waiting if message.uuid and message.uuid == uuid]
        for message in found:
            self._waiting.remove(message)
        return bool(found)
