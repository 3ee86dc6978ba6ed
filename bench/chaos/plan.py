"""What happens in a run, from its seed: the messages of each tenant and what is done to them, and to the broker.  Pure.

The same seed gives the same plan; how far a run gets in it depends on the machine.  Callers: ``bench.chaos.traveller``,
``bench.chaos.world``, ``bench.chaos.command``.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from itertools import islice
from typing import Final

from bench.faults import At, How, Lane

STALL_S: Final = 4.0
"""Longer than the broker of a run waits for progress (``bench.chaos.world``)."""
HEAD_BYTES: Final = 140
"""About how much the server sends before welcome."""
FAR_BYTES: Final = 20_000
HUGE_BYTES: Final = 7_000_000
"""More than the kernel's buffers take for a client that does not read, and less than a log holds."""
PLAIN: Final = Lane()


class Trouble(StrEnum):
    """What is done to one message."""

    NONE = "none"
    CUT = "cut"
    """Connections end at a chosen byte, some of them more than once."""
    HOLE = "hole"
    """A connection falls silent; the client gives it up."""
    SLOW = "slow"
    """A narrow, late or sliced connection."""
    STALL = "stall"
    """The client stops reading and goes on too late, or in time."""
    INTERRUPT = "interrupt"
    DIE = "die"
    """The CLI kills itself in mid-stream."""
    QUEUE = "queue"
    """A second message is sent behind it."""
    LEAVE = "leave"
    """The client goes away in mid-turn, and comes back when the turn has long ended."""


WEIGHTS: Final = {
    Trouble.NONE: 40, Trouble.CUT: 22, Trouble.HOLE: 3, Trouble.SLOW: 8, Trouble.STALL: 4, Trouble.INTERRUPT: 8,
    Trouble.DIE: 6, Trouble.QUEUE: 6, Trouble.LEAVE: 3,
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One message of a tenant."""

    trouble: Trouble
    think_s: float
    tokens: int
    itl_ms: float
    cuts: tuple[At, ...] = ()
    """How the connections of this step end, one after another; then come sound ones."""
    down: Lane = PLAIN
    up: Lane = PLAIN
    after: int = 0
    """Frames of the turn before the interrupt, the death, the stall or the leaving."""
    pause_s: float = 0.0
    """How long a stalled client does not read, and one that left stays away."""

    @property
    def is_huge(self) -> bool:
        """Its answer holds a line that is longer than the log: who reads it slowly is cut, and told what is lost."""
        return self.trouble is Trouble.STALL and self.pause_s >= STALL_S

    def text(self, canary: str) -> str:
        """The message; ``canary`` is its first word, and so a part of every token of its answer."""
        fault = f" die_after={self.after}" if self.trouble is Trouble.DIE else ""
        if self.is_huge:
            fault = f" huge_line={HUGE_BYTES}"
        return f"{canary} says [[sim tokens={self.tokens} itl_ms={self.itl_ms:g}{fault}]]"


class Deed(StrEnum):
    """What is done to the broker."""

    KILL_CLI = "kill_cli"
    """SIGKILL to one of its CLIs."""
    RESTART = "restart"
    """SIGKILL to the broker, and a new one in its place."""
    RELOAD = "reload"
    """SIGHUP, with a changed configuration."""


@dataclass(frozen=True)
class Event:
    """One deed, seconds after the beginning; ``choice`` (0 to 1) picks its victim."""

    at_s: float
    deed: Deed
    choice: float


def canary(seed: int, number: int) -> str:
    """A word that only this tenant says: ten letters."""
    digest = sha256(f"canary {seed} {number}".encode()).digest()
    return "zq" + "".join(chr(ord("a") + byte % 26) for byte in digest[:8])


def steps(seed: int, tenant: int) -> Iterator[Step]:
    """The messages of a tenant, without end."""
    chance = random.Random(f"{seed} tenant {tenant}")
    while True:
        yield _step(chance)


def events(seed: int, seconds: float, every: dict[Deed, float]) -> list[Event]:
    """The deeds of a run in order; ``every``: seconds from one to the next of its kind, 0 for none at all."""
    found = []
    for deed, period in every.items():
        chance = random.Random(f"{seed} {deed.value}")
        at_s = period * chance.uniform(0.5, 1.0)
        while period and at_s < seconds:
            found.append(Event(at_s, deed, chance.random()))
            at_s += period * chance.uniform(0.8, 1.2)
    return sorted(found, key=lambda event: event.at_s)


def fingerprint(seed: int, tenants: int, timeline: list[Event]) -> str:
    """Twelve digits that two runs share when their plans are the same."""
    told = [repr(step) for tenant in range(tenants) for step in islice(steps(seed, tenant), 50)]
    return sha256("\n".join([*told, *map(repr, timeline)]).encode()).hexdigest()[:12]


def _step(chance: random.Random) -> Step:
    trouble = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    think_s, itl_ms = chance.uniform(0.0, 2.0), chance.choice([0.0, 5.0, 10.0, 20.0])
    tokens = chance.randint(3, 60)
    match trouble:
        case Trouble.NONE:
            return Step(trouble, think_s, tokens, itl_ms)
        case Trouble.CUT:
            cuts = tuple(_cut(chance) for _ in range(chance.choice([1, 1, 1, 2, 3, 5])))
            return Step(trouble, think_s, tokens, itl_ms, cuts)
        case Trouble.HOLE:
            hole = At(down=chance.randint(HEAD_BYTES, FAR_BYTES // 2), how=How.HOLE)
            return Step(trouble, think_s, tokens, itl_ms, (chance.choice([hole, At(up=300, how=How.HOLE)]),))
        case Trouble.SLOW:
            return Step(trouble, think_s, tokens, itl_ms, down=_lane(chance), up=_lane(chance))
        case Trouble.STALL | Trouble.LEAVE:
            pause_s = chance.choice([0.2, 1.0, STALL_S])
            return Step(trouble, think_s, tokens, itl_ms, after=chance.randint(1, 20), pause_s=pause_s)
        case Trouble.INTERRUPT | Trouble.DIE | Trouble.QUEUE:
            return Step(trouble, think_s, tokens, itl_ms, after=chance.randint(0, 30))


def _cut(chance: random.Random) -> At:
    """In the upgrade, in welcome, in a frame's header, in the replay, far behind; or on the way up."""
    how = How.CLOSE if chance.random() < 0.2 else How.RESET
    match chance.choices(("head", "header", "up", "near", "far"), (1, 2, 1, 3, 3))[0]:
        case "head":
            return At(down=chance.randint(1, HEAD_BYTES), how=how)
        case "header":
            return At(frame=chance.randrange(40), bytes=chance.randint(1, 3), how=how)
        case "up":
            return At(up=chance.randint(1, 700), how=how)
        case "near":
            return At(down=chance.randint(HEAD_BYTES, 5000), how=how)
        case _:
            return At(down=chance.randint(5000, FAR_BYTES), how=how)


def _lane(chance: random.Random) -> Lane:
    return Lane(
        latency_s=chance.choice([0.0, 0.02, 0.1]),
        jitter_s=chance.choice([0.0, 0.05]),
        bytes_per_s=chance.choice([None, None, 20_000.0, 100_000.0]),
        slice_bytes=chance.choice([None, None, 7, 200]),
        close_after_s=chance.choice([0.0, 0.3]),
    )
