"""The program: builds the parts, runs their tasks in one group, drains on a signal.

Caller: ``broker.__main__``.  Order of opening: the CLI answers ``--version``, then the ports, then spares are started.
Order of ending: no new sockets and no spares, turns end or the deadline comes, sessions and children, ports; by the
clock of ``broker.drain``, whatever hangs.  Over 300 lines because both orders are read in one place.
"""

import errno
import gc
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
import msgspec
import structlog
from msgspec.structs import replace

from broker import __version__
from broker.auth import Authenticator
from broker.config.places import place
from broker.config.reload import Plan, plan
from broker.config.settings import Settings
from broker.config.tree import Config, contradictions, endpoint
from broker.drain import Drain
from broker.errors import ConfigError
from broker.last_resort import LastResort
from broker.metrics import Metrics
from broker.notify import Notify
from broker.pool.pool import Pool
from broker.processes import scrub
from broker.processes.launcher import Launcher
from broker.processes.memory_watch import MemoryWatch
from broker.processes.orphans import become_subreaper, kill_adopted, kill_children
from broker.processes.program import find_cli
from broker.sessions.registry import Registry
from broker.sessions.sleepers import Sleepers
from broker.sessions.stores import StoreFailed
from broker.sessions.stores.sqlite import SqliteStore
from broker.sockets.admin import admin_door, admin_port
from broker.sockets.door import Door
from broker.sockets.headroom import descriptor_limit, first_refused
from broker.sockets.http import AdminSite, PublicSite
from broker.sockets.listeners import Listeners
from broker.sockets.listing import Listing
from broker.sockets.server import Server

log = structlog.get_logger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
READY_LOOK_S = 0.05
ALREADY_JUDGED = {"pool.isolation"}
"""Keys that count as written when what a reload leads to is judged; whether they are was found out before."""


