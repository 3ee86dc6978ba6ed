"""What the sessions of one load saw: series, counts, intervals, and the generator's own health.

Owner: the command that measures.  Callers: ``bench.traffic.session`` counts, ``bench.traffic.progress`` looks.
"""

from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import anyio

from bench.clock import now
from bench.load import GENERATOR_LAG, Load
from bench.report import Subject
from bench.samples import Samples
from bench.tenant import TenantFailed, Turn
from bench.traffic.health import Effort, Health

TITLES: Final = {
    "connect": "TCP and upgrade",
    "queue": "hello -> bound, as the broker told",
    "welcome": "hello -> welcome",
    "ttft": "message was due -> first delta",
    "ttft_service": "message sent -> first delta",
    "server_ttft": "the same, as the broker told",
    "server_overhead": "the broker's own share of it",
    "gap": "delta -> next delta",
    "worst_gap": "the longest of each turn",
    "turn": "message sent -> turn completed",
    "slip": "was due -> begun",
    GENERATOR_LAG: "lag of this program's own loop",
}
REASONS: Final = 50
"""Different reasons that are counted apart; the others are one."""
LONGEST: Final = 60
"""Letters of a reason: it may be a word of somebody else's server."""
INTERVALS: Final = 3600
"""In a result; a run of unknown length that has more keeps the first."""
ROLLING: Final = 1000
"""Turns over which the live figures are."""


