"""The loads, one row each: who does what how often, and on which subjects.  Pure.

Caller: ``bench.peers.command``.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from bench.peers.job import Job, Kind, Target
from bench.peers.subject import Subject, say

LINE_BYTES: Final = "250-350"
LINES_MORE: Final = 5.0
"""Seconds for which lines go on behind the window: it is closed by the receiver, not by their end."""
FIRST: Final = "Hello [[sim tokens=3]]"
SPREAD_RATE: Final = 2000.0
LATENCY_RATE: Final = 200.0
TYPICAL: Final = (Subject.DIRECT, Subject.WEBSOCKETD, Subject.PLAIN, Subject.BROKER)
SERVERS: Final = (Subject.WEBSOCKETD, Subject.PLAIN, Subject.BROKER)
BROKER: Final = (Subject.BROKER,)


class Scenario(StrEnum):
    """What can be asked for with ``--scenario``."""

    BURST = "burst"
    PACED = "paced"
    LATENCY = "latency"
    CONNECT = "connect"
    MEMORY = "memory"
    SPREAD = "spread"
    HANDSHAKES = "handshakes"


@dataclass(frozen=True)
class Sizes:
    """How large everything is; each is a flag."""

    lines: int
    sessions: int
    rate: float
    seconds: float
    connects: int
    held: int
    sockets: int
    spread: tuple[int, ...]
    handshakes: int
    settle: float


FULL: Final = Sizes(lines=200_000, sessions=100, rate=100.0, seconds=5.0, connects=20, held=50, sockets=1000,
                    spread=(10, 100, 500, 1000), handshakes=3000, settle=1.0)  # fmt: skip
QUICK: Final = replace(FULL, lines=20_000, sessions=10, seconds=1.0, connects=5, held=5, sockets=100, spread=(10, 20),
                       handshakes=200, settle=0.3)  # fmt: skip


@dataclass(frozen=True)
class Load:
    """One row: a job for each of ``subjects``."""

    scenario: Scenario
    name: str
    """Its key in figures and ratios."""
    title: str
    kind: Kind
    subjects: tuple[Subject, ...]
    text: str
    """What each session says; empty: nothing, and no process stands behind it."""
    sessions: int
    rate: float = 0.0

    @property
    def processes(self) -> int:
        """How many CLIs it takes."""
        if not self.text:
            return 0
        return self.sessions + (1 if self.kind is Kind.MEMORY else 0)

    def job(self, subject: Subject, target: Target, sizes: Sizes) -> Job:
        """For the receiver.  The deadlines are generous: they end what hangs, and judge nothing."""
        window_s = sizes.seconds if self.kind is Kind.PACED else 0.0
        return Job(
            self.kind, target, say(subject, self.text), sessions=self.sessions, rate=self.rate, settle_s=sizes.settle,
            warm_up=say(subject, FIRST) if self.kind is Kind.BURST else "",
            at_once=16 if self.kind is Kind.HANDSHAKES else 4, window_s=window_s,
            deadline_s=120.0 + window_s + 0.5 * self.sessions,
        )  # fmt: skip


def loads(sizes: Sizes, chosen: Collection[Scenario]) -> list[Load]:
    """The rows of the chosen scenarios."""
    return [load for load in _all(sizes) if load.scenario in chosen]


def _all(sizes: Sizes) -> Iterator[Load]:
    yield Load(Scenario.BURST, "burst", f"one session, {sizes.lines} lines", Kind.BURST, TYPICAL,
               f"[[sim pour={sizes.lines}:{LINE_BYTES} tokens=1]]", 1)  # fmt: skip
    yield _paced(Scenario.PACED, "paced", (*TYPICAL, Subject.LIMIT), sizes, sizes.sessions, sizes.rate)
    yield _paced(Scenario.LATENCY, "latency", TYPICAL, sizes, 1, LATENCY_RATE)
    yield Load(Scenario.CONNECT, "connect", f"{sizes.connects}, one after another", Kind.CONNECT, TYPICAL, FIRST,
               sizes.connects)  # fmt: skip
    yield Load(Scenario.MEMORY, "memory", f"{sizes.held} connections after a turn each", Kind.MEMORY, SERVERS, FIRST,
               sizes.held)  # fmt: skip
    yield Load(Scenario.MEMORY, "idle", f"{sizes.sockets} attached sockets without a process", Kind.MEMORY, BROKER, "",
               sizes.sockets)  # fmt: skip
    for sessions in sizes.spread:
        yield _paced(Scenario.SPREAD, f"spread_{sessions}", BROKER, sizes, sessions, SPREAD_RATE / sessions)
    yield Load(Scenario.HANDSHAKES, "handshakes", "accepted, authenticated, attached lazily", Kind.HANDSHAKES, BROKER,
               "", sizes.handshakes)  # fmt: skip


def _paced(
    scenario: Scenario, name: str, subjects: tuple[Subject, ...], sizes: Sizes, sessions: int, rate: float
) -> Load:
    # Those that begin first wait for the last: 0.1 s of each session is time enough for its start.
    seconds = sizes.settle + sizes.seconds + LINES_MORE + 0.1 * sessions
    text = f"[[sim pour={max(1, round(seconds * rate))}:{LINE_BYTES}:{rate:.6g} tokens=1]]"
    return Load(scenario, name, f"{sessions} x {rate:g} frames/s", Kind.PACED, subjects, text, sessions, rate)
