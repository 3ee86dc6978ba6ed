"""What a load is sent to: a broker that runs already, or one of the bench's own with the simulated CLI.

Callers: ``run``, ``sweep``, ``ramp``, ``soak``.
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench import clis
from bench.broker_process import Broker, Setup, broker_in
from bench.children import ChildFailed
from bench.secrets import without_user
from bench.traffic.descriptors import make_room

SPARES: Final = 32
UNLIMITED: Final = "[limits]\nmessages_per_second = 1000000\nmessages_burst = 1000000"
"""A session without think time says more than 20 messages a second when the answers are short."""


@dataclass(frozen=True)
class Target:
    """Where it is, and the broker itself when it is one of the bench's own."""

    url: str
    name: str
    broker: Broker | None = None
    sessions: Path | None = None
    """Directories of its sessions."""

    def gone(self) -> list[str]:
        """A line when a broker of the bench's own has ended before its time."""
        try:
            if self.broker is not None:
                self.broker.process.check()
        except ChildFailed as error:
            return [str(error)]
        return []


@asynccontextmanager
async def target(arguments: argparse.Namespace, sessions: int) -> AsyncIterator[Target]:
    """By ``--url`` and ``--warm``, for so many sessions at a time.  Raises ``ChildFailed``."""
    make_room(sessions)
    if arguments.url is not None:
        yield Target(arguments.url, without_user(arguments.url))
        return
    choice = clis.choice("simulated")
    warm = min(sessions, SPARES) if arguments.warm is None else arguments.warm
    with TemporaryDirectory(prefix="bench-broker-") as folder:
        place = Path(folder)
        # Spares for all: none is started while tenants hold theirs, as that would be measured, too.
        limit = warm if warm >= sessions else None
        setup = Setup(choice.setting, warm, limit=limit, processes=max(2 * warm, 64, sessions + warm), tables=UNLIMITED)
        async with broker_in(place, setup) as running:
            await running.wait_settled()
            yield Target(running.url, choice.name, running, place / "state" / "sessions")
