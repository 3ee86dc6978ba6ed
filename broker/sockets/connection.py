"""One socket: hello, the receive loop, and an outbox that is a cursor in the session's log.

Owner: the handler task that ``websockets`` starts for each connection (a bulkhead).  It attaches to a session and
detaches; it owns nothing of it.  Sending happens in ``wake``, synchronously: whoever adds frames wakes the readers,
the kernel says when it can take more.  Over 300 lines because both directions of a socket share its state.
"""

import contextlib
import time
from collections.abc import Callable

import anyio
import structlog
from msgspec import UNSET, Raw
from websockets.exceptions import ConnectionClosed

from broker.auth import Authenticator, Identity
from broker.config.tree import Config
from broker.errors import BrokerError
from broker.metrics import Metrics
from broker.options import policy
from broker.pool.limits import Allowance, RateLimited
from broker.pool.pool import Pool
from broker.pool.quotas import Quotas
from broker.sessions.entry import Entry
from broker.sessions.lobby import error_frame
from broker.sessions.opening import Opened, Opening
from broker.sessions.registry import Registry
from broker.sessions.transcript import read_page
from broker.sockets.tenant_socket import TenantSocket
from broker.turns.view import as_messages
from protocol import codec
from protocol.codes import CloseCode, ErrorCode
from protocol.controls import decode_control
from protocol.errors import ClientError, ConnectionRefused
from protocol.frames import (
    PROTOCOL_VERSION,
    Cancel,
    ClientFrame,
    ControlRequest,
    ControlResponse,
    Delete,
    End,
    Hello,
    History,
    HistoryPage,
    KeepAlive,
    Ping,
    Pong,
    ServerFrame,
    User,
    UserMessage,
)
from protocol.wire import text_frame

log = structlog.get_logger(__name__)

BATCH_BYTES = 262144
"""Most bytes of one write (or one larger frame); then the kernel has to take them all."""
OUTBOX_FRAMES = 64
"""Frames of the connection that may wait unsent; then no more of the client's frames are read."""
BAD_FRAMES = 3
BAD_FRAMES_WITHIN_S = 10.0
OBSERVERS_FRAMES = (Ping, KeepAlive, History, Hello)
"""What a connection may send that only observes (a second hello is everybody's mistake)."""
CLOSE_DEADLINE_S = 2.0
"""For unsent frames, and again for the closing handshake; then the transport is aborted."""


