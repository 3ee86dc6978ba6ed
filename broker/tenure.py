"""A session's task: get a process when one is needed, bind it, keep it until it must go, and again.

Owner: ``broker.registry`` runs one per session.  ``async with pool.lease(...)`` in ``_lease_and_serve`` is the whole
ownership of a process.  Callers: ``broker.connection`` waits in ``wait_ready``.  Over 300 lines because the life of a
session is one loop, whose waits and ends have to be read together.
"""

import time
import uuid

import anyio
import msgspec
import structlog
from msgspec import UNSET

from broker.bind import Bind
from broker.binding import Bound
from broker.child import Again, Lease
from broker.config import Config
from broker.errors import BrokerError, ProcessError, ResumeRefused
from broker.exchange import Reader
from broker.pool import Pool
from broker.session import Session
from protocol.codes import CloseCode, ErrorCode, FailureReason
from protocol.errors import ClientError
from protocol.frames import State, Waiting
from protocol.lines import Line
from protocol.options import Credentials, SessionOptions

log = structlog.get_logger(__name__)

IDLE_LOOK_S = 3600.0
"""Longest sleep of a session without deadlines."""


class Attempt:
    """One try to get and bind a process; connections wait for its outcome."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.error: Exception | None = None

    def settle(self, error: Exception | None = None) -> None:
        """Let the waiting connections go on; harmless when settled."""
        if not self.done.is_set():
            self.error = error
            self.done.set()


class Tenure:
    """The processes of one session, one after another."""

    def __init__(self, session: Session, pool: Pool, config: Config) -> None:
        self.session = session
        self._pool = pool
        self._config = config
        self._attempt: Attempt | None = None
        self._wake = anyio.Event()
        self._scope: anyio.CancelScope | None = None
        self.lease: Lease | None = None
        self._again: Again | None = None
        self.arriving: list[Reader] = []
        """Connections that wait for this session's process; it is given up when the last one leaves."""
        self._completed_at_crash = -1
        self._position = 0
        self._before: Bound | None = None
        """What held before the options that the next process is the first to hear of."""
        self._bind = Bind(session, config.pool.mcp_bind_timeout_s, self.wake)
        self.detached_at = time.monotonic()
        self._has_crashed = False
        self._ends = False
        self.is_draining = False
        session.wake_task = self.wake
        session.on_awaiting_first_token = pool.first_token_awaited

    def wake(self) -> None:
        """Something changed: look again."""
        self._wake.set()

    @property
    def is_live(self) -> bool:
        """A process is bound."""
        return self.session.process is not None and self.lease is not None

    # -- for connections --

    def take_options(self, options: SessionOptions, paid: Credentials | None, reader: Reader) -> list[str]:
        """Adopt hello's options; returns the names of those that a bound conversation cannot change any more.

        ``paid``: the server's credential, where the policy says that the server pays.

        On a live process the changed ones are written before the next turn; a refusal is told to ``reader``.
        """
        exchange = self.session.exchange
        if paid is not None:
            options = msgspec.structs.replace(options, credentials=paid)
        has_process = self.session.process is not None
        is_bound = self._again is not None or has_process
        ignored = exchange.bound.differing(options) if is_bound else []
        before = exchange.bound.copy()
        changed = exchange.bound.merge(options, with_initialize=not is_bound)
        if options.permission_timeout_s is not UNSET:
            exchange.permission_timeout_s = options.permission_timeout_s
        if changed and has_process:
            self._bind.change(changed, reader, before)
        elif self._before is None:
            self._before = before
        return ignored

    def attach(self, reader: Reader) -> None:
        """The connection reads from now on."""
        self.session.readers.append(reader)

    async def wait_ready(self, reader: Reader) -> None:
        """Return once a process is bound.  Raises what made that impossible; a cancel gives up the place in the queue
        when nobody else waits."""
        self.arriving.append(reader)
        if self._position:
            reader.send(self._waiting(self._position))
        try:
            while not self.is_live:
                if self._attempt is None:
                    self._attempt = Attempt()
                self.wake()
                attempt = self._attempt
                await attempt.done.wait()
                if attempt.error is not None:
                    raise attempt.error
        finally:
            self.arriving.remove(reader)
            self._give_up_if_alone()
            self.wake()

    def _give_up_if_alone(self) -> None:
        is_alone = not self.arriving and not self.session.readers and not self.session.turns.queued_ids
        if is_alone and self._scope is not None and not self.is_live:
            self._scope.cancel()

    def detach(self, reader: Reader) -> None:
        """A connection left; the clock of ``session.detach_timeout_s`` runs from the last one."""
        if reader in self.session.readers:
            self.session.readers.remove(reader)
        if not self.session.readers:
            self.detached_at = time.monotonic()
            self._give_up_if_alone()
            self.wake()

    def end(self) -> None:
        """``broker.end``: stop the process, keep the conversation, close every client with 1000."""
        self._ends = True
        self.session.fail_turn(FailureReason.CANCELLED, "the session was ended")
        self.session.fail_queued(FailureReason.CANCELLED, "the session was ended")
        self.session.publish(State(state="ended"))
        for reader in list(self.session.readers):
            reader.close_soon(CloseCode.ENDED, "ended")
        self.wake()

    # -- the task --

    async def run(self) -> None:
        """Serve the session for as long as it is worth keeping.  Cancelled when the broker ends."""
        try:
            while not self._is_forgotten:
                if self._is_wanted:
                    await self._try()
                else:
                    await self._sleep([])
        finally:
            self._settle(BrokerError(ErrorCode.INTERNAL, "the session has ended", close=CloseCode.INTERNAL))
            self.session.detach_process(FailureReason.DRAINING, "the broker is stopping")
            self.session.fail_queued(FailureReason.CANCELLED, "the broker is stopping")

    @property
    def _is_forgotten(self) -> bool:
        """A session that never had a process and that nobody waits for leaves nothing behind."""
        return self._again is None and not self.arriving and not self.session.readers and self._attempt is None

    @property
    def _is_wanted(self) -> bool:
        if self.is_draining or self._ends:
            self._ends = False
            return False
        if self._attempt is not None:
            return True
        has_message = bool(self.session.turns.queued_ids)
        return has_message or (self._has_crashed and bool(self.session.readers))

    def _settle(self, error: Exception | None = None) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.settle(error)

    async def _try(self) -> None:
        """One process, from the wish for it to its end."""
        self._has_crashed = False
        with anyio.CancelScope() as scope:
            self._scope = scope
            try:
                await self._hold()
            except (BrokerError, ClientError, ProcessError, TimeoutError, OSError) as error:
                self._failed(error)
            finally:
                self._scope = None
        if scope.cancelled_caught and not self.arriving:  # who came meanwhile keeps the attempt, and it begins again
            self._settle(BrokerError(ErrorCode.INTERNAL, "given up", close=CloseCode.INTERNAL))

    def _failed(self, error: Exception) -> None:
        if isinstance(error, ClientError | TimeoutError) and self._before is not None:
            self.session.exchange.bound, self._before = self._before, None
        told = _told(error)
        log.warning("session.no_process", session=self.session.key[2], code=told.code.value, error=told.message)
        self.session.fail_queued(FailureReason.CANCELLED, "no process could be had: nothing was written")
        self._settle(told)

    async def _hold(self) -> None:
        """Lease, bind and keep one process.  A transcript that cannot be resumed is given up and told, once."""
        again = self._again
        try:
            await self._lease_and_serve(began_over=False)
        except ResumeRefused:
            if again is None:
                raise
            self._again = began = Again(again.directory, str(uuid.uuid4()))
            try:
                await self._lease_and_serve(began_over=True)
            finally:
                if self._again is began:  # nothing came up: the old transcript may still be read another time
                    self._again = again

    async def _lease_and_serve(self, *, began_over: bool) -> None:
        session, again = self.session, self._again
        self._position = 0
        lease_it = self._pool.lease(self._profile(), session.key[0], again=again, on_position=self._tell_position)
        async with lease_it as lease:
            self._position = 0
            lease.on_exit = self.wake
            await self._serve(lease, was_restored=again is not None, began_over=began_over)
        with anyio.CancelScope(shield=True), anyio.move_on_after(self._stop_bound):
            await lease.process.exited.wait()  # two processes on one transcript would interleave their lines

    async def _serve(self, lease: Lease, *, was_restored: bool, began_over: bool) -> None:
        session = self.session
        session.attach_process(lease.process, lease.profile, lease.start.value, lease.launch.session_id)
        try:
            async with self._pool.bind_turn():
                with anyio.fail_after(self._config.pool.bind_timeout_s):
                    await self._bind_process(lease)
            session.is_binding, self._before = False, None
            lease.keep_directory = True
            self.lease = lease
            self._again = Again(lease.launch.directory, session.cli_session_id)
            if was_restored:
                is_lost = session.turns.has_written and (began_over or not lease.found_transcript)
                session.publish(State(state="restored", reason="resume_lost" if is_lost else "resumed"))
            self._settle()
            session.start_next()
            await self._live(lease)
        finally:
            self._unbind(lease)

    def _unbind(self, lease: Lease) -> None:
        """The process is given up or dead: whatever it left open in the session ends here."""
        session, self.lease = self.session, None
        if self._again is not None and session.cli_session_id:
            self._again = Again(self._again.directory, session.cli_session_id)
        code = lease.process.returncode
        session.detach_process(FailureReason.CLI_EXITED, _death(code))
        lease.process.on_lines = _ignore

    def _profile(self) -> str:
        """The profile that already runs the wanted model, else ``default``, else the first."""
        profiles, model = self._pool.profiles, self.session.exchange.bound.model
        fitting = [name for name, profile in profiles.items() if model is not None and profile.model == model]
        if fitting:
            return fitting[0]
        return "default" if "default" in profiles else next(iter(profiles))

    def _tell_position(self, position: int) -> None:
        if position == self._position:
            return
        self._position = position
        for newcomer in self.arriving:
            newcomer.send(self._waiting(position))

    def _waiting(self, position: int) -> Waiting:
        return Waiting(position, "pool_full" if self._pool.is_full else "pool_empty")

    async def _bind_process(self, lease: Lease) -> None:
        """Bind and wait for the answers.  Raises ``ClientError(bind_failed)``, ``ProcessError`` when it dies."""
        self._bind.write(lease.process, self._pool.profiles[lease.profile].model)
        while not self._bind.is_complete():
            if lease.process.exited.is_set():
                code = lease.process.returncode
                kind = ResumeRefused if self._again is not None and code is not None and code > 0 else ProcessError
                raise kind(FailureReason.CLI_EXITED, f"{_death(code)} while binding")
            await self._sleep([])

    # -- living --

    async def _live(self, lease: Lease) -> None:
        """Keep the process until it dies, the session is ended or drained, or nobody needs it."""
        session = self.session
        while not lease.process.exited.is_set():
            now = time.monotonic()
            session.tick(now)
            self._bind.tick(now)
            if self._ends or (self.is_draining and session.turns.current is None):
                return
            if self._is_deserted(now):
                session.publish(State(state="hibernated"))
                return
            times = session.wake_times() + self._bind.wake_times
            if not session.readers and session.turns.is_idle:
                times.append(self.detached_at + self._config.session.detach_timeout_s)
            await self._sleep(times)
        log.warning("session.process_died", session=session.key[2], returncode=lease.process.returncode)
        self._has_crashed = session.turns.completed > self._completed_at_crash
        self._completed_at_crash = session.turns.completed

    def _is_deserted(self, now: float) -> bool:
        if self.session.readers or self.arriving or not self.session.turns.is_idle:
            return False
        return now >= self.detached_at + self._config.session.detach_timeout_s

    async def _sleep(self, times: list[float]) -> None:
        """Until something changes, or the first of ``times``, or the replay log expires."""
        session, now = self.session, time.monotonic()
        if not session.readers and session.log.size:
            expires = max(self.detached_at, session.last_terminal_at) + self._config.replay.seconds
            if now >= expires and session.turns.is_idle:
                session.log.expire()
            elif session.turns.is_idle:
                times = [*times, expires]
        with anyio.move_on_after(max(0.0, min(times, default=now + IDLE_LOOK_S) - now)):
            await self._wake.wait()
        self._wake = anyio.Event()

    @property
    def _stop_bound(self) -> float:
        return self._config.stop.eof_grace_s + self._config.stop.term_grace_s + 5.0


def _told(error: Exception) -> BrokerError | ClientError:
    """What the waiting connections are told of a failure."""
    if isinstance(error, BrokerError | ClientError):
        return error
    if isinstance(error, TimeoutError):
        return BrokerError(ErrorCode.BIND_FAILED, "pool.bind_timeout_s is over", close=CloseCode.BIND_FAILED)
    text = error.detail if isinstance(error, ProcessError) else "the process could not be started"
    return BrokerError(ErrorCode.POOL_UNAVAILABLE, text, close=CloseCode.POOL_UNAVAILABLE, retry_after_ms=1000)


def _death(returncode: int | None) -> str:
    if returncode is None:
        return "stopped by the broker"
    return f"signal {-returncode}" if returncode < 0 else f"exit {returncode}"


def _ignore(lines: list[Line]) -> None:
    """Nobody listens to a process that was given up."""
