"""A tenant as load: one WebSocket, a hello, messages, and the moment at which each answer arrived.

It drives the protocol core of ``websockets`` from an ``asyncio.Protocol`` of its own: a frame is stamped when the loop
hands over its bytes, before anything else is done with it, and a tenant needs no task.  Callers: every sub-command.
Over 300 lines because the handshake, the frames and their times are one state.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import msgspec
from msgspec import Struct
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from bench.clock import now

SUBPROTOCOL: Final = Subprotocol("broker.v1")
SAID: Final = frozenset(
    {"broker.welcome", "broker.message", "broker.state", "broker.turn_completed", "broker.turn_failed", "broker.error"}
)
VISIBLE_DELTAS: Final = frozenset({"text_delta", "thinking_delta", "input_json_delta"})
CLOSE_DEADLINE_S: Final = 2.0
LATE: Final = {
    "the handshake": "no_handshake",
    "broker.welcome": "no_welcome",
    "the first message": "no_start",
    "the first delta": "no_first_delta",
    "the end of the turn": "no_end_of_turn",
}
"""What did not come within its deadline, to count by."""


class TenantFailed(Exception):
    """The broker refused, closed, or ended a turn otherwise than with its result.

    ``reason``: the same in one word, to count by: the broker's own code, ``http_503``, ``closed_1012``, ``no_welcome``.
    """

    def __init__(self, text: str, reason: str = "other") -> None:
        super().__init__(text)
        self.reason = reason


class _Delta(Struct):
    type: str = ""


class _Event(Struct):
    type: str = ""
    delta: _Delta | None = None


class _Typed(Struct):
    """What tells frames apart."""

    type: str = ""


class _Streamed(Struct):
    """A ``stream_event``."""

    event: _Event


class _Said(Struct):
    """What the bench reads of the broker's own frames."""

    type: str = ""
    start: str | None = None
    ready_ms: float | None = None
    ttft_ms: float | None = None
    overhead_ms: float | None = None
    code: str = ""
    message: str = ""
    reason: str = ""
    is_error: bool = False
    state: str = ""
    mcp_errors: dict[str, str] = {}


_typed = msgspec.json.Decoder(_Typed)
_streamed = msgspec.json.Decoder(_Streamed)
_said = msgspec.json.Decoder(_Said)


class Turn:
    """One message and when the parts of its answer arrived; seconds of ``bench.clock.now``."""

    def __init__(self, sent_at: float) -> None:
        self.sent_at = sent_at
        self.first_delta_at: float | None = None
        self.last_delta_at: float | None = None
        self.ended_at: float | None = None
        self.deltas = 0
        self.gaps: list[float] = []
        """Between one visible delta and the next."""
        self.server_ttft: float | None = None
        self.server_overhead: float | None = None
        """What the broker tells of the turn: its first delta, and its own share of that."""


