"""Who comes to a session: a connection without a socket, its hello, and what it then sees.

Callers: the tests of sessions' tasks, on ``tests.kit.stage``.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from msgspec import Raw

from broker.auth import Identity
from broker.sessions.entry import Entry
from protocol import codec
from protocol.codes import CloseCode
from protocol.frames import Hello, ServerFrame, UserMessage
from protocol.wire import text_of
from tests.broker.outlets import FakeReader
from tests.kit.stage import ANN, SETTLES_WITHIN_S, Stage
from tests.waiting import eventually


class Tab(FakeReader):
    """A connection of its own instance."""

    count = 0

    def __init__(self) -> None:
        Tab.count += 1
        super().__init__(f"tab-{Tab.count}")
        self.is_closed = False
        self.on_sent: Callable[[], None] = lambda: None

    def send(self, frame: ServerFrame | Raw) -> None:
        super().send(frame)
        self.on_sent()

    def close_soon(self, code: CloseCode, reason: str) -> None:
        self.is_closed = True


def hello(**fields: Any) -> Hello:
    """A client's first frame."""
    return codec.decode_hello(json.dumps({"type": "broker.hello", **fields}).encode())


async def attached(found: Stage, frame: Hello, tab: Tab, identity: Identity = ANN) -> Entry:
    """As a connection does it."""
    options = found.opening.judge(frame, identity)
    opened = await found.opening.open(frame, options, identity, identity.tenant, tab, time.monotonic())
    opened.entry.tenure.attach(tab)
    return opened.entry


def ends(entry: Entry) -> Counter[str]:
    """How many terminal frames each message has."""
    frames, _ = entry.session.log.read(entry.session.log.tail, 1 << 24)
    told = [json.loads(text_of(frame)) for frame in frames]
    assert [frame["seq"] for frame in told] == list(range(entry.session.log.tail + 1, entry.session.log.head + 1))
    return Counter(f["id"] for f in told if f["type"] in ("broker.turn_completed", "broker.turn_failed"))


async def talked(found: Stage, identity: Identity = ANN) -> tuple[Entry, Tab]:
    """A conversation with a turn."""
    tab = Tab()
    entry = await attached(found, hello(session={"id": "known"}), tab, identity)
    entry.session.submit(UserMessage("hello", id="m-0"), tab, time.monotonic())
    await eventually(lambda: ends(entry)["m-0"] == 1 and entry.tenure.is_idle, SETTLES_WITHIN_S)
    return entry, tab


def is_over(entry: Entry) -> bool:
    """Nobody is there any more: a conversation that has had a process sleeps."""
    return entry.state == "hibernated" and entry.tenure.succession.again is not None
