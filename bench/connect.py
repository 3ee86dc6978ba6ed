"""``connect``: a storm of handshakes, each accepted, authenticated and attached; and what a socket costs that is idle.

Caller: ``bench.__main__``.
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import anyio

from bench import clis
from bench.arrivals import options_of
from bench.broker_process import Broker, Setup, broker_in, with_token
from bench.clock import now
from bench.load import GENERATOR_LAG
from bench.report import Report, Subject
from bench.secrets import without_user
from bench.tenant import TenantFailed
from bench.traffic import script
from bench.traffic.bare_socket import BareSocket, Greeting, greet, greeting
from bench.traffic.beside import Beside, beside
from bench.traffic.descriptors import make_room
from bench.traffic.meter import Meter
from bench.traffic.progress import Progress
from bench.traffic.target import UNLIMITED
from bench.vitals import status_of

NAME: Final = "connect"
SUMMARY: Final = "a storm of handshakes: how many a second, time to welcome, memory of an idle socket"
DESCRIPTION: Final = """\
Opens --connections sockets, --at-once of them under way at a time.  Each is upgraded, says hello with a token and
options.lazy, reads its welcome and stays.  Then come --hold seconds of silence; what the memory of a broker of its own
has grown by is divided by the sockets.  There a tenant talks as well, before they come and beside them.
"""
TITLES: Final = {
    "connect": "TCP and upgrade",
    "welcome": "hello -> welcome",
    "attached": "connect -> welcome",
    GENERATOR_LAG: "lag of this program's own loop",
}
SERIES: Final = frozenset(TITLES)
TOKEN: Final = "connect-token-of-this-run-0123456789"  # noqa: S105 - of this run
TENANT: Final = "storm"
SOURCE_PORTS: Final = 10_000
"""Of one address of loopback: there are 28,000, and closed ones are kept for a minute."""
ROOM: Final = 1000
"""Sessions and silent sockets that the broker allows above what comes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this sub-command."""
    parser.add_argument(
        "--url", type=script.url, metavar="ws://HOST:PORT/v1/chat/ws", help="a running broker (default: one of its own)"
    )
    parser.add_argument("--token", metavar="TOKEN",
                        help=f"for hello (default: ${script.TOKEN_VARIABLE}); never written to a result")  # fmt: skip
    parser.add_argument("--connections", type=script.sessions, default=1000, metavar="N",
                        help="in all (default %(default)s)")  # fmt: skip
    parser.add_argument("--at-once", type=script.count, default=64, metavar="N",
                        help="under way at a time (default %(default)s)")  # fmt: skip
    parser.add_argument("--hold", type=script.seconds, default=2.0, metavar="S",
                        help="of silence, with all of them open (default %(default)s)")  # fmt: skip
    parser.add_argument("--timeout", type=script.positive, default=30.0, metavar="S",
                        help="for one welcome (default %(default)s)")  # fmt: skip
    parser.add_argument("--progress", type=script.positive, default=5.0, metavar="S",
                        help="between two lines where stdout is no terminal (default %(default)s)")  # fmt: skip
    parser.add_argument("--label", default="", metavar="TEXT", help="kept in the result and shown in its head")


def run(arguments: argparse.Namespace) -> Report:
    """The storm.  Raises ``ChildFailed``; what fails for one socket is counted, not raised."""
    make_room(arguments.connections)
    report = Report(NAME, vars(arguments), arguments.seed, label=arguments.label)
    return report.measured(_measure, arguments, report)


async def _measure(arguments: Any, report: Report) -> None:
    async with _door(arguments) as (url, name, token, running):
        subject = Subject(name)
        report.subjects.append(subject)
        options = {**options_of(arguments.seed)(), "lazy": True} if running is None else {"lazy": True}
        hello: dict[str, Any] = {"type": "broker.hello", "session": {"mode": "new"}, "options": options}
        if token is not None:
            hello["auth"] = {"token": token}
        meter = Meter(subject, titles=TITLES)
        async with AsyncExitStack() as stack:
            talker = None
            if running is not None:
                talker = await stack.enter_async_context(beside(url, TOKEN, arguments.timeout))
            storm = _Storm(arguments, meter, greeting(url, hello), running, talker)
            try:
                progress = Progress(meter, None, arguments.progress)
                await storm.listen()
                await meter.run(storm.come, progress.watch)
                await storm.hold()
                await storm.listen()
            finally:
                storm.tell()
                storm.leave()


@asynccontextmanager
async def _door(arguments: Any) -> AsyncIterator[tuple[str, str, str | None, Broker | None]]:
    if arguments.url is not None:
        yield arguments.url, without_user(arguments.url), script.token_of(arguments), None
        return
    choice, count = clis.choice("simulated"), arguments.connections
    with TemporaryDirectory(prefix="bench-connect-") as folder:
        place = Path(folder)
        setup = Setup(
            choice.setting, warm=1, processes=2, pool='isolation = "none"', session=f"max_sessions = {count + ROOM}",
            server=f"max_unauthenticated = {count + ROOM}\nmax_unauthenticated_per_ip = {count + ROOM}",
            tables=f"{UNLIMITED}\n{with_token(place, TENANT, TOKEN)}",
        )  # fmt: skip
        async with broker_in(place, setup) as running:
            await running.wait_settled()
            yield running.url, choice.name, TOKEN, running


class _Storm:
    """The sockets and what they saw."""

    def __init__(
        self, arguments: Any, meter: Meter, said: Greeting, running: Broker | None, talker: Beside | None
    ) -> None:
        self._arguments = arguments
        self._meter = meter
        self._said = said
        self._broker = running
        self._talker = talker
        self._turns: list[float] = []
        """Seconds of the talker's turn, without the others and beside them."""
        self._sockets: list[BareSocket] = []
        self._took = 0.0
        self._memory: list[int] = []
        """Bytes of the broker before and after."""

    async def come(self) -> None:
        """All of them."""
        self._look()
        left = iter(range(self._arguments.connections))

        async def some() -> None:
            for number in left:
                await self._one(number)

        began_at = now()
        try:
            async with anyio.create_task_group() as group:
                for _ in range(min(self._arguments.at_once, self._arguments.connections)):
                    group.start_soon(some)
        finally:
            self._took = now() - began_at

    async def _one(self, number: int) -> None:
        meter, within_s, began_at = self._meter, self._arguments.timeout, now()
        # A socket of its own address has ports of its own; somebody else's broker sees this machine's one address.
        source = f"127.0.1.{1 + number // SOURCE_PORTS}" if self._broker is not None else None
        try:
            made = await greet(self._said, within_s, source)
            self._sockets.append(made)
            await made.wait_welcome(within_s)
        except (TenantFailed, OSError) as error:
            meter.failed(error)
            return
        assert made.opened_at is not None
        assert made.welcome_at is not None
        meter.open += 1
        meter.series["connect"].add(made.opened_at - began_at)
        meter.series["welcome"].add(made.welcome_at - made.opened_at)
        meter.series["attached"].add(made.welcome_at - began_at)

    async def listen(self) -> None:
        """Time the turns of the tenant who talks.  Raises ``TenantFailed``."""
        if self._talker is not None:
            self._turns.append(await self._talker.turn_s())

    async def hold(self) -> None:
        """Silence; then a look at the broker."""
        await anyio.sleep(self._arguments.hold)
        self._look()

    def _look(self) -> None:
        if self._broker is not None:
            self._memory.append(int(status_of(self._broker.process.pid)["VmRSS"].split()[0]) * 1024)

    def tell(self) -> None:
        """The facts."""
        facts, attached = self._meter.subject.facts, len(self._meter.series["attached"])
        for name in ("turns completed", "turns not ended", "turns per second", "deltas per second"):
            facts.pop(name, None)
        lost = sum(made.welcome_at is not None and made.failure is not None for made in self._sockets)
        facts |= {
            "attached": f"{attached} of {self._arguments.connections}",
            "attached per second": round(attached / self._took, 1) if self._took else 0.0,
            "lost while idle": lost,
        }
        if len(self._memory) == 1:
            # Interrupted before the end of the silence.
            with suppress(OSError):
                self._look()
        if len(self._memory) == 2 and attached > lost:
            before, after = self._memory
            facts["broker's memory, before and with all of them idle (MiB)"] = (
                f"{before / 2**20:.1f} -> {after / 2**20:.1f}"
            )
            facts["memory of an idle socket (KiB)"] = round((after - before) / 1024 / (attached - lost), 1)

        if len(self._turns) == 2:
            alone, among = (round(seconds * 1e3, 2) for seconds in self._turns)
            facts["turn of a tenant who talks, alone and beside them (ms, p50)"] = f"{alone} -> {among}"
            facts["turns slowed by (%)"] = round((among / alone - 1) * 100, 1)

    def leave(self) -> None:
        """All of them close."""
        for made in self._sockets:
            made.leave()
