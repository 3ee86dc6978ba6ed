"""``crowd``: many tenants who stay connected and speak now and then, on few processes.

Caller: ``bench.__main__``.  Each tenant says one message every so often, at a moment of its own; who is idle rests for
who speaks, and is restored with its next message.  Whatever goes unanswered fails the run.
"""

import argparse
import random
from functools import partial
from typing import Any, Final

import anyio

from bench import clis
from bench.arrivals import Options, options_of
from bench.broker_process import Setup, broker
from bench.clock import now
from bench.load import Load
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
        self._random = random.Random(arguments.seed)
        self._options: Options = options_of(arguments.seed)
        self._load = Load(subject, TITLES)
        self._series = self._load.series

    async def run(self, url: str) -> Subject:
        """All tenants to their end.  Raises ``TenantFailed``."""
        subject, wanted = self._load.subject, self._arguments.tenants * self._arguments.rounds
        began_at = now()
        moments = [began_at + self._random.uniform(0.0, self._arguments.every) for _ in range(self._arguments.tenants)]
        took = await self._load.run(partial(self._tenant, url, moment) for moment in moments)
        subject.facts |= {
            "turns answered": f"{self._load.done} of {wanted}",
            "turns per second": round(self._load.done / took, 1),
            "processes": self._arguments.processes,
        }
        if (missing := wanted - self._load.done) > 0:
            raise TenantFailed(f"{missing} of {wanted} messages were not answered: {[*self._load.failures][:3]}")
        return subject

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
                    self._load.done += 1
        except (TenantFailed, OSError) as error:
            self._load.failures[str(error)[:160]] += 1
