"""``churn``: connections that come, say who they are and go, by the hundred thousand; the broker is as large as before.

Caller: ``bench.__main__``.
"""

import argparse
import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import anyio

from bench import clis, vitals
from bench.broker_process import Broker, Setup, broker_in, with_token
from bench.chaos.link import Link, linked
from bench.clock import now
from bench.load import GENERATOR_LAG, Load
from bench.report import Report, Subject
from bench.tenant import TenantFailed
from bench.vitals import Vital, look

NAME: Final = "churn"
SUMMARY: Final = "connections that come and go: the broker keeps nothing of them"
DESCRIPTION: Final = """\
Opens --connections, --at-once at a time: most say hello with a token, read their welcome and close; some are reset,
some never say hello, some have a wrong token, some send half a request.  Then compares what the broker holds with what
it held after the first tenth: memory (5 MiB more at most), descriptors, threads, tasks.  Exits 1 when it holds more.
"""
TITLES: Final = {"welcome": "connect -> welcome", GENERATOR_LAG: "lag of this program's own loop"}
SERIES: Final = frozenset(TITLES)
TOKEN: Final = "churn-token-of-this-run-0123456789"  # noqa: S105 - of this run
STANDING: Final = "standing"
"""The conversation that all of them visit."""
SOURCES: Final = 200
"""Addresses of loopback that they come from: one alone has too few ports for those that are not yet forgotten."""
RSS_MIB: Final = 5.0
REST_WITHIN_S: Final = 15.0
DEADLINE_S: Final = 20.0
FAILED: Final = "failed: "
HALF: Final = b"GET /v1/chat/ws HTTP/1.1\r\nHost: "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    parser.add_argument("--connections", type=int, default=2000, metavar="N", help="in all (default %(default)s)")
    parser.add_argument("--at-once", type=int, default=16, metavar="N", help="open at a time (default %(default)s)")


def run(arguments: argparse.Namespace) -> Report:
    """Load the broker.  Raises ``ChildFailed``; what is amiss is in the report."""
    report = Report(NAME, vars(arguments), arguments.seed)
    anyio.run(_measure, arguments, report)
    return report


async def _measure(arguments: Any, report: Report) -> None:
    choice = clis.choice("simulated")
    subject = Subject(choice.name)
    report.subjects.append(subject)
    with TemporaryDirectory(prefix="bench-churn-") as folder:
        place = Path(folder)
        setup = Setup(
            choice.setting, warm=1, processes=2, pool='isolation = "none"',
            server="max_unauthenticated = 2000\nmax_unauthenticated_per_ip = 500",
            tables=with_token(place, "churn", TOKEN),
        )  # fmt: skip
        async with broker_in(place, setup) as running:
            await running.wait_settled()
            await _Churn(arguments, running, place, Load(subject, TITLES), report).run()