class Meter:
    """``interval_s``: how often a line is added to the timeline.  ``warmup_s``: what was due before is not counted."""

    def __init__(
        self, subject: Subject, interval_s: float = 1.0, warmup_s: float = 0.0, titles: Mapping[str, str] = TITLES
    ) -> None:
        self.subject = subject
        self.load = Load(subject, titles)
        self.series = subject.series
        self.failures: Counter[str] = Counter()
        self.began_at = now()
        self.counts_from = self.began_at + warmup_s
        self.interval_s = interval_s
        self.open = 0
        self.turns = 0
        self.busy = 0
        """Turns under way."""
        self.waited = 0
        """Arrivals that found every place taken."""
        self.arrived = 0
        self.rate: Callable[[float], float] | None = None
        """The plan's rate at a moment of the run, when there is a plan."""
        self.lateness = Samples()
        self.recent: deque[float] = deque(maxlen=ROLLING)
        self._deltas = 0
        self._effort = Effort()
        self._ended_at: float | None = None
        self._interval = Samples()
        self._before = (0, 0)

    # -- what sessions tell --------------------------------------------------------------------------------------------

    def counts(self, due: float) -> bool:
        """Whether what was due then is counted: the warm-up is not."""
        return due >= self.counts_from

    def add(self, name: str, due: float, value: float) -> None:
        """A sample of something that was due at a moment of ``bench.clock.now``."""
        if self.counts(due):
            self.series[name].add(value)

    def turn(self, due: float, turn: Turn) -> None:
        """A turn that is complete."""
        if not self.counts(due):
            return
        assert turn.ended_at is not None
        self.turns += 1
        self._deltas += turn.deltas
        series = self.series
        series["turn"].add(turn.ended_at - turn.sent_at)
        if turn.first_delta_at is not None:
            ttft = turn.first_delta_at - due
            series["ttft"].add(ttft)
            series["ttft_service"].add(turn.first_delta_at - turn.sent_at)
            self.recent.append(ttft)
            self._interval.add(ttft)
        if turn.server_ttft is not None:
            series["server_ttft"].add(turn.server_ttft)
        if turn.server_overhead is not None:
            series["server_overhead"].add(turn.server_overhead)
        if turn.gaps:
            series["gap"].extend(turn.gaps)
            series["worst_gap"].add(max(turn.gaps))

    def failed(self, error: TenantFailed | OSError) -> None:
        """A session gave up.  Failures count in the warm-up too: they take load away."""
        reason = "".join(letter if letter.isprintable() else "?" for letter in reason_of(error)[:LONGEST])
        self.failures[reason if reason in self.failures or len(self.failures) < REASONS else "other"] += 1

    @contextmanager
    def present(self) -> Iterator[None]:
        """A session that is open."""
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    @contextmanager
    def underway(self) -> Iterator[None]:
        """A turn under way; one that is cancelled stays counted as such."""
        self.busy += 1
        try:
            yield
        except (TenantFailed, OSError):
            self.busy -= 1
            raise
        else:
            self.busy -= 1

    # -- the run -------------------------------------------------------------------------------------------------------

    async def run(self, driver: Callable[[], Coroutine[Any, Any, None]], *beside: Callable[[], Any]) -> None:
        """``driver`` to its end, with the timeline and what runs beside it; the facts are written in any case."""
        self.restart()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._timeline)
                for watch in beside:
                    group.start_soon(watch)
                await self.load.run([driver])
                group.cancel_scope.cancel()
        finally:
            self._ended_at = now()
            self.conclude()

    def restart(self) -> None:
        """The clock begins now."""
        warmup_s = self.counts_from - self.began_at
        self.began_at = now()
        self.counts_from = self.began_at + warmup_s
        self._effort = Effort()

    async def _timeline(self) -> None:
        due = self.began_at
        while len(self.subject.intervals) < INTERVALS:
            due += self.interval_s
            await anyio.sleep(max(0.0, due - now()))
            self.cut()

    def cut(self) -> Mapping[str, Any]:
        """End the current interval; returns its line of the timeline."""
        failures = sum(self.failures.values())
        turns_before, failures_before = self._before
        elapsed = now() - self.began_at
        line: dict[str, Any] = {
            "t": round(elapsed, 3),
            "sessions": self.open,
            "turns": self.turns - turns_before,
            "failures": failures - failures_before,
        }
        if len(self._interval):
            line |= {f"ttft_{name}": round(self._interval.statistic(name) * 1e3, 3) for name in ("p50", "p95")}
        if self.rate is not None:
            line["rate"] = round(self.rate(elapsed), 3)
        self.subject.intervals.append(line)
        self._interval = Samples()
        self._before = (self.turns, failures)
        return line

    def elapsed(self) -> float:
        """Seconds since the start."""
        return (self._ended_at or now()) - self.began_at

    def health(self) -> Health:
        """The generator's, so far."""
        lag = self.series[GENERATOR_LAG]
        return Health(
            lag.percentile(99) if len(lag) else None,
            self.lateness.percentile(99) if len(self.lateness) else None,
            self._effort.share(),
        )

    def failed_share(self) -> float:
        """Of all that was tried, from 0 to 1; 1 when nothing succeeded."""
        failures = sum(self.failures.values())
        return failures / (failures + self.turns) if failures + self.turns else 1.0

    def conclude(self) -> None:
        """Write the facts of the subject."""
        last = self.cut()
        if not last["turns"] and not last["failures"]:
            self.subject.intervals.pop()
        counted = max(1e-9, self.elapsed() - (self.counts_from - self.began_at))
        health = self.health()
        self.subject.generator_bound = health.reasons()
        self.subject.facts |= {
            "seconds": round(self.elapsed(), 2),
            "turns completed": self.turns,
            "turns not ended": self.busy,
            "failures": dict(self.failures.most_common()) or "none",
            "turns per second": round(self.turns / counted, 2),
            "deltas per second": round(self._deltas / counted, 1),
            "generator": health.shown(),
        }
        if self.arrived:
            self.subject.facts |= {"sessions arrived": self.arrived, "of these waited for a place": self.waited}


def reason_of(error: TenantFailed | OSError) -> str:
    """One word to count by."""
    if isinstance(error, TenantFailed):
        return error.reason
    if isinstance(error, TimeoutError):
        return "connect_timeout"
    return f"connect_{type(error).__name__.removesuffix('Error').lower()}"