class App:
    """All parts of a running broker.  Implements ``broker.sockets.http.Readiness``."""

    def __init__(self, config: Config, cli: str, notify: Notify, reread: Callable[[], Config]) -> None:
        """Build everything that opens no port.  Raises ``CliMissing``, ``ConfigError``, ``OSError``."""
        self._notify = notify
        self._reread, self._scrub_asked = reread, config.cli.scrub
        self._drain = Drain(0.0, 0.0)
        self._last_resort = LastResort()
        self._is_told_ready = False
        self._orphans_killed = 0
        found = find_cli(config.cli.command if cli == "auto" else cli)
        self.metrics = Metrics(config.pool.profiles)
        self.metrics.built(found.version)
        self._launcher = Launcher(found, Path(config.state.dir), config.cli.env, config.pool.user_ids)
        self._launcher.claim_directory()
        self._launcher.cgroups.on_failed = self.metrics.process_fault
        self._store = _opened_store(Path(config.state.dir) / INDEX)
        self._sweep_at_start()
        self._launcher.prepare(config)
        is_scrubbed = self._launcher.is_scrubbed
        self._scrub: Literal["on", "off"] = "on" if is_scrubbed else "off"
        self.settings = settings = Settings(replace(config, cli=replace(config.cli, scrub=self._scrub)))
        self.pool_ = Pool(settings, self._launcher, self.metrics)
        self._memory = MemoryWatch(settings, self.metrics, self.pool_.processes)
        self.auth = Authenticator(settings)
        self.registry = Registry(settings, self.pool_, self.metrics, self._store)
        self._public = PublicSite(settings, self, listing=Listing(self.auth, self.registry, self.metrics))
        self._admin = AdminSite(settings, self, self.metrics)
        door = Door("public", self.metrics, self._first_refused)
        self.server = Server(settings, self.registry, self.pool_, self.auth, self.metrics, self._public, door)
        self._admin_door = admin_door(self.metrics, self._first_refused)

    def _first_refused(self) -> int | None:
        """By what holds now: the pool's limit changes with the configuration."""
        return first_refused(descriptor_limit(), self.pool_.limit)

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

    async def run(self, port_file: Path | None, listeners: Listeners) -> None:
        """Serve until SIGTERM or SIGINT; a second one skips the waiting.  Raises ``OSError`` when a port is taken."""
        self._tell_protection()
        with anyio.open_signal_receiver(*SIGNALS) as signals:
            listen = self.settings.now.admin.listen
            async with admin_port(self._admin, listen, listeners.admin, self._admin_door) as admin:
                port = await self.server.open(listeners.public)
                self._tell_ports(port_file, port, admin)
                gc.collect()
                gc.freeze()  # what was made so far stays: later collections need not look at it
                async with anyio.create_task_group() as ports:
                    ports.start_soon(self.server.run)
                    ports.start_soon(self._tell_supervisor)
                    await self._run_until_signal(signals)
                    ports.cancel_scope.cancel()
            self._store.close()
            log.info("broker.ended", orphans_killed=self._orphans_killed)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # it is over: nothing is left to hurry

    def _tell_ports(self, port_file: Path | None, port: int, admin: int) -> None:
        if port_file is not None:
            with place("--port-file", "a file in a folder that can be written to"):
                _write_ports(port_file, port, admin)
        print(f"chat page: {_page(self.settings.now.server.listen, port)}", flush=True)
        log.info("broker.listening", version=__version__, listen=port, admin=admin,
                 cli=self.pool_.cli_version, simulated=self.pool_.is_simulated)  # fmt: skip

    def _sweep_at_start(self) -> None:
        """Remove what an earlier run left and is no conversation's, as far as the index knows all of them."""
        sleepers = Sleepers(self._store, self.metrics)
        for tenant, _, session in sleepers.unreadable:
            log.error("session.unreadable", tenant=tenant, session=session)
        is_whole = not (self._store.was_damaged or self._store.was_missing or sleepers.unreadable)
        aside = self._launcher.sweep_directories(sleepers.directories, is_whole=is_whole)
        if self._store.was_damaged:
            log.error("store.damaged", kept="index.db.damaged-*", effect="its conversations are not known any more")
        if aside is not None:
            log.error("store.incomplete", folders=str(aside), effect="what the index does not name is kept there")

    def _tell_protection(self) -> None:
        isolation, reason = self._launcher.isolation, self._launcher.unscrubbed_because
        log.info("broker.isolation", mode=isolation.mode, processes_hidden=isolation.hides, own_tmp=isolation.own_tmp,
                 scrub=not reason)  # fmt: skip
        obstacle = self._launcher.cgroups.obstacle
        log.info("broker.cgroup", used=not obstacle, reason=obstacle)
        if reason:
            log.warning("broker.unscrubbed", reason=reason, effect=scrub.EFFECT, setting="policy.unscrubbed_secrets")

    async def _tell_supervisor(self) -> None:
        """READY once, when new sessions are welcome; then signs of life for as long as the event loop turns."""
        if not self._notify.address:
            return
        async with anyio.create_task_group() as group:
            if self._notify.watchdog_s:
                group.start_soon(self._tell_alive, self._notify.watchdog_s / 2)
            self._notify.status("waiting for the first warm process")
            while not self.ready()[0]:  # noqa: ASYNC110 - at the start, once
                await anyio.sleep(READY_LOOK_S)
            self._is_told_ready = True
            self._notify.ready("serving")

    async def _tell_alive(self, every_s: float) -> None:
        while True:
            self._notify.alive()
            await anyio.sleep(every_s)

    async def _run_until_signal(self, signals: AsyncIterator[signal.Signals]) -> None:
        async with anyio.create_task_group() as haste:
            async with anyio.create_task_group() as pool_group:
                pool_group.start_soon(self.pool_.run)
                pool_group.start_soon(self._memory.run)
                pool_group.start_soon(self.auth.run)
                async with anyio.create_task_group() as sessions:
                    sessions.start_soon(self.registry.run)
                    number = await self._end_is_asked_for(signals)
                    self._begin_drain(number)
                    with anyio.CancelScope() as waiting:
                        haste.start_soon(self._hurry, signals, waiting)
                        haste.start_soon(self._kill_late)
                        await self.registry.drain(self._drain.turns_s)
                    sessions.cancel_scope.cancel()
                pool_group.cancel_scope.cancel()
            async with anyio.create_task_group() as rest:
                rest.start_soon(self._sweep)
                with anyio.move_on_after(max(0.0, self._drain.cuts_at - time.monotonic())):
                    await self.server.wait_empty()
            haste.cancel_scope.cancel()

    async def _sweep(self) -> None:
        """Of the sessions no process is left, and no file but what is kept."""
        self._orphans_killed = await kill_adopted()
        kept: set[str] | None = None
        try:
            kept = Sleepers(self._store, self.metrics).directories
        except StoreFailed as error:
            log.warning("store.failed", operation="sweep", error=str(error))
        await anyio.to_thread.run_sync(self._launcher.sweep_directories, kept)

    async def _end_is_asked_for(self, signals: AsyncIterator[signal.Signals]) -> signal.Signals:
        while (number := await anext(signals)) == signal.SIGHUP:
            self._reload()
        return number

    def _reload(self) -> None:
        """Read the configuration again.  A mistake in it changes nothing."""
        was_ready = self._is_told_ready
        if was_ready:
            self._notify.reloading("reading the configuration")
        try:
            found = self._planned()
        except ConfigError as error:
            log.warning("config.refused", key=error.path, reason=error.message, allowed=error.allowed)
        except OSError as error:  # the working directory is gone
            log.warning("config.refused", key="", reason=str(error), allowed="")
        else:
            self.settings.now = found.applied
            self.auth.reread()
            self.pool_.reconsider()
            if found.ignored:
                log.warning("config.ignored", keys=found.ignored, reason="they need a restart")
            log.info("config.reloaded", changed=found.changed)
        if was_ready:
            self._notify.ready("serving")

    def _planned(self) -> Plan:
        """What the files say now, judged as at a start.  Raises ``ConfigError``."""
        new = self._reread()
        if new.cli.scrub == self._scrub_asked:  # what was found out at the start holds
            new = replace(new, cli=replace(new.cli, scrub=self._scrub))
        found = plan(self.settings.now, new)
        # Once more for what becomes of it: a new value may contradict an old one that has to stay.
        for error in contradictions(found.applied, ALREADY_JUDGED):
            raise error
        Authenticator(Settings(found.applied))
        return found

    def _begin_drain(self, number: signal.Signals) -> None:
        """Nobody new from here on; who has no turn goes at once."""
        turns_s = self.settings.now.stop.drain_timeout_s
        self._drain = Drain(time.monotonic(), turns_s)
        self._last_resort.arm(self._drain.gives_up_at - time.monotonic())  # first: a log line may hang already
        log.info("broker.draining", signal=number.name)
        self._notify.stopping(f"draining, for {turns_s:g} s at most")
        self.server.stop_listening()
        self.server.turn_away()
        self.pool_.close()

    async def _hurry(self, signals: AsyncIterator[signal.Signals], waiting: anyio.CancelScope) -> None:
        """A second signal: no waiting for turns, no stop ladder."""
        while await anext(signals) == signal.SIGHUP:
            log.info("broker.signal_ignored", signal="SIGHUP")
        self._drain = Drain(time.monotonic(), 0.0)
        self._last_resort.arm(self._drain.gives_up_at - time.monotonic())
        log.info("broker.second_signal")
        waiting.cancel()
        self.pool_.kill_all()

    async def _kill_late(self) -> None:
        """The stop ladder's graces hold within the drain's own bound only."""
        await anyio.sleep(max(0.0, self._drain.kills_at - time.monotonic()))
        self.pool_.kill_all()


async def run(
    config: Config,
    cli: str,
    port_file: Path | None,
    listeners: Listeners,
    notify: Notify,
    reread: Callable[[], Config],
) -> None:
    """Run a broker to its end; see ``App``.  ``reread`` loads the configuration once more, for SIGHUP."""
    for number in SIGNALS:  # until the loop listens: as Ctrl-C, and no child stays
        signal.signal(number, _nothing if number == signal.SIGHUP else signal.default_int_handler)
    become_subreaper()
    try:
        app = App(config, cli, notify, reread)
    except KeyboardInterrupt:
        kill_children()
        raise
    await app.run(port_file, listeners)


INDEX = "index.db"


def _opened_store(path: Path) -> SqliteStore:
    try:
        return SqliteStore(path)
    except StoreFailed as error:
        message = f"the index of conversations cannot be used: {error}"
        if error.is_passing:  # no mistake: another start may find room, or nobody who holds it
            raise OSError(errno.EAGAIN, f"state.dir: {message}") from error
        raise ConfigError("state.dir", message) from error


def _nothing(_number: int, _frame: object) -> None:
    """SIGHUP before anything runs."""


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
