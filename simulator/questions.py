"""Control requests of the CLI's own, until they are answered or withdrawn.

A permission prompt, the callback of a hook, a message for a server of the host's, a question of an MCP server: each
is sent at once and waits while stdin is read on.
Owner: ``simulator.session``.  Callers: ``simulator.consent``, ``simulator.hooks``, ``simulator.mcp``,
``simulator.controls``.
"""

from collections.abc import Callable
from typing import Final

from simulator.ids import random_uuid
from simulator.messages import Message

PROMPT: Final = "can_use_tool"


class Questions:
    """What is open, by request id, and what was answered and not yet looked at."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._open: dict[str, Message] = {}
        self._answers: dict[str, Message] = {}

    @property
    def prompts(self) -> list[Message]:
        """The permission prompts that nobody has answered yet."""
        return [asked for asked in self._open.values() if asked["request"]["subtype"] == PROMPT]

    def ask(self, request: Message) -> str:
        """Send a request; returns its id."""
        request_id = random_uuid()
        asked = {"type": "control_request", "request_id": request_id, "request": request}
        self._open[request_id] = asked
        self._send(asked)
        return request_id

    def answer(self, request_id: str) -> Message | None:
        """The ``response`` object that came for a request, once; None while there is none."""
        return self._answers.pop(request_id, None)

    def accept(self, response: object) -> None:
        """Take in what stdin brought; an answer to nothing that is open is ignored."""
        if not isinstance(response, dict):
            return
        request_id = response.get("request_id")
        if isinstance(request_id, str) and self._open.pop(request_id, None) is not None:
            self._answers[request_id] = response

    def withdraw(self, request_id: str) -> None:
        """Take a request back and say so, unless it is answered."""
        if self._open.pop(request_id, None) is not None:
            self._send({"type": "control_cancel_request", "request_id": request_id})

    def forget(self, request_id: str) -> None:
        """Stop waiting without a word."""
        self._open.pop(request_id, None)

    def close(self) -> None:
        """stdin has ended: what concerns servers is answered with an error; others look for the end themselves."""
        for request_id, asked in list(self._open.items()):
            if asked["request"]["subtype"] in {"mcp_message", "elicitation"}:
                del self._open[request_id]
                self._answers[request_id] = {"subtype": "error", "error": "Stream closed"}

    def withdraw_all(self) -> None:
        """What an interrupt does, but for MCP: there the one who waits tells the server itself."""
        for request_id, asked in list(self._open.items()):
            if asked["request"]["subtype"] != "mcp_message":
                self.withdraw(request_id)


def payload(answer: Message | None) -> Message | None:
    """What an answer says if it is a success with an object, else None."""
    if answer is None or answer.get("subtype") != "success" or not isinstance(answer.get("response"), dict):
        return None
    found: Message = answer["response"]
    return found