class Connection:
    """A client's connection.  Implements ``broker.turns.reader.Reader``."""

    def __init__(
        self,
        socket: TenantSocket,
        config: Config,
        registry: Registry,
        pool: Pool,
        auth: Authenticator,
        metrics: Metrics,
        quotas: Quotas,
    ) -> None:
        self._socket = socket
        self._config = config
        self._registry = registry
        self._opening = Opening(config, registry, pool)
        self._auth = auth
        self._metrics = metrics
        self._quotas = quotas
        self._allowance: Allowance | None = None
        self.instance = ""
        self.is_controller = True
        self.identity: Identity | None = None
        self.on_identified: Callable[[Identity], None] = lambda identity: None
        """Told once whose the connection is; raises ``BrokerError`` when it may not stay."""
        self._entry: Entry | None = None
        self._cursor = 0
        self._has_messages_view = False
        self._outbox: list[tuple[int, bytes]] = []
        self._room: anyio.Event | None = None
        """Told when fewer frames wait; None while nobody asks."""
        self._closing: tuple[CloseCode, str] | None = None
        self._scope = anyio.CancelScope()
        self._bad_frames: list[float] = []
        socket.on_writable = self.wake
        socket.on_refused = self.close_soon

    # -- the task --------------------------------------------------------------------------------------------------

    @property
    def is_attached(self) -> bool:
        """Whether hello has led to a session."""
        return self._entry is not None

    @property
    def whose(self) -> tuple[str, str]:
        """Tenant and conversation, for the log; empty as long as they are not known."""
        tenant = "" if self.identity is None else self.identity.tenant
        return tenant, "" if self._entry is None else self._entry.session.key[2]

    async def run(self, identity: Identity | None) -> None:
        """Serve the connection to its end.  ``identity`` is set when the handshake carried a token."""
        self.identity = identity
        if identity is not None:
            self._socket.set_max_message_bytes(self._config.server.max_message_bytes)
        try:
            with self._scope:
                await self._serve()
        except ConnectionClosed:
            pass
        except ConnectionRefused as refused:
            self._closing = self._closing or (refused.close, refused.reason)
        except (ClientError, BrokerError) as error:
            self._refuse(error)
            self._closing = self._closing or (error.close or CloseCode.BAD_FRAME, error.code.value)
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await self._finish()
                finally:
                    if self._entry is not None:
                        self._touch()
                        self._entry.tenure.detach(self)

    async def _serve(self) -> None:
        if self.identity is not None:
            self.on_identified(self.identity)
        hello, received_at = await self._hello()
        entry = await self._open(hello, received_at)
        self._socket.set_max_message_bytes(self._config.server.max_message_bytes)
        while True:
            data = await self._receive()
            await self._wait_for_room(OUTBOX_FRAMES)
            await self._handle(data, time.monotonic(), entry)

    async def _hello(self) -> tuple[Hello, float]:
        with anyio.move_on_after(self._config.server.hello_timeout_s) as deadline:
            data = await self._receive()
        if deadline.cancelled_caught:
            raise ConnectionRefused(CloseCode.HELLO_TIMEOUT)
        return codec.decode_hello(data), time.monotonic()

    async def _receive(self) -> bytes:
        data = await self._socket.recv()
        if isinstance(data, bytes):
            raise ConnectionRefused(CloseCode.BAD_FRAME, "binary frames are not part of broker.v1")
        return data.encode()

    async def _wait_for_room(self, frames: int) -> None:
        """Until fewer than ``frames`` wait unsent, or nobody is there to take them.

        Bounded by the stall watch, which cuts a peer that takes nothing.
        """
        while len(self._outbox) >= frames and not self._socket.is_lost:
            self._room = anyio.Event()
            await self._room.wait()
            self._room = None

    def _on_lost(self) -> None:
        """What is unsent stays so.  What the client had sent before is still carried out; then its end is heard."""
        self._outbox.clear()
        self._tell_room()

    def _tell_room(self) -> None:
        if self._room is not None:
            self._room.set()

    # -- hello -----------------------------------------------------------------------------------------------------

    async def _open(self, hello: Hello, heard_at: float) -> Entry:
        if hello.protocol != PROTOCOL_VERSION:
            raise ConnectionRefused(CloseCode.PROTOCOL_VERSION, f"this broker speaks protocol {PROTOCOL_VERSION}")
        identity, subject = self._identify(hello)
        options = self._opening.judge(hello, identity)
        self._allowance = Allowance(identity.limits, self._quotas.bucket(identity.tenant, identity.limits))
        self.instance, self.is_controller = hello.client.instance, hello.role == "controller"
        socket = self._socket  # nobody reads from it meanwhile: the transport tells its end, and the place goes
        socket.on_lost = self._scope.cancel
        if socket.is_lost:
            self._scope.cancel()
        try:
            opened = await self._opening.open(hello, options, identity, subject, self, heard_at)
        finally:
            socket.on_lost = self._on_lost
        self._attach(opened)
        session, frame = opened.entry.session, opened.frame
        log.info("connection.attached", session=session.key[2], tenant=session.key[0], start=frame.start,
                 role=frame.role, client=hello.client.name, client_version=hello.client.version,
                 trace=hello.traceparent)  # fmt: skip
        return opened.entry

    def _identify(self, hello: Hello) -> tuple[Identity, str]:
        """Decided once: what the handshake carried wins over hello."""
        auth = hello.auth
        if self.identity is None:
            self.identity = self._auth.authenticate(auth.token if auth is not None else None)
            self.on_identified(self.identity)
        return self.identity, policy.subject(self.identity.subject, auth.subject if auth is not None else None)

    def _attach(self, opened: Opened) -> None:
        """In the breath of the welcome: no frame can slip between."""
        self._entry, self._cursor = opened.entry, opened.cursor
        self._has_messages_view = opened.frame.view == "messages"
        self._outbox.append((0, text_frame(codec.encode_server(opened.frame))))
        self._touch()
        opened.entry.tenure.attach(self)
        self.wake()

    def _touch(self) -> None:
        if self.is_controller and self._entry is not None:
            self._entry.touch()

    # -- receiving -------------------------------------------------------------------------------------------------

    async def _handle(self, data: bytes, received_at: float, entry: Entry) -> None:
        """One frame of the client.  A mistake is told and the connection stays; too many in a row end it."""
        try:
            frame = codec.decode_client(data)
            if isinstance(frame, User | ControlRequest | ControlResponse | KeepAlive):
                self._metrics.unknown_fields(codec.count_unknown_fields(frame, data))
            if not self.is_controller and not isinstance(frame, OBSERVERS_FRAMES):
                raise ClientError(ErrorCode.NOT_CONTROLLER, "this connection only observes", ref=_ref(frame))
            if entry.tenure.is_deleted or self._closing is not None:  # it was heard while its connection was replaced
                return
            if isinstance(frame, History):
                await self._tell_history(frame, entry)
            else:
                self._dispatch(frame, received_at, entry)
        except ClientError as error:
            self._refuse(error)
            if error.close is not None:
                raise ConnectionRefused(error.close, error.code.value) from error
            if error.code in (ErrorCode.BAD_FRAME, ErrorCode.BAD_OPTIONS):
                self._count_bad_frame(received_at)

    def _dispatch(self, frame: ClientFrame, received_at: float, entry: Entry) -> None:
        session = entry.session
        match frame:
            case User() | UserMessage():
                assert self._allowance is not None
                self._allowance.take(_ref(frame), received_at)
                self._touch()
                session.submit(frame, self, received_at)
            case ControlRequest(request_id=request_id, request=request):
                entry.tenure.control(request_id, decode_control(request, request_id), self)
            case ControlResponse():
                session.exchange.questions.answer(frame, self)
            case Cancel(id=message_id):
                session.cancel(message_id)
            case Ping(t=t):
                self.send(Pong(t))
            case KeepAlive():
                pass
            case End():
                entry.tenure.end()
            case Hello():
                raise ClientError(ErrorCode.BAD_FRAME, "broker.hello comes once, first")
            case Delete():
                self._registry.delete(entry)
            case History():
                pass

    async def _tell_history(self, frame: History, entry: Entry) -> None:
        """One page at a time, and the next one only once this one has gone out: no client makes them pile up."""
        await self._wait_for_room(1)
        found = await read_page(
            entry.scans, lambda: entry.transcript, frame.before, frame.limit, settles_until=entry.settles_until
        )
        if not found.found:
            raise ClientError(ErrorCode.UNKNOWN_MESSAGE, "before: no frame of this conversation", ref=frame.before)
        self.send(HistoryPage([Raw(text) for text in found.frames], found.more))

    def _count_bad_frame(self, now: float) -> None:
        self._bad_frames = [*self._bad_frames[1 - BAD_FRAMES :], now]
        if len(self._bad_frames) == BAD_FRAMES and now - self._bad_frames[0] <= BAD_FRAMES_WITHIN_S:
            raise ConnectionRefused(CloseCode.BAD_FRAME, f"{BAD_FRAMES} bad frames in {BAD_FRAMES_WITHIN_S:g} s")

    def _refuse(self, error: ClientError | BrokerError) -> None:
        self._metrics.protocol_error(error.code.value)
        if isinstance(error, RateLimited):
            self._metrics.limit_refused(error.limit)
        self.send(error_frame(error))

    # -- sending ---------------------------------------------------------------------------------------------------

    def send(self, frame: ServerFrame | Raw) -> None:
        """Queue a frame of this connection, after everything that is in the log now."""
        if self._socket.is_lost:
            return
        after = self._entry.session.log.head if self._entry is not None else 0
        self._outbox.append((after, text_frame(codec.encode_server(frame))))
        self.wake()

    def wake(self) -> None:
        """Write what there is, a batch at a time, for as long as the kernel takes everything."""
        socket, has_more = self._socket, True
        while has_more and socket.can_write:
            batch = self._next_batch()
            if not batch:
                return
            socket.write_frames(batch)
            has_more = bool(self._outbox) or (self._entry is not None and self._cursor < self._entry.session.log.head)

    def _next_batch(self) -> bytes:
        parts: list[bytes] = []
        outbox = self._outbox
        while outbox and (outbox[0][0] <= self._cursor or self._entry is None):
            parts.append(outbox.pop(0)[1])
        if len(outbox) < OUTBOX_FRAMES:
            self._tell_room()
        if self._entry is not None:
            replay = self._entry.session.log
            if replay.has_fallen_off(self._cursor):
                self.close_soon(CloseCode.SLOW_CONSUMER, "fell off the replay log")
                return b"".join(parts)
            frames, self._cursor = replay.read(self._cursor, BATCH_BYTES, outbox[0][0] if outbox else None)
            parts += map(as_messages, frames) if self._has_messages_view else frames
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # -- ending ----------------------------------------------------------------------------------------------------

    def close_soon(self, code: CloseCode, reason: str) -> None:
        """End the connection once what is queued has gone out."""
        if self._closing is None:
            self._closing = (code, reason)
            self._scope.cancel()

    async def _finish(self) -> None:
        """Offer what is unsent and the close frame, each for a bounded time; then abort."""
        socket = self._socket
        code, reason = self._closing or (CloseCode.ENDED, "")
        socket.hear_no_more()
        self._metrics.disconnected(self._reason())
        if self._entry is not None:
            self._entry.farewells.note(self.instance, self._reason())
        with anyio.move_on_after(CLOSE_DEADLINE_S), contextlib.suppress(OSError, ConnectionClosed):
            self.wake()
            await socket.drain()  # a reset by the peer ends it with an OSError
            await socket.close(code, reason)
        socket.cut("close_deadline")
        if self._entry is not None:
            log.info("connection.closed", session=self._entry.session.key[2], reason=self._reason())

    def _reason(self) -> str:
        if self._socket.cut_reason is not None:
            return self._socket.cut_reason
        if self._closing is not None:
            return self._closing[0].label
        return "client"


def _ref(frame: ClientFrame) -> str | None:
    """By what a client knows its frame."""
    match frame:
        case UserMessage(id=given) | User(uuid=given) | Cancel(id=given) | ControlRequest(request_id=given):
            return None if given is UNSET else given
        case ControlResponse(response=response):
            return response.request_id
        case _:
            return None
