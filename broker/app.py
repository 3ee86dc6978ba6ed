"""The program: builds the parts, runs their tasks in one group, drains on a signal.

Caller: ``broker.__main__``.  Order of opening: the CLI answers ``--version``, then the ports, then spares are started.
Order of ending: no new sockets, turns end or the deadline comes, sessions, children, ports.
"""

import gc
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import msgspec
import structlog
from msgspec.structs import replace

from broker import __version__, scrub
from broker.admin import admin_port
from broker.auth import Authenticator
from broker.config import Config, endpoint
from broker.errors import ConfigError
from broker.http import AdminSite, PublicSite
from broker.launcher import Launcher, find_cli
from broker.listing import Listing
from broker.metrics import Metrics
from broker.orphans import become_subreaper, kill_adopted
from broker.pool import Pool
from broker.registry import Registry
from broker.server import Server
from broker.sleepers import Sleepers
from broker.stores import StoreFailed
from broker.stores.sqlite import SqliteStore

log = structlog.get_logger(__name__)


class App:
    """All parts of a running broker.  Implements ``broker.http.Readiness``."""

    def __init__(self, config: Config, cli: str) -> None:
        """Build everything that opens no port.  Raises ``CliMissing``, ``ConfigError``, ``OSError``."""
        self.config = config
        found = find_cli(config.cli.command if cli == "auto" else cli)
        self.metrics = Metrics(config.pool.profiles)
        self.metrics.built(found.version)
        self._launcher = Launcher(found, Path(config.state.dir), config.cli.env, config.pool.user_ids)
        self._launcher.claim_directory()
        self._store = _opened_store(Path(config.state.dir) / INDEX)
        if self._store.was_damaged:
            log.error("store.damaged", kept="index.db.damaged-*", effect="its conversations are not known any more")
        self._launcher.sweep_directories(self._kept_directories())
        self._launcher.prepare(config)
        is_scrubbed = self._launcher.is_scrubbed
        self.config = config = replace(config, cli=replace(config.cli, scrub="on" if is_scrubbed else "off"))
        self.pool_ = Pool(config, self._launcher, self.metrics)
        self.auth = Authenticator(config)
        self.registry = Registry(config, self.pool_, self.metrics, self._store)
        self._public = PublicSite(config, self, listing=Listing(self.auth, self.registry, self.metrics))
        self._admin = AdminSite(config, self, self.metrics)
        self.server = Server(config, self.registry, self.pool_, self.auth, self.metrics, self._public)

    # -- readiness --

    def ready(self) -> tuple[bool, str]:
        """Whether new sessions are welcome."""
        if self.server.is_draining:
            return False, "draining"
        return (True, "") if self.pool_.is_ready else (False, "no process is warm yet")

    def pool(self) -> dict[str, dict[str, int]]:
        """Processes by profile and state."""
        return self.pool_.statistics()

    def is_draining(self) -> bool:
        """Whether the program is on its way out."""
        return self.server.is_draining

    # -- running --

    async def run(self, port_file: Path | None) -> None:
        """Serve until SIGTERM or SIGINT; a second one skips the waiting.  Raises ``OSError`` when a port is taken."""
        become_subreaper()
        self._tell_protection()
        async with admin_port(self._admin, self.config.admin.listen) as admin:
            port = await self.server.open()
            if port_file is not None:
                _write_ports(port_file, port, admin)
            print(f"chat page: {_page(self.config.server.listen, port)}", flush=True)
            log.info("broker.listening", version=__version__, listen=port, admin=admin,
                     cli=self.pool_.cli_version, simulated=self.pool_.is_simulated)  # fmt: skip
            gc.collect()
            gc.freeze()  # what was made so far stays: later collections need not look at it
            async with anyio.create_task_group() as ports:
                ports.start_soon(self.server.run)
                await self._run_until_signal()
                ports.cancel_scope.cancel()
        killed = await kill_adopted()
        self._launcher.sweep_directories(self._kept_directories())
        self._store.close()
        log.info("broker.ended", orphans_killed=killed)

    def _kept_directories(self) -> set[str] | None:
        """The folders of conversations that are kept; None after the loss of the index, which alone could tell."""
        return None if self._store.was_damaged else Sleepers(self._store).directories

    def _tell_protection(self) -> None:
        isolation, reason = self._launcher.isolation, self._launcher.unscrubbed_because
        log.info("broker.isolation", mode=isolation.mode, processes_hidden=isolation.hides, own_tmp=isolation.own_tmp,
                 scrub=not reason)  # fmt: skip
        if reason:
            log.warning("broker.unscrubbed", reason=reason, effect=scrub.EFFECT, setting="policy.unscrubbed_secrets")

    async def _run_until_signal(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with anyio.create_task_group() as haste, anyio.create_task_group() as pool_group:
                pool_group.start_soon(self.pool_.run)
                pool_group.start_soon(self.auth.run)
                async with anyio.create_task_group() as sessions:
                    sessions.start_soon(self.registry.run)
                    number = await anext(signals)
                    log.info("broker.draining", signal=signal.Signals(number).name)
                    with anyio.CancelScope() as drain:
                        haste.start_soon(self._hurry, signals, drain)
                        await self._drain()
                    sessions.cancel_scope.cancel()
                pool_group.cancel_scope.cancel()
                haste.cancel_scope.cancel()

    async def _hurry(self, signals: AsyncIterator[signal.Signals], drain: anyio.CancelScope) -> None:
        """A second signal: no waiting for turns, no stop ladder."""
        await anext(signals)
        log.info("broker.second_signal")
        drain.cancel()
        self.pool_.kill_all()

    async def _drain(self) -> None:
        self.server.stop_listening()
        self.server.turn_away()
        await self.registry.drain(self.config.stop.drain_timeout_s)
        with anyio.move_on_after(CLOSE_BOUND_S):
            await self.server.wait_empty()


CLOSE_BOUND_S = 5.0
"""For closing handshakes after a drain; what is left is aborted."""


INDEX = "index.db"


def _opened_store(path: Path) -> SqliteStore:
    try:
        return SqliteStore(path)
    except StoreFailed as error:
        raise ConfigError("state.dir", f"the index of conversations cannot be used: {error}") from error


async def run(config: Config, cli: str, port_file: Path | None) -> None:
    """Run a broker to its end; see ``App``."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the loop listens: as Ctrl-C, and no child stays
    await App(config, cli).run(port_file)


def _page(listen: str, port: int) -> str:
    """The chat page's address, for the person at the terminal."""
    host = endpoint(listen)[0]
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104 - compared
    return f"http://{host}:{port}/"


def _write_ports(path: Path, listen: int, admin: int) -> None:
    """Tell the chosen ports; renamed into place, so that a reader sees all of it or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(msgspec.json.encode({"listen": listen, "admin": admin}))
    part.replace(path)
