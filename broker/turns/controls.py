"""Control requests in flight: the broker's own ids, who asked, and replies kept for a client that reconnects.

Pure: no I/O; ``now`` is seconds of a monotonic clock.  Owner: one ``broker.sessions.exchange.Exchange``.  What a
request said may be secret and large: it is forgotten with the reply.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

from protocol.controls import Control, Initialize

MAX_IN_FLIGHT = 8
DEADLINE_S = 60.0
KEPT_S = 60.0
MAX_KEPT = 256
MAX_KEPT_BYTES = 1024 * 1024
"""Of all replies that are kept; the latest is kept whatever its size."""


@dataclass(slots=True)
class Asked:
    """One control request of a client, from its frame to its reply."""

    asker: object
    instance: str
    request_id: str
    control: Control | None
    """None once it is replied to."""
    deadline: float
    is_superseded: bool = False
    """The CLI has been told something else since: its answer is no news any more."""
    reply: bytes | None = None
    replied_at: float = 0.0


class Controls:
    """``ask`` gives the id under which the CLI is asked; ``answered`` finds the client's request again."""

    def __init__(self) -> None:
        self._by_cli_id: dict[str, Asked] = {}
        self._by_client: OrderedDict[tuple[str, str], Asked] = OrderedDict()
        self._next = 1

    def repeat(self, instance: str, request_id: str, now: float) -> Asked | None:
        """The same request of the same client instance, in flight or replied to less than 60 s ago."""
        known = self._by_client.get((instance, request_id))
        if known is None or (known.reply is not None and now - known.replied_at > KEPT_S):
            return None
        return known

    def ask(
        self, asker: object, instance: str, request_id: str, control: Control, now: float
    ) -> tuple[str, Asked] | None:
        """Register a request; None when ``MAX_IN_FLIGHT`` are open."""
        if len(self._by_cli_id) >= MAX_IN_FLIGHT:
            return None
        cli_id = f"client-{self._next}"
        self._next += 1
        asked = Asked(asker, instance, request_id, control, now + DEADLINE_S)
        self._by_cli_id[cli_id] = asked
        self._remember(asked)
        return cli_id, asked

    def settled(self, instance: str, request_id: str, reply: bytes, now: float) -> None:
        """Remember a request that needed no CLI, so that its repeat gets the same reply."""
        asked = Asked(None, instance, request_id, None, now)
        self._remember(asked)
        self.replied(asked, reply, now)

    def replied(self, asked: Asked, reply: bytes, now: float) -> None:
        """Keep the reply for a repeat, and nothing of what was asked."""
        asked.reply, asked.replied_at, asked.asker = reply, now, None
        if all(asked is not known for known in self._by_cli_id.values()):
            asked.control = None
        self._purge(now)
        kept = [(key, known.reply) for key, known in self._by_client.items() if known.reply and known is not asked]
        size = len(reply) + sum(len(old) for _, old in kept)
        for key, old in kept:
            if size <= MAX_KEPT_BYTES:
                break
            del self._by_client[key]
            size -= len(old)

    def _remember(self, asked: Asked) -> None:
        self._by_client.pop((asked.instance, asked.request_id), None)
        self._by_client[asked.instance, asked.request_id] = asked
        while len(self._by_client) > MAX_KEPT:
            self._by_client.popitem(last=False)

    def _purge(self, now: float) -> None:
        """Forget the replies that nobody may ask for any more."""
        for key, known in list(self._by_client.items()):
            if known.reply is not None and now - known.replied_at > KEPT_S:
                del self._by_client[key]

    def answered(self, cli_id: str) -> Asked | None:
        """The request that the CLI answered, or None when it is not (or no more) one of ours."""
        return self._by_cli_id.pop(cli_id, None)

    def is_open(self, cli_id: str) -> bool:
        """Whether the request still waits for its reply: it has not expired."""
        return cli_id in self._by_cli_id

    def is_any_of(self, *kinds: type[Control]) -> bool:
        """Whether a request of one of these kinds is in flight."""
        return any(isinstance(asked.control, kinds) for asked in self._by_cli_id.values())

    def supersede(self, *kinds: type[Control]) -> None:
        """What requests of these kinds change is changed again behind them."""
        for asked in self._by_cli_id.values():
            asked.is_superseded = asked.is_superseded or isinstance(asked.control, kinds)

    def expired(self, now: float) -> list[Asked]:
        """The requests whose deadline has passed, each once; they are taken out.

        An ``initialize`` stays in flight, without a deadline: the CLI takes it once, so that a late answer counts.
        """
        self._purge(now)
        late = {cli_id: asked for cli_id, asked in self._by_cli_id.items() if asked.deadline <= now}
        for cli_id, asked in late.items():
            if isinstance(asked.control, Initialize):
                asked.deadline = math.inf
            else:
                del self._by_cli_id[cli_id]
        return list(late.values())

    def drop_all(self) -> list[Asked]:
        """Take out everything in flight: the process is gone."""
        asked = list(self._by_cli_id.values())
        self._by_cli_id.clear()
        return asked

    @property
    def next_deadline(self) -> float | None:
        """When the next request expires."""
        return min((asked.deadline for asked in self._by_cli_id.values() if asked.deadline < math.inf), default=None)