class _Churn:
    """The connections and what became of them."""

    def __init__(self, arguments: Any, running: Broker, place: Path, load: Load, report: Report) -> None:
        self._arguments = arguments
        self._broker = running
        self._sessions = place / "state" / "sessions"
        self._load = load
        self._report = report
        self._chance = random.Random(arguments.seed)
        self._ended: Counter[str] = Counter()

    async def run(self) -> None:
        """A first tenth, a look, the rest, a second look."""
        warm_up = max(1, self._arguments.connections // 10)
        host = await self._link()
        host.send(self._hello("open", "controller"))
        await host.wait_welcomed(DEADLINE_S)
        async with anyio.create_task_group() as group:
            await self._some(warm_up)
            before = await self._at_rest(None)
            took = await self._some(self._arguments.connections - warm_up)
            after = await self._at_rest(before)
            group.cancel_scope.cancel()
        await host.leave()
        self._load.subject.facts |= {
            "connections per second": round((self._arguments.connections - warm_up) / took, 1),
            "what they were": dict(sorted(self._ended.items())),
            "memory after the first tenth, at the end (MiB)": f"{before.rss / 2**20:.1f} -> {after.rss / 2**20:.1f}",
            "held after the first tenth, at the end": vitals.at_rest([before, after]),
        }
        self._report.violations += judge(self._ended, before, after)

    async def _some(self, count: int) -> float:
        left = iter([self._one() for _ in range(count)])

        async def visitor() -> None:
            for visit in left:
                await visit()

        return await self._load.run([visitor] * self._arguments.at_once)

    def _one(self) -> Callable[[], Awaitable[None]]:
        kinds = (self._visit, self._reset, self._silent, self._stranger, self._half)
        kind = self._chance.choices(kinds, (60, 15, 10, 10, 5))[0]
        return partial(kind, f"127.0.{self._chance.randrange(1, 1 + SOURCES)}.1")

    async def _visit(self, source: str) -> None:
        if (link := await self._welcomed(source)) is not None:
            await link.close()
            self._ended["visited and closed"] += 1

    async def _reset(self, source: str) -> None:
        if (link := await self._welcomed(source)) is not None:
            await link.leave()
            self._ended["visited and left without a word"] += 1

    async def _silent(self, source: str) -> None:
        try:
            await (await self._link(source)).close()
            self._ended["never said hello"] += 1
        except TenantFailed as error:
            self._fail(error)

    async def _stranger(self, source: str) -> None:
        try:
            link = await self._link(source)
            link.send(self._hello("resume", "observer", token=TOKEN + "x"))
            await link.wait_over(DEADLINE_S)
        except TenantFailed as error:
            if "4501" not in str(error):
                self._fail(error)
            self._ended["refused for its token"] += 1

    async def _half(self, source: str) -> None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self._broker.port, local_addr=(source, 0))
            writer.write(HALF)
            await writer.drain()
            writer.transport.abort()
            self._ended["sent half a request"] += 1
        except OSError as error:
            self._fail(error)

    async def _welcomed(self, source: str) -> Link | None:
        began = now()
        try:
            link = await self._link(source)
            link.send(self._hello("resume", "observer"))
            await link.wait_welcomed(DEADLINE_S)
        except TenantFailed as error:
            self._fail(error)
            return None
        self._load.series["welcome"].add(now() - began)
        return link

    async def _link(self, source: str = "127.0.0.1") -> Link:
        return await linked(self._broker.url, self._broker.port, lambda text, at: None, source)

    def _hello(self, mode: str, role: str, token: str = TOKEN) -> dict[str, Any]:
        session = {"mode": mode, "id": STANDING}
        return {"type": "broker.hello", "auth": {"token": token}, "session": session, "role": role}

    def _fail(self, error: Exception) -> None:
        self._ended[f"{FAILED}{error}"[:100]] += 1

    async def _at_rest(self, before: Vital | None) -> Vital:
        """A look, once nothing more goes away; with ``before``, once as little is there as then, or the deadline."""
        deadline = now() + REST_WITHIN_S
        last = await look(self._broker, 1, self._sessions)
        while True:
            await anyio.sleep(1.0)
            found = await look(self._broker, 1, self._sessions)
            wanted = before or last
            if now() > deadline or (found.fds <= wanted.fds and found.tasks <= wanted.tasks):
                return found
            last = found


def judge(ended: Counter[str], before: Vital, after: Vital) -> list[str]:
    """What must not be, one line each: connections that failed, and what the broker has kept."""
    found = [f"{name}: {count}" for name, count in ended.items() if name.startswith(FAILED)]
    held = {name: (getattr(before, name), getattr(after, name)) for name in ("fds", "threads", "tasks", "children")}
    found += [f"{name}: {first} before, {last} after" for name, (first, last) in held.items() if last > first]
    if (grown := (after.rss - before.rss) / 2**20) > RSS_MIB:
        found.append(f"memory grew by {grown:.1f} MiB")
    return found
