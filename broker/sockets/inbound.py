"""What all sockets together hold of messages that have not come to their end, or that nobody has taken.

Pure.  Owner: ``broker.sockets.server``.  Caller: ``broker.sockets.tenant_socket``, whenever a socket has taken more
bytes.  Each message is bounded by ``server.max_message_bytes``; that bounds nothing where a thousand sockets are amidst
one.
"""

from collections.abc import Callable
from typing import Protocol

NOTED_BYTES = 65536
"""A socket that holds less is not worth a look, and is no danger: its number is bounded elsewhere."""


class Holder(Protocol):
    """A socket."""

    @property
    def held_bytes(self) -> int:
        """Bytes of messages that nobody has taken."""

    def refuse_more(self, limit: int) -> None:
        """End it, since all of them hold more than ``limit`` bytes; what it holds is let go."""


class Inbound:
    """The sum over all sockets that hold much.  ``limit`` and ``on_refused`` are the server's."""

    def __init__(self, limit: Callable[[], int], on_refused: Callable[[], None]) -> None:
        self._limit = limit
        self._on_refused = on_refused
        self._held: dict[Holder, int] = {}
        self._total = 0

    def note(self, holder: Holder) -> None:
        """The socket holds other bytes than before.  Above the limit whoever holds most is refused."""
        held = holder.held_bytes
        if held < NOTED_BYTES:
            self.forget(holder)
            return
        self._set(holder, held)
        limit = self._limit()
        if self._total > limit:
            for each in list(self._held):  # much may have been taken meanwhile
                self._set(each, each.held_bytes)
        while self._total > limit:
            largest = max(self._held, key=self._held.__getitem__)
            self.forget(largest)
            self._on_refused()
            largest.refuse_more(limit)

    def forget(self, holder: Holder) -> None:
        """The socket holds nothing any more."""
        self._total -= self._held.pop(holder, 0)

    def _set(self, holder: Holder, held: int) -> None:
        self._total += held - self._held.get(holder, 0)
        self._held[holder] = held
