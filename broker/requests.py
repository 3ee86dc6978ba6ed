"""Requests of the CLI that wait for a person: permission prompts.

Pure: no I/O; ``now`` is seconds of a monotonic clock.  Owner: one ``broker.session.Session``.  The first answer wins;
an unanswered prompt expires at its deadline and the CLI then gets a valid deny.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from protocol.codes import ErrorCode
from protocol.errors import ClientError

Outcome = Literal["allowed", "denied", "expired", "withdrawn"]
REMEMBERED = 256
"""How many settled ids are kept to tell ``already_answered`` from ``unknown_request``."""
MAX_PENDING = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """One pending ``can_use_tool``: the line as clients got it, and what a deny needs."""

    request_id: str
    line: bytes
    input: bytes
    deadline: float


class PendingRequests:
    """The prompts of one process."""

    def __init__(self) -> None:
        self._pending: dict[str, Prompt] = {}
        self._settled: OrderedDict[str, Outcome] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def lines(self) -> list[bytes]:
        """What a client that attaches now must show, oldest first."""
        return [prompt.line for prompt in self._pending.values()]

    @property
    def next_deadline(self) -> float | None:
        """When the next prompt expires."""
        return min((prompt.deadline for prompt in self._pending.values()), default=None)

    def has_room_for(self, request_id: str) -> bool:
        """Whether the prompt may be added: not known yet, and not too many wait (else the caller denies it)."""
        return request_id not in self._pending and len(self._pending) < MAX_PENDING

    def add(self, prompt: Prompt) -> None:
        """Take a prompt in."""
        self._pending[prompt.request_id] = prompt

    def find(self, request_id: str) -> Prompt:
        """The pending prompt; raises ``ClientError``: ``already_answered`` or ``unknown_request``."""
        prompt = self._pending.get(request_id)
        if prompt is not None:
            return prompt
        if request_id in self._settled:
            raise ClientError(ErrorCode.ALREADY_ANSWERED, f"settled: {self._settled[request_id]}", ref=request_id)
        raise ClientError(ErrorCode.UNKNOWN_REQUEST, "no such request is pending", ref=request_id)

    def settle(self, request_id: str, outcome: Outcome) -> Prompt | None:
        """Close a prompt; None when it was not pending."""
        prompt = self._pending.pop(request_id, None)
        if prompt is not None:
            self._settled[request_id] = outcome
            while len(self._settled) > REMEMBERED:
                self._settled.popitem(last=False)
        return prompt

    def expired(self, now: float) -> list[Prompt]:
        """The prompts whose deadline has passed; still pending until they are settled."""
        return [prompt for prompt in self._pending.values() if prompt.deadline <= now]

    def withdraw_all(self) -> list[Prompt]:
        """Close every prompt: the process is gone, or its turn has ended."""
        prompts = list(self._pending.values())
        for prompt in prompts:
            self.settle(prompt.request_id, "withdrawn")
        return prompts
