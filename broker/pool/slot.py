"""One process as the pool's ledger sees it, whom it is for, and the table of its life.

Pure; times are seconds of a monotonic clock.  Owner: ``broker.pool.slots.Slots``.
"""

from dataclasses import dataclass
from enum import StrEnum

from protocol.codes import MissReason, Start


class SlotState(StrEnum):
    """The life of one process, as the pool sees it."""

    STARTING = "starting"
    WARM = "warm"
    LEASED = "leased"
    STOPPING = "stopping"
    GONE = "gone"


class SlotEvent(StrEnum):
    """What happens to a slot."""

    READY = "ready"
    LEASE = "lease"
    STOP = "stop"
    EXIT = "exit"


S, E = SlotState, SlotEvent
TRANSITIONS: dict[tuple[SlotState, SlotEvent], SlotState] = {
    (S.STARTING, E.READY): S.WARM,
    (S.STARTING, E.STOP): S.STOPPING,
    (S.STARTING, E.EXIT): S.GONE,
    (S.WARM, E.LEASE): S.LEASED,
    (S.WARM, E.STOP): S.STOPPING,
    (S.WARM, E.EXIT): S.GONE,
    (S.LEASED, E.STOP): S.STOPPING,
    (S.LEASED, E.EXIT): S.GONE,
    (S.STOPPING, E.STOP): S.STOPPING,
    (S.STOPPING, E.EXIT): S.GONE,
}


@dataclass(slots=True, eq=False)
class Waiter:
    """Somebody who needs a process of ``profile``.

    ``own_start``: only one started for them will do.  ``miss`` says why then (nobody configured what they want); None
    means a conversation that wants its next process.
    """

    profile: str
    tenant: str
    since: float
    own_start: bool = False
    miss: MissReason | None = None
    slot: "Slot | None" = None
    is_failed: bool = False
    """The process that was started for this waiter alone did not come up."""
    is_refused: bool = False
    """It ended by itself with an error: the conversation cannot be resumed, or its flags are not accepted."""
    words: str = ""
    """What it said then."""

    @property
    def is_restore(self) -> bool:
        """Whether it is a conversation that goes on: it waits whoever else waits."""
        return self.own_start and self.miss is None

    @property
    def is_served(self) -> bool:
        """Whether it has its process."""
        return self.slot is not None


@dataclass(slots=True, eq=False)
class Slot:
    """One process, from the decision to start it until it is gone."""

    id: int
    profile: str
    born_at: float
    ready_at: float = 0.0
    state: SlotState = SlotState.STARTING
    reserved_for: Waiter | None = None
    tenant: str | None = None
    start: Start | None = None
    miss_reason: MissReason | None = None

    def advance(self, event: SlotEvent) -> None:
        """Follow the table; the only place that assigns ``state``."""
        self.state = TRANSITIONS[self.state, event]
