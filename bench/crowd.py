"""``crowd``: many tenants who stay connected and speak now and then, on few processes.

Caller: ``bench.__main__``.  Each tenant says one message every so often, at a moment of its own; who is idle rests for
who speaks, and is restored with its next message.  Whatever goes unanswered fails the run.
"""

import argparse
import random
from typing import Any, Final

import anyio

from bench import clis
from bench.arrivals import Options, options_of
from bench.broker_process import Setup, broker
from bench.clock import LoopLag, now
from bench.report import Report, Subject
from bench.tenant import TenantFailed, connect

NAME: Final = "crowd"
SUMMARY: Final = "more tenants than processes: each message is answered, how long it takes"
DESCRIPTION: Final = """\
--tenants sockets stay open for --rounds x --every seconds on --processes processes of the simulated CLI.  Each tenant
speaks once in every --every seconds.  The run fails when a message is not answered.
"""
TITLES: Final = {
    "welcome": "hello -> welcome",
    "ttft": "message -> first delta, mostly of a restored process",
    "turn": "message -> turn completed",
    "generator_lag": "lag of this program's own loop",
}
SERIES: Final = frozenset(TITLES)
DEADLINE_S: Final = 60.0
SPARES: Final = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    parser.add_argument("--tenants", type=int, default=500, metavar="N", help="sockets (default %(default)s)")
    parser.add_argument(
        "--processes", type=int, default=20, metavar="N", help="pool.max_processes (default %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="messages of each (default %(default)s)")
    parser.add_argument("--every", type=float, default=60.0, metavar="S", help="between them (default %(default)s)")


def is_loopback_only(arguments: argparse.Namespace) -> bool:
    """Nothing but the simulator is started here."""
    return False


def run(arguments: argparse.Namespace) -> Report:
    """Load the broker.  Raises ``ChildFailed``, and ``TenantFailed`` when a message was not answered."""
    report = Report(NAME, vars(arguments), arguments.seed)
    report.subjects.append(anyio.run(_measure, arguments))
    return report


async def _measure(arguments: argparse.Namespace) -> Subject:
    choice = clis.choice("simulated")
    async with broker(Setup(choice.setting, SPARES, processes=arguments.processes)) as running:
        await running.wait_settled()
        return await _Crowd(arguments, Subject(choice.name)).run(running.url)


class _Crowd:
    """The tenants and what they saw."""

    def __init__(self, arguments: argparse.Namespace, subject: Subject) -> None:
        self._arguments: Any = arguments
        self._subject = subject
        self._random = random.Random(arguments.seed)
        self._options: Options = options_of(arguments.seed)
        for name, title in TITLES.items():
            subject.open_series(name, title)
        self._series = subject.series
        self._lag = LoopLag()
        self._lag.samples = self._series["generator_lag"]
        self._answered = 0
        self._failures: list[str] = []

    async def run(self, url: str) -> Subject:
        """All tenants to their end.  Raises ``TenantFailed``."""
        tenants, rounds = self._arguments.tenants, self._arguments.rounds
        began_at = now()
        async with anyio.create_task_group() as group:
            group.start_soon(self._lag.watch)
            async with anyio.create_task_group() as crowd:
                for _ in range(tenants):
                    crowd.start_soon(self._tenant, url, began_at + self._random.uniform(0.0, self._arguments.every))
            group.cancel_scope.cancel()
        took = now() - began_at
        self._subject.facts |= {
            "turns answered": f"{self._answered} of {tenants * rounds}",
            "turns per second": round(self._answered / took, 1),
            "seconds": round(took, 1),
            "processes": self._arguments.processes,
        }
        if self._answered < tenants * rounds:
            missing = tenants * rounds - self._answered
            raise TenantFailed(f"{missing} of {tenants * rounds} messages were not answered: {self._failures[:3]}")
        return self._subject

    async def _tenant(self, url: str, begins_at: float) -> None:
        await anyio.sleep(max(0.0, begins_at - now()))
        try:
            async with connect(url) as tenant:
                tenant.hello(self._options())
                self._series["welcome"].add(await tenant.wait_welcome(DEADLINE_S))
                for number in range(self._arguments.rounds):
                    await anyio.sleep(max(0.0, begins_at + number * self._arguments.every - now()))
                    tenant.say(f"Message {number} [[sim tokens=5 itl_ms=5]]")
                    self._series["ttft"].add(await tenant.wait_first_delta(DEADLINE_S))
                    turn = await tenant.wait_end(DEADLINE_S)
                    assert turn.ended_at is not None
                    self._series["turn"].add(turn.ended_at - turn.sent_at)
                    self._answered += 1
        except (TenantFailed, OSError) as error:
            self._failures.append(str(error)[:160])
