"""The public WebSocket port: admission before the upgrade, one handler per socket, and the watch over stalled ones.

Owner task: ``run``, in the root task group of ``broker.app``.  Everything that can be refused cheaply is refused before
the upgrade, by an HTTP status; no process is touched until hello has been judged.
"""

import time
from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus

import anyio
import structlog
from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from broker.auth import Authenticator, Identity, Unauthorized, presented_token
from broker.config.settings import Settings
from broker.config.tree import Config
from broker.metrics import Metrics
from broker.pool.pool import Pool
from broker.pool.quotas import RETRY_S, QuotaExceeded, Quotas
from broker.sessions.registry import Registry
from broker.sockets.connection import Connection
from broker.sockets.door import Door
from broker.sockets.headroom import ACCEPT_BATCH, BACKLOG
from broker.sockets.http import PublicSite, refusal
from broker.sockets.inbound import Inbound
from broker.sockets.listeners import Listener, place
from broker.sockets.tenant_socket import TenantSocket, tenant_socket
from protocol.codes import CloseCode, Limit
from protocol.frames import SUBPROTOCOL

log = structlog.get_logger(__name__)

CLOSE_TIMEOUT_S = 1.0
HANDSHAKE_GRACE_S = 0.5
"""For what was accepted in the last moment and has not sent its request yet."""


