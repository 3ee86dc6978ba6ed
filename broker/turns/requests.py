"""Requests of the CLI that wait for a client: permission prompts, elicitations, hooks, messages for MCP servers.

Pure: no I/O; ``now`` is seconds of a monotonic clock.  Owner: one ``broker.sessions.questions.Questions``.  The first
answer wins; what nobody answers expires at its deadline and is then answered by the broker.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from protocol.codes import ErrorCode
from protocol.errors import ClientError

Outcome = Literal["allowed", "denied", "expired", "withdrawn"]
Kind = Literal["can_use_tool", "elicitation", "hook_callback", "mcp_message"]
REMEMBERED = 256
"""How many settled ids are kept to tell ``already_answered`` from ``unknown_request``."""
MAX_PENDING = 64
"""Requests that may wait at once in one session; one more is answered by the broker."""

OwnerT = TypeVar("OwnerT")


@dataclass(frozen=True, slots=True)
class Pending(Generic[OwnerT]):
    """One request: the line as its readers got it, and what the broker's own answer to it needs.

    ``owner``: the only one who sees it and may answer it; None: every controller.  ``detail``: a prompt's input, a
    JSON-RPC message's id (both as JSON), or the event of a hook.
    """

    request_id: str
    line: bytes
    detail: bytes
    deadline: float
    kind: Kind = "can_use_tool"
    owner: OwnerT | None = None
    is_of_turn: bool = False
    """Whether it is void once the turn's ``result`` is there: not what a background agent or an MCP server asks."""


class PendingRequests(Generic[OwnerT]):
    """The open requests of one process."""

    def __init__(self) -> None:
        self._pending: dict[str, Pending[OwnerT]] = {}
        self._settled: OrderedDict[str, Outcome] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def all(self) -> list[Pending[OwnerT]]:
        """What waits, oldest first."""
        return list(self._pending.values())

    @property
    def next_deadline(self) -> float | None:
        """When the next one expires."""
        return min((pending.deadline for pending in self._pending.values()), default=None)

    def has_room_for(self, request_id: str) -> bool:
        """Whether it may be added: not known yet, and not too many wait (else the caller answers it)."""
        return request_id not in self._pending and len(self._pending) < MAX_PENDING

    def add(self, pending: Pending[OwnerT]) -> None:
        """Take one in."""
        self._pending[pending.request_id] = pending

    def get(self, request_id: str) -> Pending[OwnerT] | None:
        """The pending one of that id, None when there is none."""
        return self._pending.get(request_id)

    def find(self, request_id: str) -> Pending[OwnerT]:
        """The same; raises ``ClientError``: ``already_answered`` or ``unknown_request``."""
        pending = self._pending.get(request_id)
        if pending is not None:
            return pending
        if request_id in self._settled:
            raise ClientError(ErrorCode.ALREADY_ANSWERED, f"settled: {self._settled[request_id]}", ref=request_id)
        raise unknown(request_id)

    def settle(self, request_id: str, outcome: Outcome) -> Pending[OwnerT] | None:
        """Close one; None when it was not pending."""
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            self._settled[request_id] = outcome
            while len(self._settled) > REMEMBERED:
                self._settled.popitem(last=False)
        return pending

    def expired(self, now: float) -> list[Pending[OwnerT]]:
        """Those whose deadline has passed; still pending until they are settled."""
        return [pending for pending in self._pending.values() if pending.deadline <= now]

    def withdraw(self, *, with_turn_only: bool) -> list[Pending[OwnerT]]:
        """Close all of them (the process is gone), or those that end with a turn."""
        gone = [pending for pending in self._pending.values() if pending.is_of_turn or not with_turn_only]
        for pending in gone:
            self.settle(pending.request_id, "withdrawn")
        return gone


def unknown(request_id: str) -> ClientError:
    """What is told to somebody who answers what was never asked, or never asked of him."""
    return ClientError(ErrorCode.UNKNOWN_REQUEST, "no such request is pending", ref=request_id)
