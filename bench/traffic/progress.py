"""A load while it runs: a line that renews itself on a terminal, else a plain line every few seconds.

Caller: the commands, beside ``Meter.run``.  ``rich`` is of the extra ``bench``; without it the lines are plain.
"""

import sys
from collections.abc import Callable
from typing import Any, Final

import anyio

from bench.clock import now
from bench.samples import Samples
from bench.table import milliseconds
from bench.traffic.meter import Meter

PLAIN_S: Final = 5.0
LIVE_S: Final = 1.0
"""Not more often: what draws does not read its sockets meanwhile."""
REASONS: Final = 3


class Progress:
    """``total_s``: how long it is meant to take, None when that is not known.  ``every_s``: between plain lines."""

    def __init__(self, meter: Meter, total_s: float | None, every_s: float = PLAIN_S, title: str = "") -> None:
        self._meter = meter
        self._total_s = total_s
        self._every_s = every_s
        self._title = title
        self._has_turns = "turn" in meter.series
        """A storm of handshakes has none: what counts there is who is open."""
        self._seen = (now(), 0)

    async def watch(self) -> None:
        """Until cancelled; the last state of a live line stays on the screen."""
        live = _Live.opened() if sys.stdout.isatty() else None
        if live is None:
            await self._repeat(self._every_s, lambda line: print(line, flush=True))
            return
        with live.screen:
            await self._repeat(LIVE_S, live.show)

    async def _repeat(self, every_s: float, tell: Callable[[str], Any]) -> None:
        due = now()
        while True:
            due += every_s
            await anyio.sleep(max(0.0, due - now()))
            tell(self.line())

    def line(self) -> str:
        """Elapsed, open sessions, turns per second since the line before, rolling time to first delta, failures."""
        meter, at = self._meter, now()
        count = meter.turns if self._has_turns else meter.open
        since, before = self._seen
        self._seen = (at, count)
        per_second = (count - before) / max(1e-9, at - since)
        total = "" if self._total_s is None else f"/{self._total_s:.0f}"
        turns = [f"{meter.turns} turns", rolling(meter)] if self._has_turns else []
        parts = [
            f"{meter.elapsed():.0f}{total} s",
            f"{meter.open} open",
            f"{per_second:.1f}/s",
            *turns,
            failures(meter),
        ]
        if at < meter.counts_from:
            parts.insert(1, "warm-up")
        return "  ".join([self._title, *parts] if self._title else parts)


def rolling(meter: Meter) -> str:
    """Of the last turns."""
    if not meter.recent:
        return "ttft -"
    recent = Samples(meter.recent)
    return f"ttft p50 {milliseconds(recent.percentile(50))} p95 {milliseconds(recent.percentile(95))} ms"


def failures(meter: Meter) -> str:
    """How many, and the most frequent reasons."""
    if not meter.failures:
        return "0 failed"
    reasons = ", ".join(f"{reason} {count}" for reason, count in meter.failures.most_common(REASONS))
    return f"{sum(meter.failures.values())} failed ({reasons})"


class _Live:
    """A line of ``rich`` that renews itself."""

    def __init__(self, screen: Any, text: Any) -> None:
        self.screen = screen
        self._text = text

    @classmethod
    def opened(cls) -> "_Live | None":
        """None where ``rich`` is not installed."""
        try:
            from rich.live import Live  # noqa: PLC0415 - an extra, and 60 ms that a plain run need not wait
            from rich.text import Text  # noqa: PLC0415
        except ImportError:
            return None
        return cls(Live("", auto_refresh=False), Text)

    def show(self, line: str) -> None:
        """As it is: a broker's word in brackets is no markup."""
        self.screen.update(self._text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
