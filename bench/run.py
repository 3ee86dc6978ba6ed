"""``run``: a closed loop of sessions that talk, against a running broker or one of its own.

Caller: ``bench.__main__``.  Closed: a session sends its next message when the answer to the last one is complete, so a
slow broker is asked less; the figures are those of this load, not of a fixed rate.
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
from bench.tenant import Tenant, TenantFailed, connect

NAME: Final = "run"
SUMMARY: Final = "sessions that talk: connect, welcome, first token, gaps, turns"
DESCRIPTION: Final = """\
Opens --sessions sockets, spread over --ramp seconds; each says hello, sends --turns messages one after another and asks
for answers of --tokens tokens.  With --url against a broker that runs already, else against one of its own with the
simulated CLI and a spare for every session.
"""
TITLES: Final = {
    "connect": "TCP and upgrade",
    "welcome": "hello -> welcome",
    "ttft": "message -> first delta",
    "gap": "delta -> next delta",
    "turn": "message -> turn completed",
    "generator_lag": "lag of this program's own loop",
}
SERIES: Final = frozenset(TITLES)
DEADLINE_S: Final = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    parser.add_argument("--url", metavar="ws://HOST:PORT/v1/chat/ws", help="a running broker (default: one of its own)")
    parser.add_argument("--sessions", type=int, default=10, metavar="N", help="at the same time (default %(default)s)")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="messages of each (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=50, metavar="N", help="of each answer (default %(default)s)")
    parser.add_argument("--itl", type=float, default=10.0, metavar="MS",
                        help="milliseconds from token to token (default %(default)s)")  # fmt: skip
    parser.add_argument(
        "--ramp", type=float, default=1.0, metavar="S", help="all have arrived after (default %(default)s)"
    )


def is_loopback_only(arguments: argparse.Namespace) -> bool:
    """Nothing but the simulator is started here."""
    return False


def run(arguments: argparse.Namespace) -> Report:
    """Load the broker.  Raises ``ChildFailed``; what fails for one session is counted, not raised."""
    report = Report(NAME, vars(arguments), arguments.seed)
    report.subjects.append(anyio.run(_measure, arguments))
    return report


async def _measure(arguments: argparse.Namespace) -> Subject:
    if arguments.url is not None:
        return await _Sessions(arguments, Subject(arguments.url)).run(arguments.url)
    choice = clis.choice("simulated")
    async with broker(Setup(choice.setting, arguments.sessions, limit=arguments.sessions)) as running:
        await running.wait_settled()
        return await _Sessions(arguments, Subject(choice.name)).run(running.url)


class _Sessions:
    """The sessions and what they saw."""

    def __init__(self, arguments: argparse.Namespace, subject: Subject) -> None:
        self._arguments: Any = arguments
        self._random = random.Random(arguments.seed)
        self._options: Options = options_of(arguments.seed)
        self._load = Load(subject, TITLES)
        self._series = self._load.series
        self._deltas = 0

    async def run(self, url: str) -> Subject:
        """All sessions to their end."""
        count, subject = self._arguments.sessions, self._load.subject
        delays = [self._random.uniform(0.0, self._arguments.ramp) for _ in range(count)]
        took = await self._load.run(partial(self._session, url, delay) for delay in delays)
        subject.facts |= {
            "turns completed": f"{self._load.done} of {count * self._arguments.turns}",
            "deltas per second": round(self._deltas / took, 1),
            "failures": dict(self._load.failures) or "none",
        }
        return subject

    async def _session(self, url: str, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        try:
            began_at = now()
            async with connect(url) as tenant:
                assert tenant.opened_at is not None
                self._series["connect"].add(tenant.opened_at - began_at)
                tenant.hello(self._options())
                self._series["welcome"].add(await tenant.wait_welcome(DEADLINE_S))
                for number in range(self._arguments.turns):
                    await self._turn(tenant, number)
        except (TenantFailed, OSError) as error:
            self._load.failures[str(error)[:120]] += 1

    async def _turn(self, tenant: Tenant, number: int) -> None:
        tenant.say(f"Message {number} [[sim tokens={self._arguments.tokens} itl_ms={self._arguments.itl:g}]]")
        self._series["ttft"].add(await tenant.wait_first_delta(DEADLINE_S))
        turn = await tenant.wait_end(DEADLINE_S)
        assert turn.ended_at is not None
        self._series["turn"].add(turn.ended_at - turn.sent_at)
        self._series["gap"].values += turn.gaps
        self._deltas += turn.deltas
        self._load.done += 1
