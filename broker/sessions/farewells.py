"""Why the broker ended a client's connection, kept until the client is back to be told.

A close frame waits behind whatever the client has not read, and a connection that is reset brings none.  Pure.  Owner:
one ``broker.sessions.entry.Entry``.  Callers: ``broker.sockets.connection`` notes, ``broker.sessions.opening`` tells.
"""

from collections import OrderedDict

from protocol.codes import LastClose

MAX_INSTANCES = 64
"""Instances of one conversation that are remembered; the oldest goes.  Those without a name count as one."""
_TOLD = frozenset(each.value for each in LastClose)


class Farewells:
    """The last word to each client instance of one conversation."""

    def __init__(self) -> None:
        self._reasons: OrderedDict[str, LastClose] = OrderedDict()

    def note(self, instance: str, reason: str) -> None:
        """A connection of ``instance`` has ended; only what the broker ended for the client's own doing is kept."""
        if reason in _TOLD:
            self._reasons[instance] = LastClose(reason)
            self._reasons.move_to_end(instance)
            if len(self._reasons) > MAX_INSTANCES:
                self._reasons.popitem(last=False)

    def take(self, instance: str) -> LastClose | None:
        """What ``instance`` is to be told, once."""
        return self._reasons.pop(instance, None)
