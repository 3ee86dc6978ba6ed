"""A broker's own state over a run: memory, descriptors, threads, tasks, children, directories; and whether it grows.

``Vitals`` reads /proc and the broker's metrics; the judgement is pure.  Callers: ``bench.chaos``, ``bench.churn``; the
end-to-end tests, for a broker's memory.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import linear_regression
from typing import Any, Final

import anyio

from bench.broker_process import Broker
from bench.clock import now
from broker.processes.orphans import children_of

HOUR_S: Final = 3600.0
WARM_SHARE: Final = 0.25
WARM_MOST_S: Final = 300.0
MEBIBYTE: Final = 2**20


@dataclass(frozen=True)
class Vital:
    """One look at a broker."""

    at: float
    """Seconds of ``bench.clock.now``."""
    generation: int
    """Which broker of the run it was."""
    rss: int
    """Bytes."""
    fds: int
    threads: int
    tasks: int
    children: int
    folders: int
    """Directories of sessions."""


FIGURES: Final = ("rss", "fds", "threads", "tasks", "children", "folders")


async def look(running: Broker, generation: int, sessions: Path) -> Vital:
    """One look.  Raises ``OSError`` when the broker has just ended."""
    return await anyio.to_thread.run_sync(_look, running, generation, sessions)


def _look(running: Broker, generation: int, sessions: Path) -> Vital:
    pid = running.process.pid
    status = status_of(pid)
    fds = len(os.listdir(f"/proc/{pid}/fd"))
    tasks = int(running.metric("broker_tasks"))
    folders = len(os.listdir(sessions)) if sessions.exists() else 0
    rss, threads = int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"])
    return Vital(now(), generation, rss, fds, threads, tasks, len(children_of(pid)), folders)


def status_of(pid: int) -> dict[str, str]:
    """What the kernel tells of a process (proc_pid_status(5)).  Raises ``OSError`` when it is gone."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares: the change of the second value per unit of the first; 0 with fewer than two different moments."""
    if len({x for x, _ in points}) < 2:
        return 0.0
    return linear_regression([x for x, _ in points], [y for _, y in points]).slope


def longest(samples: Sequence[Vital]) -> list[Vital]:
    """The longest life of one broker, without its warm-up: a quarter of it, at most five minutes."""
    lives = [list(life) for _, life in groupby(samples, key=lambda one: one.generation)]
    life = max(lives, key=lambda one: one[-1].at - one[0].at, default=[])
    if not life:
        return []
    warm_s = min(WARM_MOST_S, WARM_SHARE * (life[-1].at - life[0].at))
    return [one for one in life if one.at - life[0].at >= warm_s]


def floors(samples: Sequence[Vital]) -> list[float]:
    """The least memory, in MiB, in each third of the longest life: what logs hold comes and goes, a floor only grows.

    Empty with fewer than three samples.
    """
    life = longest(samples)
    third = len(life) // 3
    parts = [life[:third], life[third : 2 * third], life[2 * third :]] if third else []
    return [min(one.rss for one in part) / MEBIBYTE for part in parts]


def shown(samples: Sequence[Vital]) -> dict[str, Any]:
    """Slopes per hour over the longest life (memory in MiB), and the first and last figures of it."""
    life = longest(samples)
    if not life:
        return {"seconds": 0.0}
    facts: dict[str, Any] = {"seconds": round(life[-1].at - life[0].at, 1), "samples": len(life)}
    for name in FIGURES:
        points = [(one.at / HOUR_S, getattr(one, name) / (MEBIBYTE if name == "rss" else 1)) for one in life]
        first, last = points[0][1], points[-1][1]
        facts[name] = f"{first:.1f} -> {last:.1f}" if name == "rss" else f"{first:g} -> {last:g}"
        facts[f"{name} per hour"] = round(slope(points), 1)
    facts["least rss by thirds"] = ", ".join(f"{floor:.1f}" for floor in floors(samples))
    return facts


def at_rest(samples: Sequence[Vital]) -> dict[str, str]:
    """The figures of a broker at rest, one beside the other; without memory, which only the slope judges."""
    if len({one.generation for one in samples}) > 1:
        return {"not compared": "the broker was killed in between"}
    return {name: " -> ".join(str(getattr(one, name)) for one in samples) for name in FIGURES if name != "rss"}


def raw(samples: Sequence[Vital]) -> list[dict[str, Any]]:
    """For the result file."""
    return [asdict(one) for one in samples]
