"""What stands for a session and its connections in tests of the parts that a session lends its ways out to.

Callers: the tests of ``broker.sessions.questions`` and ``broker.sessions.exchange``.
"""

import json
from collections import Counter
from typing import Any

import msgspec
from msgspec import Raw

from broker.turns.turns import Turns
from protocol import codec
from protocol.codes import CloseCode
from protocol.frames import ControlAnswer, ControlResponse, ServerFrame

Line = dict[str, Any]


class FakeReader:
    """A connection that keeps what it is sent."""

    def __init__(self, instance: str = "tab", *, is_controller: bool = True) -> None:
        self.instance = instance
        self.is_controller = is_controller
        self.sent: list[Line] = []

    def wake(self) -> None:
        """Nothing waits."""

    def send(self, frame: ServerFrame | Raw) -> None:
        self.sent.append(json.loads(codec.encode_server(frame)))

    def close_soon(self, code: CloseCode, reason: str) -> None:
        """Nothing is open."""


class FakeSession:
    """A session that keeps what is written to its CLI and what is published."""

    def __init__(self, *readers: FakeReader) -> None:
        self.readers: list[Any] = list(readers)
        self.turns = Turns(16)
        self.has_process = True
        self.lines: list[Line] = []
        self.published: list[Line] = []
        self.settlements = 0
        self.counted: Counter[tuple[str, str]] = Counter()
        self.wakes = 0

    def wake_task(self) -> None:
        self.wakes += 1

    def write(self, line: bytes) -> None:
        self.lines += [json.loads(part) for part in line.splitlines()]

    def publish(self, frame: ServerFrame) -> int:
        self.published.append(json.loads(codec.encode_server(frame)))
        return len(self.published)

    def forward(self, line: bytes) -> int:
        self.published.append(json.loads(line))
        return len(self.published)

    def settled(self) -> None:
        self.settlements += 1

    def count_question(self, kind: str, outcome: str) -> None:
        self.counted[kind, outcome] += 1

    # -- what the tests ask for --

    def answers(self) -> list[Line]:
        """What the CLI was answered, oldest first; forgotten then."""
        found = [line["response"] for line in self.lines if line["type"] == "control_response"]
        self.lines = [line for line in self.lines if line["type"] != "control_response"]
        return found

    def told(self) -> list[Line]:
        """What everybody was told; forgotten then."""
        found, self.published = self.published, []
        return found


def asked(request_id: str, subtype: str, **fields: Any) -> bytes:
    """A request of the CLI."""
    request = {"subtype": subtype, **fields}
    return msgspec.json.encode({"type": "control_request", "request_id": request_id, "request": request})


def answered(request_id: str, response: object) -> ControlResponse:
    """A client's answer."""
    return ControlResponse(ControlAnswer("success", request_id, Raw(msgspec.json.encode(response))))


def failed(request_id: str, error: str = "no") -> ControlResponse:
    """A client's error answer."""
    return ControlResponse(ControlAnswer("error", request_id, error=error))
