"""What all sockets together hold of messages that have not come to their end, or that nobody has taken.

Pure.  Owner: ``broker.sockets.server``.  Callers: ``broker.sockets.tenant_socket``, whenever a socket has taken more
bytes, and the watch over stalled sockets.  Each message is bounded by ``server.max_message_bytes``; that bounds nothing
where a thousand sockets are amidst one.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Protocol

from protocol.codes import Limit

NOTED_BYTES = 65536
"""A socket that holds less is not worth a look, and is no danger: its number is bounded elsewhere."""


class Holder(Protocol):
    """A socket."""

    @property
    def payer(self) -> Hashable:
        """Whose it is: a tenant, or, before that is known, an address."""

    @property
    def held_bytes(self) -> int:
        """Bytes of messages that nobody has taken."""

    @property
    def progress(self) -> Hashable:
        """Another value after each part of a message that has come; None when it is not the peer who is waited for."""

    def refuse_more(self, reason: str) -> None:
        """End it, and let go of what it holds."""


class Inbound:
    """The sum over all sockets that hold much.  ``limit`` (bytes) and ``on_refused`` are the server's."""

    def __init__(self, limit: Callable[[], int], on_refused: Callable[[Limit], None]) -> None:
        self._limit = limit
        self._on_refused = on_refused
        self._held: dict[Holder, int] = {}
        self._total = 0
        self._marks: dict[Holder, tuple[Hashable, float]] = {}
        """The last progress that was seen, and when."""

    def note(self, holder: Holder) -> None:
        """The socket holds other bytes than before.  Above the limit whoever holds most, on all sockets of a tenant (or
        address), loses the largest of them: one tenant cannot have the others refused."""
        self._count(holder)
        limit = self._limit()
        if self._total > limit:
            for each in list(self._held):  # much may have been taken meanwhile
                self._count(each)
        while self._total > limit:
            self._refuse(self._largest(), Limit.MAX_INBOUND_BYTES, limit)

    def end_stalled(self, now: float, deadline_s: float) -> None:
        """End the sockets that hold much of a message of which nothing has come for ``deadline_s``."""
        for holder in list(self._held):
            self._count(holder)
            mark = holder.progress if holder in self._held else None
            last, since = self._marks.get(holder, (None, now))
            if mark is None:
                self._marks.pop(holder, None)
            elif mark != last:
                self._marks[holder] = (mark, now)
            elif now - since >= deadline_s:
                self._refuse(holder, Limit.SEND_DEADLINE_S, deadline_s)

    def forget(self, holder: Holder) -> None:
        """The socket holds nothing any more."""
        self._total -= self._held.pop(holder, 0)
        self._marks.pop(holder, None)

    def _count(self, holder: Holder) -> None:
        held = holder.held_bytes
        if held < NOTED_BYTES:
            self.forget(holder)
        else:
            self._total += held - self._held.get(holder, 0)
            self._held[holder] = held

    def _largest(self) -> Holder:
        sums: Counter[Hashable] = Counter()
        for holder, held in self._held.items():
            sums[holder.payer] += held
        payer = max(sums, key=sums.__getitem__)
        return max((holder for holder in self._held if holder.payer == payer), key=self._held.__getitem__)

    def _refuse(self, holder: Holder, limit: Limit, value: float) -> None:
        self.forget(holder)
        self._on_refused(limit)
        holder.refuse_more(f"server.{limit.value} = {value}")