class Server:
    """Accepts tenants' sockets."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        pool: Pool,
        auth: Authenticator,
        metrics: Metrics,
        site: PublicSite,
        door: Door,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._pool = pool
        self._auth = auth
        self._metrics = metrics
        self._site = site
        self._door = door
        self._server: WebSocketServer | None = None
        self._connections: dict[TenantSocket, Connection] = {}
        self._stalled: dict[TenantSocket, tuple[int, float]] = {}
        self._silent: Counter[str] = Counter()
        """Sockets per address that have neither a token nor a hello yet."""
        self._quotas = Quotas()
        self._inbound = Inbound(lambda: self._config.server.max_inbound_bytes, metrics.limit_refused)
        self._counted: dict[TenantSocket, str] = {}
        """Of the sockets that have one, the tenant."""
        self._has_been_ready = False
        self.is_draining = False
        auth.on_revoked(self._close_revoked)

    @property
    def _config(self) -> Config:
        """What holds now."""
        return self._settings.now

    async def open(self, sock: Listener | None) -> int:
        """Listen on ``sock``, or bind the port; return its number.  Raises ``OSError``."""
        limits = self._config.server
        self._server = await serve(
            self._on_socket,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            select_subprotocol=_select_subprotocol,
            process_request=self._admit,
            create_connection=tenant_socket(limits.write_buffer_bytes, self._on_stalled, self._inbound, self._door),
            compression=None,
            server_header=None,
            open_timeout=limits.hello_timeout_s,
            ping_interval=limits.ping_interval_s,
            ping_timeout=limits.ping_interval_s,
            close_timeout=CLOSE_TIMEOUT_S,
            max_size=limits.hello_max_bytes,
            write_limit=0,
            backlog=ACCEPT_BATCH,
            **place(limits.listen, sock),
        )
        for listener in self._server.sockets:
            with listener.dup() as raw:
                raw.listen(BACKLOG)
        real_port: int = next(iter(self._server.sockets)).getsockname()[1]
        self._site.listening_on(real_port)
        return real_port

    async def run(self) -> None:
        """Watch the sockets whose bytes do not go out, or do not come, until cancelled; then abort what is left."""
        try:
            while True:
                await anyio.sleep(min(1.0, self._config.server.send_deadline_s / 4))
                self._cut_stalled(time.monotonic())
                self._inbound.end_stalled(time.monotonic(), self._config.server.send_deadline_s)
        finally:
            self.stop_listening()
            for socket in list(self._connections):
                socket.cut("broker_stopped")

    def stop_listening(self) -> None:
        """Accept nothing more; open sockets go on.  A socket that was handed over stays open for the next broker."""
        self.is_draining = True
        if self._server is not None:
            self._server.close(close_connections=False)

    def turn_away(self) -> None:
        """Close every socket that has no session yet."""
        for connection in self._connections.values():
            if not connection.is_attached:
                connection.close_soon(CloseCode.DRAINING, "draining")

    async def wait_empty(self) -> None:
        """Until every socket is gone; the caller sets the deadline.  Requests in flight get their answer, if they come
        within ``HANDSHAKE_GRACE_S``."""
        while self._connections:  # noqa: ASYNC110 - at the end, once
            await anyio.sleep(0.01)
        if self._server is not None:
            with anyio.move_on_after(HANDSHAKE_GRACE_S):
                await self._server.wait_closed()

    # -- before the upgrade ----------------------------------------------------------------------------------------

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        response = self._site.respond(request)
        if response is not None:
            return response
        if self.is_draining:
            return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "draining", retry_after_s=5)
        self._has_been_ready = self._has_been_ready or self._pool.is_ready
        if not self._has_been_ready:
            return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "no process is warm yet", retry_after_s=1)
        try:
            identity = self._presented(request)
        except Unauthorized:
            self._metrics.protocol_error(CloseCode.UNAUTHORIZED.label)
            return refusal(HTTPStatus.UNAUTHORIZED, "the token is not valid")
        over = self._reached(identity, _address(connection))
        if over is not None:
            self._metrics.limit_refused(over[0])
            return refusal(HTTPStatus.TOO_MANY_REQUESTS, over[1], retry_after_s=over[2])
        assert isinstance(connection, TenantSocket)
        connection.identity = identity
        return None

    def _reached(self, identity: Identity | None, address: str) -> tuple[Limit, str, int] | None:
        """The limit at which one more socket is refused, what is said then, and in how many seconds to come again."""
        if identity is not None:
            try:
                self._quotas.check_connection(identity.tenant, identity.limits)
            except QuotaExceeded as full:
                return full.limit, full.message, round(RETRY_S)
            return None
        limits = self._config.server
        for limit, most, silent in (
            (Limit.MAX_UNAUTHENTICATED, limits.max_unauthenticated, self._silent.total()),
            (Limit.MAX_UNAUTHENTICATED_PER_IP, limits.max_unauthenticated_per_ip, self._silent[address]),
        ):
            if silent >= most:
                return limit, f"server.{limit.value} = {most} sockets wait without a hello", 1
        return None

    def _presented(self, request: Request) -> Identity | None:
        headers = request.headers
        token = presented_token(headers.get_all("Authorization"), headers.get_all("Sec-WebSocket-Protocol"))
        if token is None:
            return self._auth.authenticate(None) if self._config.auth.mode == "none" else None
        return self._auth.authenticate(token)

    # -- one socket ------------------------------------------------------------------------------------------------

    async def _on_socket(self, socket: ServerConnection) -> None:
        """A bulkhead: a bug in one connection ends that connection only."""
        assert isinstance(socket, TenantSocket)
        connection = Connection(
            socket, self._config, self._registry, self._pool, self._auth, self._metrics, self._quotas
        )
        identity = socket.identity if isinstance(socket.identity, Identity) else None
        self._connections[socket] = connection
        socket.forget_handshake()
        address = _address(socket)
        socket.payer = ("address", address) if identity is None else ("tenant", identity.tenant)
        is_silent = identity is None
        if is_silent:
            self._silent[address] += 1
        connection.on_identified = lambda found: self._identified(socket, found, address if is_silent else None)
        if self.is_draining:  # it was upgraded a moment before
            connection.close_soon(CloseCode.DRAINING, "draining")
        self._metrics.connection_moved(None, "open")
        try:
            await connection.run(identity)
        except Exception:
            log.exception("connection.failed")
            socket.cut(CloseCode.INTERNAL.label)
        finally:
            if is_silent and connection.identity is None:
                self._heard(address)
            if socket in self._counted:
                self._quotas.disconnect(self._counted.pop(socket))
            del self._connections[socket]
            self._stalled.pop(socket, None)
            self._metrics.connection_moved("open", None)

    def _identified(self, socket: TenantSocket, identity: Identity, silent_at: str | None) -> None:
        """``silent_at``: the address, of one that had no token in its handshake.  Raises ``QuotaExceeded``."""
        if silent_at is not None:
            self._heard(silent_at)
        try:
            self._quotas.connect(identity.tenant, identity.limits)
        except QuotaExceeded as full:
            self._metrics.limit_refused(full.limit)
            raise
        self._counted[socket] = identity.tenant
        socket.payer = ("tenant", identity.tenant)

    def _heard(self, address: str) -> None:
        self._silent[address] -= 1
        if self._silent[address] <= 0:
            del self._silent[address]

    def _close_revoked(self) -> None:
        for connection in list(self._connections.values()):
            if connection.identity is not None and not self._auth.still_valid(connection.identity):
                connection.close_soon(CloseCode.REVOKED, "revoked")

    # -- stalled sockets -------------------------------------------------------------------------------------------

    def _on_stalled(self, socket: TenantSocket) -> None:
        self._stalled[socket] = (socket.unsent_bytes, time.monotonic())

    def _cut_stalled(self, now: float) -> None:
        """Cut the sockets whose unsent bytes have not shrunk for ``server.send_deadline_s``."""
        for socket, (unsent, since) in list(self._stalled.items()):
            left = socket.unsent_bytes
            if left == 0 or socket.transport.is_closing():
                del self._stalled[socket]
            elif left < unsent:  # more is no progress: pongs add to it
                self._stalled[socket] = (left, now)
            elif now - since >= self._config.server.send_deadline_s:
                del self._stalled[socket]
                connection = self._connections.get(socket)
                tenant, session = ("", "") if connection is None else connection.whose
                log.warning("connection.stalled", unsent_bytes=left, tenant=tenant, session=session)
                socket.cut(CloseCode.SLOW_CONSUMER.label, reset=True)


def _select_subprotocol(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """``broker.v1`` when offered; a client that offers none gets it too, by not being told another."""
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None


def _address(socket: ServerConnection) -> str:
    try:
        peer = socket.transport.get_extra_info("peername")
    except ValueError:  # uvloop's word for a socket that is closed by now
        peer = None
    return str(peer[0]) if peer else ""
