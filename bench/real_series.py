"""``cold-vs-warm`` on the real CLI: single arrivals with settled spares, then many tenants at once, warm and cold.

Caller: ``bench.cold_vs_warm``, inside the loopback-only namespace.  Cold starts are measured between the warm ones, so
that both meet the same machine.
"""

from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from functools import partial
from typing import Final

import anyio

from bench import direct
from bench.api_process import Api, api
from bench.arrivals import TEXT, Arrival, Options, at_once, checked, one, options_of
from bench.bounds import Bound
from bench.broker_process import Broker, Setup, broker
from bench.clis import Choice
from bench.clock import QUIET_BUSY, LoopLag, now, wait_quiet, wall
from bench.plan import Plan
from bench.report import Subject

TARGETS: Final = ("welcome_p50<=60ms", "first_delta_p50<=200ms")
SPARES: Final = 2
PROBES: Final = 30


async def measure(choice: Choice, plan: Plan) -> Subject:
    """All series of one CLI.  Raises ``TenantFailed``, ``ChildFailed``, ``DirectFailed``."""
    subject = Subject(choice.name, targets=[Bound.parse(text) for text in TARGETS])
    for name, title in TITLES.items():
        subject.open_series(name, title)
    async with api() as stand_in:
        series = _Series(choice, plan, subject, stand_in)
        await series.probe()
        await series.one_by_one()
        await series.together()
    subject.facts["stand-in's share of a first delta"] = (
        f"{subject.series['api_first_delta'].percentile(50) * 1e3:.1f} ms (p50 of {PROBES} requests)"
    )
    return subject


TITLES: Final = {
    "welcome": "warm: hello -> welcome",
    "first_delta": "warm: hello -> first delta",
    "ready": "  of it: hello decoded -> last bind answer",
    "to_api": "  of it: hello -> the API has the request",
    "from_api": "  of it: API has the request -> first delta",
    "bare_welcome": "no broker, warm CLI: bind -> last answer",
    "bare_first_delta": "no broker, warm CLI: bind -> first delta",
    "cold_welcome": "cold: hello -> welcome",
    "cold_first_delta": "cold: hello -> first delta",
    "direct_first_delta": "no broker, cold: spawn -> first delta",
    "together_welcome": "at once, warm: hello -> welcome",
    "together_first_delta": "at once, warm: hello -> first delta",
    "cold_together_welcome": "at once, cold: hello -> welcome",
    "cold_together_first_delta": "at once, cold: hello -> first delta",
    "api_first_byte": "API stand-in: request -> first byte",
    "api_first_delta": "API stand-in: request -> first delta",
    "generator_lag": "lag of this program's own loop",
}


class _Series:
    """What the steps share."""

    def __init__(self, choice: Choice, plan: Plan, subject: Subject, stand_in: Api) -> None:
        self._choice = choice
        self._plan = plan
        self._series = subject.series
        self._facts = subject.facts
        self._api = stand_in
        self._env = {"ANTHROPIC_BASE_URL": stand_in.url, "CLAUDE_CODE_MAX_RETRIES": "0"}
        self._options: Options = options_of(plan.seed)
        self._lag = LoopLag()
        self._lag.samples = self._series["generator_lag"]
        self._last_at = 0.0
        self._noisy = 0
        self._starts = 0

    async def probe(self) -> None:
        """The stand-in alone, on a quiet machine."""
        await wait_quiet(self._plan.quiet_s)
        first_byte, first_delta = await anyio.to_thread.run_sync(self._api.probe, PROBES)
        self._series["api_first_byte"].extend(first_byte.values)
        self._series["api_first_delta"].extend(first_delta.values)

    async def one_by_one(self) -> None:
        """One tenant at a time; a cold one and two without a broker after every few warm ones."""
        plan = self._plan
        each = max(1, plan.n // plan.colds) if plan.colds else plan.n + 1
        async with self._broker(SPARES) as warm, self._broker(0) as cold:
            for number in range(plan.n):
                await self._settle(warm)
                self._last_at = now()
                await self._arrive_warm(warm)
                if number % each == each - 1 and number // each < plan.colds:
                    await self._settle(warm)
                    await self._arrive_cold(cold)
                    await self._settle(warm)
                    await self._without_broker()
        self._facts["arrivals on a busy machine"] = f"{self._noisy} (more than {QUIET_BUSY:.0%} of all cores in use)"

    async def together(self) -> None:
        """``tenants`` at once, ``rounds`` times, warm and cold."""
        for spares, name in ((self._plan.tenants, "together"), (0, "cold_together")):
            async with self._broker(spares) as running:
                for _ in range(self._plan.rounds):
                    await self._settle(running)
                    arrivals = await at_once(running.url, self._plan.tenants, self._options, self._lag)
                    checked(arrivals, "warm" if spares else "cold")
                    for arrival in arrivals:
                        self._add(name, arrival)
        self._facts["plan"] = asdict(self._plan) | {"spares": SPARES}

    def _broker(self, spares: int) -> AbstractAsyncContextManager[Broker]:
        return broker(Setup(self._choice.setting, spares, env=self._env))

    async def _settle(self, running: Broker) -> None:
        """Spares warm, nothing starting or stopping, machine quiet, and the interval over."""
        await running.wait_settled()
        busy = await wait_quiet(self._plan.quiet_s)
        self._noisy += busy > QUIET_BUSY
        await anyio.sleep(max(0.0, self._last_at + self._plan.interval_s - now()))

    async def _arrive_warm(self, running: Broker) -> None:
        options = self._options()
        arrival = await one(running.url, options)
        checked([arrival], "warm")
        self._add("", arrival)
        self._series["ready"].add(arrival.ready)
        reached = await anyio.to_thread.run_sync(self._api.arrival, options["credentials"]["oauth_token"])
        if reached is not None and arrival.first_delta is not None:
            to_api = reached - wall(arrival.hello_at)
            self._series["to_api"].add(to_api)
            self._series["from_api"].add(arrival.first_delta - to_api)

    async def _arrive_cold(self, running: Broker) -> None:
        arrival = await one(running.url, self._options())
        checked([arrival], "cold")
        self._add("cold", arrival)

    async def _without_broker(self) -> None:
        cold = partial(direct.cold, self._choice.found, self._options(), TEXT, self._env)
        self._series["direct_first_delta"].add(await anyio.to_thread.run_sync(cold))
        await wait_quiet(self._plan.quiet_s)
        warm = partial(direct.warm, self._choice.found, self._options(), TEXT, self._env)
        bound, first_delta = await anyio.to_thread.run_sync(warm)
        self._series["bare_welcome"].add(bound)
        self._series["bare_first_delta"].add(first_delta)

    def _add(self, name: str, arrival: Arrival) -> None:
        prefix = f"{name}_" if name else ""
        self._series[f"{prefix}welcome"].add(arrival.welcome)
        assert arrival.first_delta is not None
        self._series[f"{prefix}first_delta"].add(arrival.first_delta)
