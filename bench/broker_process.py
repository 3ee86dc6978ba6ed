"""A broker of the bench's own: a configuration, a subprocess on a free port, and its ``/health``.

Callers: every sub-command that is not pointed at somebody else's broker.
"""

import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.request import urlopen

import anyio

from bench.children import Child, ChildFailed, child
from bench.clock import now

ROOT: Final = Path(__file__).resolve().parent.parent
PROFILE: Final = "default"
HEALTH_TIMEOUT_S: Final = 5.0
HEALTH_POLL_S: Final = 0.05
PASSING_STATES: Final = ("starting", "leased", "stopping")


@dataclass(frozen=True)
class Setup:
    """How the broker is configured.  Everything else keeps its default."""

    cli: str
    """``simulated`` or a path."""
    warm: int
    limit: int | None = None
    """``profile.max``: with as many as ``warm`` no spare is started while tenants hold theirs."""
    processes: int | None = None
    """``pool.max_processes``; whoever is idle then makes room at once."""
    env: Mapping[str, str] | None = None
    """Added to the environment of every CLI."""
    session: str = "detach_timeout_s = 0\nmin_resident_s = 0"
    """The table ``[session]``.  By default the next arrival finds no process of the last one: it is stopped as soon as
    its tenant has left."""
    server: str = ""
    """More of the table ``[server]``."""
    pool: str = ""
    """More of the table ``[pool]``."""
    tables: str = ""
    """More of the configuration: whole tables that are not among the others."""

    def toml(self, state: Path) -> str:
        """The configuration file."""
        room = max(2 * self.warm, 64) if self.processes is None else self.processes
        lines = [
            f'[server]\nlisten = "127.0.0.1:0"\n{self.server}\n[admin]\nlisten = "127.0.0.1:0"',
            f"[state]\ndir = {json.dumps(str(state))}",
            f"[session]\n{self.session}",
            f"[pool]\nmax_processes = {room}\nqueue_timeout_s = 120\nstart_timeout_s = 120\nbind_timeout_s = 60",
            self.pool,
            f"[pool.profiles.{PROFILE}]\nwarm = {self.warm}",
        ]
        if self.limit is not None:
            lines.append(f"max = {self.limit}")
        lines.append(self.tables)
        lines += ["[cli.env]", *(f"{name} = {json.dumps(value)}" for name, value in (self.env or {}).items())]
        return "\n".join(lines) + "\n"


class Broker:
    """A running broker.  Made by ``broker``."""

    def __init__(self, process: Child, port: int, admin: int, setup: Setup) -> None:
        self.process = process
        self.port = port
        self._admin = admin
        self._setup = setup

    @property
    def url(self) -> str:
        """Where tenants connect."""
        return f"ws://127.0.0.1:{self.port}/v1/chat/ws"

    async def wait_settled(self, within_s: float = 120.0) -> None:
        """Until every spare is warm and no process is starting, leased or stopping.  Raises ``ChildFailed``."""
        deadline = now() + within_s
        while True:
            self.process.check()
            health = await anyio.to_thread.run_sync(self._health)
            if health is not None and self._is_settled(health):
                return
            if now() > deadline:
                tail = self.process.log_tail()
                raise ChildFailed(f"the pool did not settle within {within_s:g} s: {health}\n{tail}")
            await anyio.sleep(HEALTH_POLL_S)

    def _is_settled(self, health: dict[str, int]) -> bool:
        return health["warm"] >= self._setup.warm and not any(health[state] for state in PASSING_STATES)

    def _health(self) -> dict[str, int] | None:
        with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=HEALTH_TIMEOUT_S) as answer:
            found = json.load(answer)
        # Between the first spare and the broker's own note that it is ready, a handshake would still be refused.
        return dict(found["pool"][PROFILE]) if found["status"] == "ok" else None

    def metric(self, name: str) -> float:
        """A metric without labels, as the admin listener tells it.  Blocking.  Raises ``OSError``, ``KeyError``."""
        with urlopen(f"http://127.0.0.1:{self._admin}/metrics", timeout=HEALTH_TIMEOUT_S) as answer:
            lines = answer.read().decode().splitlines()
        return float(dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))[name])


def with_token(place: Path, tenant: str, token: str) -> str:
    """Write ``tenants.toml`` with one tenant; returns the table of the configuration that names it."""
    hashed = sha256(token.encode()).hexdigest()
    (place / "tenants.toml").write_text(f'[tenants.{tenant}]\ntokens = [{{hash = "sha256:{hashed}", subject = "s"}}]\n')
    return '[auth]\nmode = "tokens"\nfile = "tenants.toml"'


@asynccontextmanager
async def broker(setup: Setup) -> AsyncIterator[Broker]:
    """Start a broker on a free port; it is drained and stopped when the block ends.

    Raises ``ChildFailed`` when it does not start.
    """
    with TemporaryDirectory(prefix="bench-broker-") as folder:
        async with broker_in(Path(folder), setup) as running:
            yield running


@asynccontextmanager
async def broker_in(place: Path, setup: Setup) -> AsyncIterator[Broker]:
    """The same in a directory of the caller's, which may hold the state of an earlier run; its log goes on there."""
    config, ports = place / "broker.toml", place / "ports.json"
    config.write_text(setup.toml(place / "state"))
    ports.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "broker", "serve", "--config", str(config), "--cli", setup.cli,
            "--port-file", str(ports)]  # fmt: skip
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BROKER__")}
    environ["PYTHONPATH"] = str(ROOT)
    async with child("the broker", argv, place / "broker.log", environ) as process:
        found = json.loads(await process.wait_file(ports))
        yield Broker(process, int(found["listen"]), int(found["admin"]), setup)
