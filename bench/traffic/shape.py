"""The shape of a load, closed or open, and one load of that shape.

Callers: ``run``, ``sweep``, ``ramp``, ``soak``.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio

from bench.report import Subject
from bench.traffic.meter import Meter
from bench.traffic.plan import Plan
from bench.traffic.progress import Progress
from bench.traffic.script import Script
from bench.traffic.session import Talker, closed, opened

TIMELINE = 600
"""Lines that a timeline of known length has at most."""


@dataclass(frozen=True)
class Closed:
    """So many sessions, all arrived after ``ramp_s``; each says its next message when it has its answer."""

    sessions: int
    ramp_s: float
    turns: int | None
    """Messages of each; None: as many as there is time for."""
    duration_s: float | None


@dataclass(frozen=True)
class Open:
    """Sessions that arrive by a plan."""

    plan: Plan
    turns: int
    most: int


Shape = Closed | Open


@dataclass(frozen=True)
class Timing:
    """Seconds around a load."""

    warmup_s: float = 0.0
    grace_s: float = 30.0
    progress_s: float = 5.0


def total_s(shape: Shape, timing: Timing) -> float | None:
    """How long it is meant to take; None when the answers decide."""
    duration_s = shape.plan.seconds if isinstance(shape, Open) else shape.duration_s
    return None if duration_s is None else duration_s + (timing.warmup_s if isinstance(shape, Closed) else 0.0)


def with_warmup(plan: Plan, warmup_s: float) -> Plan:
    """The plan with so much time more at its (constant) rate."""
    return Plan(plan.first, plan.last, plan.seconds + warmup_s, plan.arrival)


def meter_of(subject: Subject, shape: Shape, timing: Timing, lines: int = TIMELINE) -> Meter:
    """A meter whose timeline has about so many lines, none of less than a second."""
    total = total_s(shape, timing)
    meter = Meter(subject, 1.0 if total is None else max(1.0, total / lines), timing.warmup_s)
    if isinstance(shape, Open):
        meter.rate = shape.plan.rate
    return meter


async def load(
    url: str, script: Script, shape: Shape, timing: Timing, seed: int, meter: Meter, title: str = "",
    beside: Callable[[], Any] | None = None,
) -> None:  # fmt: skip
    """One load to its end, or until ``timing.grace_s`` after it; what is then still under way is counted as not ended.

    ``beside`` runs as long as the load.  A cancel leaves what was measured in the meter and its facts in the subject.
    """
    talker = Talker(url, script, meter)
    total = total_s(shape, timing)

    async def drive() -> None:
        with anyio.move_on_after(float("inf") if total is None else total + timing.grace_s):
            match shape:
                case Closed():
                    chance = random.Random(seed)
                    delays = [chance.uniform(0.0, shape.ramp_s) for _ in range(shape.sessions)]
                    await closed(talker, meter, delays, shape.turns, shape.duration_s)
                case Open():
                    await opened(talker, meter, shape.plan, seed, shape.turns, shape.most)

    progress = Progress(meter, total, timing.progress_s, title)
    await meter.run(drive, progress.watch, *([beside] if beside is not None else []))