class Tenant(asyncio.Protocol):
    """One connection.  Made by ``connect``."""

    def __init__(self, url: str) -> None:
        self._websocket = ClientProtocol(parse_uri(url), subprotocols=[SUBPROTOCOL], max_size=None)
        self._transport: asyncio.Transport | None = None
        self._changed = asyncio.Event()
        self._failure: str | None = None
        self._reason = ""
        self._lost = asyncio.Event()
        self.opened_at: float | None = None
        self.hello_at: float | None = None
        self.welcome_at: float | None = None
        self.start = ""
        self.ready_ms = 0.0
        """The broker's own figure: hello decoded to the last answer of the bind."""
        self.started_at: float | None = None
        """When the first message was told as written."""
        self.mcp_errors: dict[str, str] = {}
        """MCP servers that did not connect."""
        self.turn: Turn | None = None

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._websocket.send_request(self._websocket.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        at = now()
        self._websocket.receive_data(data)
        self._flush()
        for event in self._websocket.events_received():
            if isinstance(event, Response):
                self._on_response(at)
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._on_frame(event.data, at)
        if self._websocket.close_expected() and self._websocket.close_rcvd is not None:
            code = self._websocket.close_rcvd.code
            self._fail(f"closed {code} {self._websocket.close_rcvd.reason}", f"closed_{code}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self._fail(f"connection lost: {exc}" if exc is not None else "connection lost", "connection_lost")
        self._lost.set()

    def _on_response(self, at: float) -> None:
        failure = self._websocket.handshake_exc
        if failure is None:
            self.opened_at = at
            self._changed.set()
        else:
            answer = failure.response.status_code if isinstance(failure, InvalidStatus) else "bad_upgrade"
            self._fail(str(failure), f"http_{answer}")

    def _on_frame(self, data: bytes | bytearray | memoryview, at: float) -> None:
        try:
            kind = _typed.decode(data).type
            if kind == "stream_event":
                self._on_stream_event(_streamed.decode(data).event, at)
            elif kind in SAID:
                self._on_said(_said.decode(data), at)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._fail(f"an unreadable frame: {error}", "unreadable_frame")

    def _on_stream_event(self, event: _Event, at: float) -> None:
        is_delta = event.type == "content_block_delta"
        if self.turn is not None and is_delta and event.delta is not None and event.delta.type in VISIBLE_DELTAS:
            _count_delta(self.turn, at)
            self._changed.set()

    def _on_said(self, said: _Said, at: float) -> None:
        match said.type:
            case "broker.welcome":
                self.welcome_at, self.start, self.ready_ms = at, said.start or "", said.ready_ms or 0.0
            case "broker.message":
                if said.state == "started" and self.started_at is None:
                    self.started_at = at
            case "broker.state":
                self.mcp_errors |= said.mcp_errors
            case "broker.turn_completed":
                if self.turn is not None:
                    self.turn.ended_at = at
                    self.turn.server_ttft, self.turn.server_overhead = _s(said.ttft_ms), _s(said.overhead_ms)
                if said.is_error:
                    self._fail("the turn ended with an error", "turn_ended_with_an_error")
            case "broker.turn_failed":
                self._fail(f"the turn failed: {said.reason}", said.reason)
            case _:
                self._fail(f"{said.code}: {said.message}", said.code)
        self._changed.set()

    def _fail(self, why: str, reason: str) -> None:
        if self._failure is None:
            self._failure, self._reason = why, reason
        self._changed.set()

    def _flush(self) -> None:
        assert self._transport is not None
        for data in self._websocket.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.write_eof()

    # -- what a tenant does --------------------------------------------------------------------------------------------

    def send(self, *frames: Mapping[str, Any]) -> float:
        """Write frames in one go; returns the moment just before.  Never waits: a bench sends little."""
        if self._failure is not None:
            raise TenantFailed(self._failure, self._reason)
        for frame in frames:
            self._websocket.send_text(json.dumps(frame, separators=(",", ":")).encode())
        at = now()
        self._flush()
        return at

    def hello(self, options: Mapping[str, Any], text: str | None = None, token: str | None = None) -> None:
        """Say hello, with ``text`` as the first message right behind it when there is one."""
        hello: dict[str, Any] = {"type": "broker.hello", "session": {"mode": "new"}, "options": options}
        frames: list[Mapping[str, Any]] = [hello if token is None else hello | {"auth": {"token": token}}]
        if text is not None:
            frames.append({"type": "user_message", "content": text})
        self.hello_at = self.send(*frames)
        if text is not None:
            self.turn = Turn(self.hello_at)

    def say(self, text: str) -> Turn:
        """Send a message; one at a time."""
        self.turn = Turn(self.send({"type": "user_message", "content": text}))
        return self.turn

    async def wait_open(self, within_s: float) -> None:
        """The handshake is done.  Raises ``TenantFailed``."""
        await self._wait(lambda: self.opened_at is not None, within_s, "the handshake")

    async def wait_welcome(self, within_s: float) -> float:
        """Seconds from hello to its welcome.  Raises ``TenantFailed``."""
        await self._wait(lambda: self.welcome_at is not None, within_s, "broker.welcome")
        assert self.hello_at is not None
        assert self.welcome_at is not None
        return self.welcome_at - self.hello_at

    async def wait_started(self, within_s: float) -> float:
        """Seconds from hello to the first message written to the CLI.  Raises ``TenantFailed``."""
        await self._wait(lambda: self.started_at is not None, within_s, "the first message")
        assert self.hello_at is not None
        assert self.started_at is not None
        return self.started_at - self.hello_at

    async def wait_first_delta(self, within_s: float) -> float:
        """Seconds from the message to the first visible delta of its answer.  Raises ``TenantFailed``."""
        turn = self.turn
        assert turn is not None
        await self._wait(lambda: turn.first_delta_at is not None, within_s, "the first delta")
        assert turn.first_delta_at is not None
        return turn.first_delta_at - turn.sent_at

    async def wait_answering(self, within_s: float) -> None:
        """The first visible delta, or the end of a turn that has none.  Raises ``TenantFailed``."""
        turn = self.turn
        assert turn is not None
        await self._wait(lambda: (turn.first_delta_at or turn.ended_at) is not None, within_s, "the first delta")

    async def wait_end(self, within_s: float) -> Turn:
        """The turn, completed.  Raises ``TenantFailed``."""
        turn = self.turn
        assert turn is not None
        await self._wait(lambda: turn.ended_at is not None, within_s, "the end of the turn")
        return turn

    async def _wait(self, check: Callable[[], bool], within_s: float, what: str) -> None:
        with anyio.move_on_after(within_s) as deadline:
            while self._failure is None and not check():
                self._changed.clear()
                await self._changed.wait()
        if self._failure is not None:
            raise TenantFailed(self._failure, self._reason)
        if deadline.cancelled_caught:
            raise TenantFailed(f"{what} did not come within {within_s:g} s", LATE.get(what, "late"))

    async def aclose(self) -> None:
        """End the conversation and close; the transport is aborted after 2 s.  The broker then stops the process."""
        transport = self._transport
        assert transport is not None
        with anyio.CancelScope(shield=True):
            if self._failure is None:
                self._websocket.send_text(b'{"type":"broker.end"}')
                self._websocket.send_close(1000)
                self._flush()
                with anyio.move_on_after(CLOSE_DEADLINE_S):
                    await self._lost.wait()
            if not self._lost.is_set():
                transport.abort()
                await self._lost.wait()


def _s(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


def _count_delta(turn: Turn, at: float) -> None:
    if turn.first_delta_at is None:
        turn.first_delta_at = at
    if turn.last_delta_at is not None:
        turn.gaps.append(at - turn.last_delta_at)
    turn.last_delta_at = at
    turn.deltas += 1


@asynccontextmanager
async def connect(url: str, within_s: float = 10.0) -> AsyncIterator[Tenant]:
    """A tenant with an open socket, closed when the block ends.  Raises ``TenantFailed``, ``OSError``."""
    uri = parse_uri(url)
    loop = asyncio.get_running_loop()
    tls = True if uri.secure else None
    try:
        async with asyncio.timeout(within_s):
            _, tenant = await loop.create_connection(lambda: Tenant(url), uri.host, uri.port, ssl=tls)
    except WebSocketException as error:
        raise TenantFailed(str(error)) from error
    try:
        await tenant.wait_open(within_s)
        yield tenant
    finally:
        await tenant.aclose()
