"""The clock of an ending: until when turns may run, processes may take their leave, sockets may close.

Pure; times are seconds of a monotonic clock.  Owner: ``broker.app``, which makes one at the first signal and
another one, without time for turns, at the second.
"""

from dataclasses import dataclass

KILL_AFTER_S = 0.75
CUT_AFTER_S = 1.25
GIVE_UP_AFTER_S = 2.5
"""After the turns' deadline, in this order: what ignores its stop ladder is killed, sockets that did not close are
aborted, and a broker that hangs all the same ends as it is.  The promise to operators is three seconds; what is left of
them is for the kernel, which takes the process apart."""


@dataclass(frozen=True, slots=True)
class Drain:
    """One ending.  ``turns_s``: how long running turns may go on, ``stop.drain_timeout_s``."""

    began: float
    turns_s: float

    @property
    def kills_at(self) -> float:
        """When every process that still lives is killed: the graces of the stop ladder never add to the bound."""
        return self.began + self.turns_s + KILL_AFTER_S

    @property
    def cuts_at(self) -> float:
        """When sockets that have not closed are aborted."""
        return self.began + self.turns_s + CUT_AFTER_S

    @property
    def gives_up_at(self) -> float:
        """When the program ends, whatever it waits for."""
        return self.began + self.turns_s + GIVE_UP_AFTER_S
