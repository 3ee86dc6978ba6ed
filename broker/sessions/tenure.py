"""A session's task: get a process when one is needed, bind it, keep it until it must go, and again.

Owner: ``broker.sessions.registry`` runs one per session.  ``async with pool.lease(...)`` in ``_lease_and_serve`` is the
whole ownership of a process.  Callers: ``broker.sessions.opening`` waits in ``wait_ready``,
``broker.sockets.connection`` attaches.  Over 300 lines because the life of a session is one loop, whose waits and ends
have to be read together.
"""

import math
import time
import uuid
from collections.abc import Callable
from functools import partial

import anyio
import structlog

from broker.config.tree import Config
from broker.errors import BrokerError, ProcessError, ResumeRefused, SpareLost
from broker.options import policy, standing
from broker.pool.pool import Pool
from broker.processes.child import Again, Lease
from broker.sessions.adoption import Adoption
from broker.sessions.bind import Bind
from broker.sessions.debug_frames import tell_debug
from broker.sessions.lobby import Lobby, told
from broker.sessions.rest import Rest
from broker.sessions.session import Session
from broker.sessions.succession import Succession
from broker.turns.reader import Reader
from protocol.codes import CloseCode, ErrorCode, FailureReason
from protocol.controls import Control, Interrupt
from protocol.errors import ClientError
from protocol.frames import State
from protocol.lines import Line
from protocol.options import Credentials, SessionOptions

log = structlog.get_logger(__name__)

IDLE_LOOK_S = 3600.0
"""Longest sleep of a session without deadlines."""
MAX_SECOND_TRIES = 2
"""Processes that nobody had and that die, or are silent, while they are bound: so many cost their tenant only time."""


