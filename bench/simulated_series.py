"""``cold-vs-warm`` on the simulated CLI: a steady stream of arrivals, many at once, and the floor beside both.

Caller: ``bench.cold_vs_warm``.  The simulated CLI starts and answers in no time, so what is seen here is the broker.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Final

from bench import floor
from bench.arrivals import TEXT, Arrival, at_once, checked, one, options_of, paced
from bench.bounds import Bound
from bench.broker_process import Broker, Setup, broker
from bench.clis import Choice
from bench.clock import QUIET_BUSY, LoopLag, wait_quiet
from bench.plan import Plan
from bench.report import Subject

TARGETS: Final = (
    "welcome_p50<=5ms",
    "welcome_p99<=25ms",
    "together_welcome_p50<=30ms",
    "together_welcome_p99<=60ms",
)
TITLES: Final = {
    "welcome": "warm, paced: hello -> welcome",
    "floor_welcome": "  floor, paced the same",
    "message_welcome": "warm, paced, with a message: -> welcome",
    "first_delta": "warm, paced, with a message: -> first delta",
    "refilling_welcome": "warm, paced, spares restarted: -> welcome",
    "together_welcome": "at once, warm: hello -> welcome",
    "together_cpu": "  broker's loop ran, per round",
    "together_core_wait": "  broker's loop waited for a core, per round",
    "floor_together_welcome": "  floor, at once",
    "floor_together_cpu": "  floor's loop ran, per round",
    "floor_together_core_wait": "  floor's loop waited for a core, per round",
    "together_refilling_welcome": "at once, spares restarted: -> welcome",
    "cold_welcome": "cold: hello -> welcome",
    "cold_first_delta": "cold: hello -> first delta",
    "cold_together_welcome": "at once, cold: hello -> welcome",
    "generator_lag": "lag of this program's own loop",
    "generator_late": "arrivals begun after their time",
}


async def measure(choice: Choice, plan: Plan) -> Subject:
    """All series.  Raises ``TenantFailed``, ``ChildFailed``."""
    subject = Subject(choice.name, targets=[Bound.parse(text) for text in TARGETS])
    for name, title in TITLES.items():
        subject.open_series(name, title)
    series = _Series(choice, plan, subject)
    await series.paced_arrivals()
    await series.refilled_arrivals()
    await series.together()
    await series.cold()
    subject.facts["plan"] = asdict(plan)
    return subject


class _Series:
    """What the steps share."""

    def __init__(self, choice: Choice, plan: Plan, subject: Subject) -> None:
        self._cli = choice.setting
        self._plan = plan
        self._series = subject.series
        self._facts = subject.facts
        self._options = options_of(plan.seed)
        self._lag = LoopLag()
        self._lag.samples = self._series["generator_lag"]
        self._noisy = 0

    async def paced_arrivals(self) -> None:
        """A spare for each arrival and no process started meanwhile; then the same with a message behind each hello;
        the floor between the two."""
        plan = self._plan
        async with broker(Setup(self._cli, plan.n, limit=plan.n)) as running:
            await running.wait_settled()
            await self._quiet()
            arrivals = await self._paced(running.url, None)
            self._add("welcome", arrivals)
            async with floor.running(self._cli, plan.n) as lowest:
                await running.wait_settled()
                await self._quiet()
                bare = await self._paced(lowest.url, None, expected="")
                self._add("floor_welcome", bare)
            await running.wait_settled()
            await self._quiet()
            arrivals = await self._paced(running.url, TEXT)
            self._add("message_welcome", arrivals)
            self._add_deltas("first_delta", arrivals)

    async def refilled_arrivals(self) -> None:
        """The same, but each spare that goes is replaced at once: starts compete with binds for the cores."""
        async with broker(Setup(self._cli, self._plan.n)) as running:
            await running.wait_settled()
            await self._quiet()
            self._add("refilling_welcome", await self._paced(running.url, None))

    async def together(self) -> None:
        """Everybody in the same moment; broker and floor take turns."""
        plan = self._plan
        async with (
            broker(Setup(self._cli, plan.tenants, limit=plan.tenants)) as sized,
            broker(Setup(self._cli, plan.tenants)) as refilling,
        ):
            for _ in range(plan.rounds):
                for running, name in ((sized, "together_welcome"), (refilling, "together_refilling_welcome")):
                    await running.wait_settled()
                    await self._quiet()
                    await self._at_once(name, running)
                async with floor.running(self._cli, plan.tenants) as bare:
                    await refilling.wait_settled()
                    await self._quiet()
                    await self._at_once("floor_together_welcome", bare, expected="")
        self._facts["bursts on a busy machine"] = f"{self._noisy} (more than {QUIET_BUSY:.0%} of all cores in use)"

    async def cold(self) -> None:
        """No spares at all."""
        async with broker(Setup(self._cli, 0)) as running:
            for _ in range(self._plan.colds):
                await running.wait_settled()
                await self._quiet()
                arrival = await one(running.url, self._options())
                self._add("cold_welcome", [arrival])
                self._add_deltas("cold_first_delta", [arrival])
            await running.wait_settled()
            await self._quiet()
            await self._at_once("cold_together_welcome", running, expected="cold")

    async def _paced(self, url: str, text: str | None, expected: str = "warm") -> list[Arrival]:
        plan = self._plan
        arrivals, late = await paced(url, plan.n, plan.interval_s, self._options, self._lag, text)
        self._series["generator_late"].extend(late.values)
        return checked(arrivals, expected)

    async def _at_once(self, name: str, server: Broker | floor.Floor, expected: str = "warm") -> None:
        around = partial(self._loop_time, name.removesuffix("_welcome"), server)
        arrivals = await at_once(server.url, self._plan.tenants, self._options, self._lag, None, around)
        self._add(name, checked(arrivals, expected))

    @contextmanager
    def _loop_time(self, name: str, server: Broker | floor.Floor) -> Iterator[None]:
        """Note for how long the server's one thread ran in the block, and waited for a core: whose fault a tail is."""
        ran, waited = server.process.scheduled()
        yield
        ran_then, waited_then = server.process.scheduled()
        if f"{name}_cpu" in self._series:
            self._series[f"{name}_cpu"].add(ran_then - ran)
            self._series[f"{name}_core_wait"].add(waited_then - waited)

    async def _quiet(self) -> None:
        self._noisy += await wait_quiet(self._plan.quiet_s) > QUIET_BUSY

    def _add(self, name: str, arrivals: Iterable[Arrival]) -> None:
        self._series[name].extend([arrival.welcome for arrival in arrivals])

    def _add_deltas(self, name: str, arrivals: Iterable[Arrival]) -> None:
        deltas = [arrival.first_delta for arrival in arrivals]
        self._series[name].extend([delta for delta in deltas if delta is not None])
