"""Who waits for a session's process, and what they are told meanwhile: connections that arrive, attached ones whose
message or request wants a process, and control requests that are held for it.

Owner: one ``broker.sessions.tenure.Tenure``, whose task settles each attempt.  ``wait`` runs in the connections' tasks;
all else is synchronous.
"""

from collections.abc import Callable

import anyio

from broker.errors import BrokerError, ProcessError
from broker.options import policy
from broker.options.bound import Bound
from broker.sessions.session import Session
from broker.turns.controls import MAX_IN_FLIGHT
from broker.turns.reader import Reader
from protocol.codes import RETRYABLE_ERRORS, CloseCode, ErrorCode
from protocol.controls import Control, SetCredentials
from protocol.errors import ClientError, ConnectionRefused
from protocol.frames import ControlReply, ControlReplyBody, Error, Waiting


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


class Lobby:
    """One session's.  ``wake`` makes its task look again; ``is_pool_full`` tells what is waited for."""

    def __init__(self, session: Session, wake: Callable[[], None], is_pool_full: Callable[[], bool]) -> None:
        self._session = session
        self._wake = wake
        self._is_pool_full = is_pool_full
        self._attempt: Attempt | None = None
        self._position = 0
        self._held: list[tuple[str, Control, Reader]] = []
        self._unbound: Bound | None = None
        self._bound: Bound | None = None
        """What held before the credentials of held requests were bound for the coming process, and with them."""
        self.arriving: list[Reader] = []
        """Connections that wait for the process; it is given up when the last one leaves."""

    @property
    def is_process_wanted(self) -> bool:
        """Somebody waits for it."""
        return self._attempt is not None or bool(self._held)

    @property
    def is_empty(self) -> bool:
        """Nobody is attached, nobody arrives, nothing is left to be done."""
        is_unused = not self.arriving and not self._session.readers and not self.is_process_wanted
        return is_unused and self._session.turns.is_idle

    @property
    def is_nobody_there(self) -> bool:
        """Nobody would get the process, and no message waits for it."""
        return not self.arriving and not self._session.readers and not self._session.turns.queued_ids

    async def wait(self, reader: Reader, is_live: Callable[[], bool]) -> None:
        """Return once a process is bound.  Raises what made that impossible; a cancel gives up the place."""
        self.arriving.append(reader)
        if self._position:
            reader.send(self._waiting())
        try:
            while not is_live():
                if self._attempt is None:
                    self._attempt = Attempt()
                self._wake()
                attempt = self._attempt
                await attempt.done.wait()
                if attempt.error is not None:
                    raise attempt.error
        finally:
            self.arriving.remove(reader)

    # -- control requests that no process is there for --

    def hold(self, request_id: str, control: Control, reader: Reader) -> None:
        """Keep a control request until a process is bound.  Raises ``ClientError`` when too many are kept."""
        for at, (held, kept, other) in enumerate(self._held):
            if reader.instance and held == request_id and other.instance == reader.instance:
                self._held[at] = (held, kept, reader)  # the latest connection of the client is the one that is there
                return
        if len(self._held) >= MAX_IN_FLIGHT:
            message = f"{MAX_IN_FLIGHT} control requests are in flight"
            raise ClientError(ErrorCode.RATE_LIMITED, message, ref=request_id)
        self._held.append((request_id, control, reader))
        self._wake()

    def bind_credentials(self) -> None:
        """A process is about to be bound: a credential that is held for it is bound at once, not after an old one.

        It is told once more, and answered, when the process is there.
        """
        bound = self._session.exchange.bound
        if self._unbound is None:
            self._unbound = bound.copy()
        for request_id, control, reader in self._held:
            if isinstance(control, SetCredentials) and reader in self._session.readers:
                try:
                    policy.check_control(control, self._session.policy, request_id)
                except ClientError:
                    continue  # the reply says so
                bound.set_credentials(control.credentials)
        self._bound = bound.copy()

    def _unbind_credentials(self) -> None:
        """No process was bound: what is held is answered with an error, so it does not hold."""
        before, self._unbound = self._unbound, None
        if before is not None:
            self._session.exchange.bound.take_back(("credentials",), before, self._bound)

    def _release(self) -> None:
        """A process is bound: carry out what was held for it, for those who are still there."""
        held, self._held = self._held, []
        self._unbound = None
        for request_id, control, reader in held:
            if reader in self._session.readers:
                try:
                    self._session.control(request_id, control, reader)
                except ClientError as error:
                    reader.send(error_frame(error))

    # -- the attempt --

    def tell_position(self, position: int) -> None:
        """The place in the pool's queue, from 1; 0 when nothing is waited for any more."""
        if position == self._position:
            return
        self._position = position
        if position:
            for reader in [*self.arriving, *self._attached_that_wait]:
                reader.send(self._waiting())

    def _waiting(self) -> Waiting:
        return Waiting(self._position, "pool_full" if self._is_pool_full() else "pool_empty")

    @property
    def _attached_that_wait(self) -> list[Reader]:
        """Attached connections, where the process is for something of theirs."""
        is_theirs = self._attempt is None or self._held or self._session.turns.queued_ids
        return list(self._session.readers) if is_theirs else []

    def succeed(self) -> None:
        """A process is bound."""
        self._settle(None)
        self._release()

    def fail(self, error: BrokerError | ClientError) -> None:
        """No process could be had: everybody who waited is told."""
        for reader in self._attached_that_wait:
            reader.send(error_frame(error))
        self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """The same, told to those alone who wait for an answer."""
        held, self._held = self._held, []
        self._unbind_credentials()
        for request_id, _, reader in held:
            reader.send(ControlReply(ControlReplyBody("error", request_id, error="cli_exited")))
        self._settle(error)

    def delete(self) -> None:
        """The session is no more."""
        self.give_up(ConnectionRefused(CloseCode.SESSION_DELETED))

    def _settle(self, error: Exception | None) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.settle(error)


def error_frame(error: BrokerError | ClientError) -> Error:
    """What a client is told of a failure."""
    ref = error.ref if isinstance(error, ClientError) else None
    return Error(error.code, error.message, error.code in RETRYABLE_ERRORS, error.retry_after_ms, ref)


def told(error: Exception) -> BrokerError | ClientError:
    """What those who wait are told of a failure to get a process."""
    if isinstance(error, BrokerError | ClientError):
        return error
    if isinstance(error, TimeoutError):
        return BrokerError(ErrorCode.BIND_FAILED, "pool.bind_timeout_s is over", close=CloseCode.BIND_FAILED)
    text = error.detail if isinstance(error, ProcessError) else "the process could not be started"
    return BrokerError(ErrorCode.POOL_UNAVAILABLE, text, close=CloseCode.POOL_UNAVAILABLE, retry_after_ms=1000)
