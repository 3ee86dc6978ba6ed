"""Tenants at the same time: their series, the lag of this program's own loop, how long all of it took.

Callers: ``bench.traffic.meter``, ``bench.crowd``, ``bench.churn``, ``bench.chaos.command``.
"""

from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

import anyio

from bench.clock import LoopLag, now
from bench.report import Subject

GENERATOR_LAG = "generator_lag"


class Load:
    """``titles``: the series to open, ``GENERATOR_LAG`` among them."""

    def __init__(self, subject: Subject, titles: Mapping[str, str]) -> None:
        self.subject = subject
        for name, title in titles.items():
            subject.open_series(name, title)
        self.series = subject.series
        self.failures: Counter[str] = Counter()
        """Why a tenant gave up, and how often; for the tenants to count."""
        self.done = 0
        """Messages that were answered; for the tenants to count."""
        self._lag = LoopLag()
        self._lag.samples = self.series[GENERATOR_LAG]

    async def run(self, tenants: Iterable[Callable[[], Coroutine[Any, Any, None]]]) -> float:
        """All tenants to their end; returns the seconds it took."""
        began_at = now()
        async with anyio.create_task_group() as group:
            group.start_soon(self._lag.watch)
            async with anyio.create_task_group() as crowd:
                for tenant in tenants:
                    crowd.start_soon(tenant)
            group.cancel_scope.cancel()
        took = now() - began_at
        self.subject.facts["seconds"] = round(took, 2)
        return took
