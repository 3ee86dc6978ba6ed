"""A client of the broker for tests: says hello, keeps every frame, waits with a deadline.

Callers: the end-to-end tests, ``async with connected(broker.url, ...) as client``.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

Frame = dict[str, Any]
DEADLINE_S = 20.0


class Client:
    """One connection.  ``frames`` holds everything that was received, in order."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[Frame] = []
        self.texts: list[str] = []
        """The same, as it was sent."""
        self.welcome: Frame = {}
        self._asked = 0

    async def send(self, frame: Mapping[str, Any]) -> None:
        """Send one frame."""
        await self.socket.send(json.dumps(frame))

    async def hello(self, **fields: Any) -> Frame:
        """Say hello and return ``broker.welcome``.  Raises ``ConnectionClosed`` when refused."""
        await self.send({"type": "broker.hello", **fields})
        self.welcome = await self.until(lambda frame: frame["type"] == "broker.welcome")
        return self.welcome

    async def receive(self, within_s: float = DEADLINE_S) -> Frame:
        """The next frame."""
        async with asyncio.timeout(within_s):
            return await self._next()

    async def _next(self) -> Frame:
        text = await self.socket.recv()
        assert isinstance(text, str)
        frame: Frame = json.loads(text)
        self.texts.append(text)
        self.frames.append(frame)
        return frame

    async def until(self, wanted: Callable[[Frame], object], within_s: float = DEADLINE_S) -> Frame:
        """The next frame that ``wanted`` likes; those before it are kept in ``frames``."""
        async with asyncio.timeout(within_s):
            while not wanted(frame := await self._next()):
                pass
            return frame

    async def until_type(self, kind: str, within_s: float = DEADLINE_S) -> Frame:
        """The next frame of this type."""
        return await self.until(lambda frame: frame["type"] == kind, within_s)

    async def say(self, text: Any, message_id: str | None = None) -> None:
        """Send a user message."""
        await self.send({"type": "user_message", "content": text} | ({"id": message_id} if message_id else {}))

    async def turn(self, text: Any, message_id: str | None = None, within_s: float = DEADLINE_S) -> Frame:
        """Send a user message and return its terminal frame."""
        await self.say(text, message_id)
        return await self.terminal(message_id, within_s)

    async def terminal(self, message_id: str | None = None, within_s: float = DEADLINE_S) -> Frame:
        """The terminal frame of that message, which may have come already; without an id the next one."""
        if message_id is not None and (found := terminals(self.frames, message_id)):
            return found[0]
        return await self.until(
            lambda f: f["type"] in TERMINALS and (message_id is None or f["id"] == message_id),
            within_s,
        )

    async def control(self, subtype: str, request_id: str | None = None, **payload: Any) -> Frame:
        """Send a control request and return the ``response`` of its answer."""
        self._asked += 1
        request_id = request_id or f"c-{self._asked}"
        await self.ask(subtype, request_id, **payload)
        answer = await self.until(
            lambda f: f["type"] == "control_response" and f["response"]["request_id"] == request_id
        )
        response: Frame = answer["response"]
        return response

    async def ask(self, subtype: str, request_id: str, **payload: Any) -> None:
        """Send a control request and wait for nothing."""
        request = {"subtype": subtype, **payload}
        await self.send({"type": "control_request", "request_id": request_id, "request": request})

    async def prompt(self) -> Frame:
        """The next permission prompt."""
        return await self.until_type("control_request")

    async def answer(self, request_id: str, **response: Any) -> None:
        """Answer a permission prompt: ``behavior="allow"`` or ``"deny"``, and what goes with it."""
        body = {"subtype": "success", "request_id": request_id, "response": response}
        await self.send({"type": "control_response", "response": body})

    async def error(self) -> Frame:
        """The next ``broker.error``."""
        return await self.until_type("broker.error")

    async def sync(self) -> None:
        """Until the broker has answered everything that was sent before, as far as it answers at once."""
        self._asked += 1
        mark = self._asked
        await self.send({"type": "broker.ping", "t": mark})
        await self.until(lambda frame: frame["type"] == "broker.pong" and frame["t"] == mark)

    async def closed(self, within_s: float = DEADLINE_S) -> int:
        """Read to the end and return the close code (1006 when the connection was cut)."""
        try:
            while True:
                await self.receive(within_s)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd is not None else 1006

    def numbered(self) -> list[Frame]:
        """The frames that carry ``seq``."""
        return [frame for frame in self.frames if "seq" in frame]

    def of_type(self, kind: str) -> list[Frame]:
        """The frames of this type."""
        return [frame for frame in self.frames if frame["type"] == kind]

    @property
    def last_seq(self) -> int:
        """The last seq that was seen; 0 before any."""
        return max((frame["seq"] for frame in self.numbered()), default=0)


TERMINALS = ("broker.turn_completed", "broker.turn_failed")


def terminals(frames: list[Frame], message_id: str | None = None) -> list[Frame]:
    """The terminal frames (of that message)."""
    found = [frame for frame in frames if frame["type"] in TERMINALS]
    return [frame for frame in found if message_id is None or frame["id"] == message_id]


def text_of(frames: list[Frame]) -> str:
    """The words of the main thread's text deltas."""
    deltas = (f["event"]["delta"] for f in frames if f["type"] == "stream_event" and "delta" in f["event"])
    return "".join(delta.get("text", "") for delta in deltas)


@asynccontextmanager
async def connected(
    url: str, *, hello: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None,
    subprotocols: tuple[str, ...] = ("broker.v1",),
) -> AsyncIterator[Client]:  # fmt: skip
    """Connect and, unless ``hello`` is None, say hello with those fields."""
    socket = await connect(
        url,
        subprotocols=[Subprotocol(name) for name in subprotocols],
        additional_headers=dict(headers or {}),
        max_size=None,
        max_queue=None,
        ping_interval=None,
        close_timeout=2,
        proxy=None,
    )
    client = Client(socket)
    try:
        if hello is not None:
            await client.hello(**hello)
        yield client
    finally:
        await socket.close()


def contiguous(frames: list[Frame]) -> bool:
    """Whether the seqs of ``frames`` follow each other without gap or repeat."""
    seqs = [frame["seq"] for frame in frames if "seq" in frame]
    return seqs == list(range(seqs[0], seqs[0] + len(seqs))) if seqs else True
