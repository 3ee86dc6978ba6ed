"""What a run may find: the alphabet of violations and their list.  Pure.

Callers: ``bench.chaos.checker``, ``bench.chaos.join``, ``bench.chaos.world``.
"""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MOST_KEPT: Final = 50


class Kind(StrEnum):
    """What a violation is."""

    GAP = "gap"
    """A seq was left out, and nobody said so."""
    REPEAT = "repeat"
    """A seq came twice, or one from before came again."""
    EPOCH = "epoch"
    """The log changed, or went on, otherwise than was told, or without a restart of the broker."""
    FOREIGN = "foreign"
    """A tenant was sent another one's canary."""
    NO_TERMINAL = "no_terminal"
    """An accepted message never ended."""
    TWO_TERMINALS = "two_terminals"
    RAN_TWICE = "ran_twice"
    """A CLI read the same message twice."""
    NEVER_RAN = "never_ran"
    """A message that ended as completed, or was told to have had an effect, never reached a CLI."""
    RAN_ALL_THE_SAME = "ran_all_the_same"
    """A message that was told never to have been written reached a CLI."""
    ALTERED = "altered"
    """A frame that is no line of the conversation's CLIs, or not in their order."""
    SWALLOWED = "swallowed"
    """A line of a CLI between two that were sent, in the same log, was sent to nobody."""
    FALSE_TIMEOUT = "false_timeout"
    """A turn failed for silence that was none."""
    REFUSED = "refused"
    """The broker refused what it should have taken."""
    DROPPED = "dropped"
    """A connection ended though nothing was done to it."""
    HUNG = "hung"
    """A message had not ended by its deadline."""
    LEFTOVER = "leftover"
    """A process or a file was there after the broker had ended."""
    LOGGED = "logged"
    """The broker's log holds a traceback, an event that means a bug, or what a tenant said."""
    DRIFT = "drift"
    """Memory, descriptors, threads, tasks or latency grew over the run (only with ``--flat``)."""


@dataclass(frozen=True)
class Violation:
    """One, with what is needed to look for it."""

    kind: Kind
    who: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind.value} ({self.who}): {self.detail}"


class Violations:
    """All of a run: every one is counted, the first ``MOST_KEPT`` are kept."""

    def __init__(self) -> None:
        self.counts: Counter[Kind] = Counter()
        self.kept: list[Violation] = []

    def add(self, kind: Kind, who: str, detail: str) -> None:
        """One more."""
        self.counts[kind] += 1
        if len(self.kept) < MOST_KEPT:
            self.kept.append(Violation(kind, who, detail))