class Tenure:
    """The processes of one session, one after another."""

    def __init__(
        self, session: Session, pool: Pool, config: Config, *, base: Again | None = None, again: Again | None = None
    ) -> None:
        """``base``: what the first process takes up, of a conversation that branched off another one; ``again``: what
        the next one does, of a conversation of an earlier run."""
        self.session = session
        self._pool = pool
        self._config = config
        self.limits = config.limits
        """Of the tenant, as the connection that came last found them."""
        self._wake = anyio.Event()
        self._scope: anyio.CancelScope | None = None
        self.lease: Lease | None = None
        self.processless_since = -math.inf
        """When its last process was gone with all that it had started; infinite from the wish for one on."""
        self.succession = Succession(base, again)
        self.note: Callable[[], None] = lambda: None
        """Something of what outlives the broker may have changed."""
        self.lobby = Lobby(session, self.wake, lambda: pool.is_full)
        self._completed_at_crash = -1
        self._bind = Bind(session, config.pool, self.wake)
        self._adoption = Adoption(session, self._bind, is_branch=base is not None)
        self._second_tries = 0
        self.rest = Rest(config.session, time.monotonic(), time.monotonic())
        self._has_crashed = False
        self._ends = False
        self.is_draining = False
        self.is_deleted = False
        session.wake_task = self.wake
        session.on_awaiting_first_token = pool.first_token_awaited

    def wake(self) -> None:
        """Something changed: look again."""
        self._wake.set()

    @property
    def is_live(self) -> bool:
        """A process is bound."""
        return self.session.process is not None and self.lease is not None

    @property
    def is_asleep(self) -> bool:
        """No process is bound or being bound, and one could be."""
        return self.session.process is None and not (self.is_draining or self._ends or self.is_deleted)

    # -- for connections --

    def take_options(self, options: SessionOptions, paid: Credentials | None, reader: Reader) -> list[str]:
        """Adopt hello's options; returns the names of those that are ignored.  See ``Adoption.take``."""
        is_bound = self.succession.again is not None or self.session.process is not None
        is_starting = self._scope is not None
        return self._adoption.take(options, paid, reader, is_bound=is_bound, is_starting=is_starting)

    def attach(self, reader: Reader) -> None:
        """The connection reads from now on."""
        self.session.readers.append(reader)

    async def wait_ready(self, reader: Reader) -> None:
        """Return once a process is bound.  Raises what made that impossible; a cancel gives up the place in the queue
        when nobody else waits."""
        try:
            await self.lobby.wait(reader, lambda: self.is_live)
        finally:
            self._give_up_if_alone()
            self.wake()

    def _give_up_if_alone(self) -> None:
        if self.lobby.is_nobody_there and self._scope is not None and not self.is_live:
            self._scope.cancel()

    def detach(self, reader: Reader) -> None:
        """A connection left; the clock of ``session.detach_timeout_s`` runs from the last one."""
        if reader in self.session.readers:
            self.session.readers.remove(reader)
        if not self.session.readers:
            self.rest.detached_at = time.monotonic()
            self._give_up_if_alone()
            self.wake()

    def control(self, request_id: str, control: Control, reader: Reader) -> None:
        """Carry out a client's control request, now or once there is a process for it.  Raises ``ClientError``."""
        if self.is_asleep and not isinstance(control, Interrupt):
            policy.check_control(control, self.session.policy, request_id)
            self.lobby.hold(request_id, control, reader)
        else:
            self.session.control(request_id, control, reader)

    def end(self) -> None:
        """``broker.end``: stop the process, keep the conversation, close every client with 1000."""
        self._ends = True
        self._fail_all("the session was ended")
        self.session.publish(State(state="ended", total=self.session.turns.usage.total))
        for reader in list(self.session.readers):
            reader.close_soon(CloseCode.ENDED, "ended")
        self.wake()

    def delete(self) -> None:
        """``broker.delete``: end it at once; ``run`` wipes its directory and then closes every client with 4507."""
        self.is_deleted = self.session.turns.is_closed = True
        self.session.journal.forget()
        if self.succession.directory is not None:
            self.succession.directory.is_kept = False
        self._fail_all("the session was deleted")
        self.lobby.delete()
        if self.session.process is not None:
            self.session.process.kill()
        if self._scope is not None and not self.is_live:
            self._scope.cancel()
        self.wake()

    def _fail_all(self, detail: str) -> None:
        """Every message ends here, and the process goes: a late result of its ends nothing any more."""
        self.session.terminals.fail_running(FailureReason.CANCELLED, detail)
        self.session.terminals.fail_queued(FailureReason.CANCELLED, detail)
        if self.session.process is not None:
            self.session.kill_reason = FailureReason.CANCELLED.value

    # -- the task --

    async def run(self) -> None:
        """Serve the session for as long as it is worth keeping.  Cancelled when the broker ends."""
        try:
            while not self.is_deleted and not self._is_forgotten:
                if self._is_wanted:
                    await self._try()
                else:
                    await self._sleep([])
            await self._leave_nothing()
        except Exception as error:
            self.session.terminals.fail_for(error)
            raise
        finally:
            self.lobby.give_up(BrokerError(ErrorCode.INTERNAL, "the session has ended", close=CloseCode.INTERNAL))
            self.session.detach_process(FailureReason.DRAINING, "the broker is stopping")
            self.session.terminals.fail_queued(FailureReason.CANCELLED, "the broker is stopping")

    @property
    def _is_forgotten(self) -> bool:
        """A session that never had a process and that nobody waits for leaves nothing behind."""
        return self.succession.again is None and self.lobby.is_empty

    async def _leave_nothing(self) -> None:
        """Wipe what is on disk, now that no process of the session lives, and tell those who are attached."""
        if self.succession.directory is not None:
            self.succession.directory.is_kept = False  # a process that is still on its way out wipes once more
            is_gone = await anyio.to_thread.run_sync(self.succession.directory.wipe)
            if not is_gone:
                log.error("session.not_wiped", session=self.session.key[2], path=str(self.succession.directory.root))
        for reader in list(self.session.readers):
            reader.close_soon(CloseCode.SESSION_DELETED, "session_deleted")

    @property
    def _is_wanted(self) -> bool:
        if self._ends:  # for who was there; who came since is served
            self._ends = self._has_crashed = False
        if self.is_draining:
            return False
        if self.lobby.is_process_wanted or self.session.turns.queued_ids:
            return True
        return self._has_crashed and any(reader.is_controller for reader in self.session.readers)

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
        # Caught or not: it may have come while the last process was waited for.  Who came since keeps the attempt.
        if scope.cancel_called and not self.lobby.arriving:
            self.lobby.give_up(BrokerError(ErrorCode.INTERNAL, "given up", close=CloseCode.INTERNAL))

    def _failed(self, error: Exception) -> None:
        if isinstance(error, SpareLost):
            self.session.metrics.process_lost(error.pool)
            log.warning("session.spare_lost", session=self.session.key[2], error=error.detail)
            self._second_tries += 1
            if self._second_tries <= MAX_SECOND_TRIES:
                return  # the wish stands, so the task begins again
        self._second_tries = 0
        if isinstance(error, ClientError | TimeoutError):
            self._adoption.take_back()
        what = told(error)
        log.warning("session.no_process", session=self.session.key[2], code=what.code.value, error=what.message)
        self.lobby.fail(what)
        self.session.terminals.fail_queued(FailureReason.CANCELLED, "no process could be had: nothing was written")

    async def _hold(self) -> None:
        """Lease, bind and keep one process.  A transcript that cannot be resumed is given up and told, once."""
        again = self.succession.again
        try:
            await self._lease_and_serve(began_over=False)
        except ResumeRefused:
            if again is None:
                if self.succession.base is None:
                    raise
                message = "fork: the CLI cannot read the conversation"
                raise BrokerError(ErrorCode.BIND_FAILED, message, close=CloseCode.BIND_FAILED) from None
            self.succession.again = began = Again(again.directory, str(uuid.uuid4()))
            try:
                await self._lease_and_serve(began_over=True)
            finally:
                if self.succession.again is began:  # nothing came up: the old transcript may still be read another time
                    self.succession.again = again

    async def _lease_and_serve(self, *, began_over: bool) -> None:
        session, again = self.session, self.succession.now
        self.lobby.tell_position(0)
        bound = session.exchange.bound
        self.lobby.bind_credentials()
        standing.check_bound(bound, session.policy)  # also what a process is started with
        choice = self._pool.choose(bound.model, bound.spawn).having_spent(session.turns.usage.total.cost_usd)
        lease_it = self._pool.lease(
            choice, session.key[0], self.limits, again=again, on_position=self.lobby.tell_position
        )
        lease: Lease | None = None
        self.processless_since = math.inf
        try:
            async with lease_it as lease:
                self.lobby.tell_position(0)
                lease.on_exit, lease.on_debug = self.wake, partial(tell_debug, session)
                await self._serve(lease, was_restored=self.succession.again is not None, began_over=began_over)
        finally:
            if lease is not None:  # two processes on one transcript would interleave their lines
                with anyio.CancelScope(shield=True), anyio.move_on_after(self._stop_bound):
                    await lease.process.exited.wait()
            if lease is None or lease.process.exited.is_set():
                self.processless_since = time.monotonic()

    async def _serve(self, lease: Lease, *, was_restored: bool, began_over: bool) -> None:
        session = self.session
        is_verbose = lease.launch.profile.options.verbose
        session.attach_process(
            lease.process, lease.pool, lease.start.value, lease.launch.session_id, is_verbose=is_verbose
        )
        try:
            async with self._pool.bind_turns.turn():
                try:
                    with anyio.fail_after(self._config.pool.bind_timeout_s):
                        await self._bind_process(lease)
                except TimeoutError:
                    if self._bind.is_silent:
                        raise self.succession.unheard(lease) from None
                    raise
            session.is_binding = False
            self._adoption.succeed()
            lease.launch.directory.is_kept = True
            self.lease, self._second_tries = lease, 0
            self.rest.bound(time.monotonic())
            self.succession.go_on(lease.launch.directory, session.cli_session_id)
            self.note()
            if was_restored:
                is_lost = session.turns.has_written and (began_over or not lease.found_transcript)
                reason = "resume_lost" if is_lost else "resumed"
                session.publish(State(state="restored", reason=reason, total=session.turns.usage.total))
            self.lobby.succeed()
            session.start_next()
            await self._live(lease)
        except Exception as error:
            session.terminals.fail_for(error)
            raise
        finally:
            self._unbind(lease)

    def _unbind(self, lease: Lease) -> None:
        """The process is given up or dead: whatever it left open in the session ends here."""
        session, self.lease, again = self.session, None, self.succession.again
        if again is not None and session.cli_session_id:
            self.succession.go_on(again.directory, session.cli_session_id)
        session.detach_process(*lease.process.end)
        self.note()
        lease.process.on_lines = _ignore

    async def _bind_process(self, lease: Lease) -> None:
        """Bind and wait for the answers.  Raises ``ClientError(bind_failed)``, ``ProcessError`` when it dies, or has
        died: between its death and the notice of it a spare may be leased."""
        self.lobby.bind_credentials()
        standing.check_bound(self.session.exchange.bound, self.session.policy)
        process = lease.process
        if not process.is_dead:
            self._bind.write(process, lease.launch.profile.model)
            while not (is_bound := self._bind.is_complete()) and not process.exited.is_set():
                await self._sleep([])
            if is_bound:
                return
        await process.exited.wait()
        raise self.succession.cut_short(lease)

    # -- living --

    async def _live(self, lease: Lease) -> None:
        """Keep the process until it dies, the session is ended or drained, or nobody needs it."""
        session = self.session
        while not lease.process.exited.is_set():
            now = time.monotonic()
            session.tick(now)
            self._bind.tick(now)
            self.note()
            if self._ends or self.is_deleted or (self.is_draining and session.turns.current is None):
                return
            if self.is_idle and now >= self._rests_at:
                session.publish(State(state="hibernated", total=session.turns.usage.total))
                return
            times = session.wake_times() + self._bind.wake_times
            if self.is_idle:
                times.append(self._rests_at)
            else:
                self.rest.is_asked = False
            await self._sleep(times)
        if self.is_deleted:
            return
        log.warning("session.process_died", session=session.key[2], returncode=lease.process.returncode)
        self._has_crashed = session.turns.completed > self._completed_at_crash
        self._completed_at_crash = session.turns.completed

    @property
    def is_idle(self) -> bool:
        """Nothing runs, nothing waits, nobody arrives: the process could be given back."""
        session = self.session
        is_at_rest = session.turns.is_idle and not session.occupation.is_own  # what it began itself it may end
        return is_at_rest and not self.lobby.arriving and not len(session.exchange.questions)

    @property
    def _rests_at(self) -> float:
        return self.rest.due_at(self.session.last_terminal_at, has_readers=bool(self.session.readers))

    async def _sleep(self, times: list[float]) -> None:
        """Until something changes, or the first of ``times``, or the replay log expires."""
        session, now = self.session, time.monotonic()
        if not session.readers and session.log.size:
            expires = self.rest.log_ends_at(session.last_terminal_at, self._config.replay.seconds)
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


def _ignore(lines: list[Line]) -> None:
    """Nobody listens to a process that was given up."""
