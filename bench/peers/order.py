"""In which order what is measured: round by round, and within a round each load's subjects as the seed shuffles them.

So no subject always meets the machine behind the same other one.  Pure.  Caller: ``bench.peers.command``.
"""

import random
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from bench.peers.scenario import Load
from bench.peers.subject import Subject


class Step(NamedTuple):
    """One measurement."""

    round: int
    load: Load
    subject: Subject


def steps(loads: Sequence[Load], subjects: Collection[Subject], rounds: int, seed: int) -> Iterator[Step]:
    """Every load on every subject that it is for and that was chosen, ``rounds`` times."""
    chance = random.Random(seed)
    for number in range(rounds):
        for load in chance.sample(loads, len(loads)):
            chosen = [subject for subject in load.subjects if subject in subjects]
            for subject in chance.sample(chosen, len(chosen)):
                yield Step(number, load, subject)
