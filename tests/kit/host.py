"""A client that serves the CLI, as an SDK does: it answers prompts, hooks and messages for its own MCP server.

Callers: the end-to-end tests of hooks and of MCP servers that live in a client.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from tests.kit.client import DEADLINE_S, TERMINALS, Client, Frame

Answer = Callable[[Frame], Any]
"""From the ``request`` of a control request to the response; None: it stays unanswered; an ``Exception``: an error."""

ADD = {
    "name": "add",
    "description": "Add two numbers",
    "inputSchema": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
}


def allow(request: Frame) -> Frame:
    """Yes to every prompt."""
    return {"behavior": "allow", "updatedInput": request["input"]}


def adder(request: Frame) -> Frame:
    """An MCP server with one tool, ``add``."""
    message = request["message"]
    if "id" not in message:
        return {"mcp_response": {"jsonrpc": "2.0", "result": {}}}
    results: dict[str, Any] = {
        "initialize": {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "own", "version": "1"},
        },
        "tools/list": {"tools": [ADD]},
        "tools/call": {"content": [{"type": "text", "text": str(_sum(message))}]},
    }
    return {"mcp_response": {"jsonrpc": "2.0", "id": message["id"], "result": results[message["method"]]}}


def _sum(message: Frame) -> int:
    arguments = message.get("params", {}).get("arguments", {})
    return int(arguments.get("a", 0) + arguments.get("b", 0))


class Host:
    """Reads a client's frames and answers those that ask something.  ``asked`` holds what came, by subtype."""

    def __init__(self, client: Client, **answers: Answer) -> None:
        self.client = client
        self.answers: dict[str, Answer] = {"can_use_tool": allow, "mcp_message": adder, **answers}
        self.asked: list[Frame] = []

    async def until(self, wanted: Callable[[Frame], object], within_s: float = DEADLINE_S) -> Frame:
        """The next frame that ``wanted`` likes; what asks something is answered meanwhile."""
        async with asyncio.timeout(within_s):
            while True:
                frame = await self.client.receive(within_s)
                await self._serve(frame)
                if wanted(frame):
                    return frame

    async def _serve(self, frame: Frame) -> None:
        if frame["type"] != "control_request":
            return
        self.asked.append(frame)
        answer = self.answers.get(frame["request"]["subtype"])
        await self.respond(frame["request_id"], None if answer is None else answer(frame["request"]))

    async def respond(self, request_id: str, response: Any) -> None:
        """Answer a request by hand."""
        if response is None:
            return
        body: Frame = {"subtype": "success", "request_id": request_id, "response": response}
        if isinstance(response, Exception):
            body = {"subtype": "error", "request_id": request_id, "error": str(response)}
        await self.client.send({"type": "control_response", "response": body})

    async def turn(self, text: str, message_id: str | None = None, within_s: float = DEADLINE_S) -> Frame:
        """Send a user message and return its terminal frame."""
        await self.client.say(text, message_id)
        return await self.until(
            lambda f: f["type"] in TERMINALS and (message_id is None or f["id"] == message_id), within_s
        )

    async def control(self, subtype: str, request_id: str, **payload: Any) -> Frame:
        """Send a control request and return the ``response`` of its answer."""
        await self.client.ask(subtype, request_id, **payload)
        frame = await self.until(
            lambda f: f["type"] == "control_response" and f["response"]["request_id"] == request_id
        )
        response: Frame = frame["response"]
        return response

    def requests(self, subtype: str) -> list[Frame]:
        """What was asked, of one kind."""
        return [frame["request"] for frame in self.asked if frame["request"]["subtype"] == subtype]

    def events(self) -> list[str]:
        """The events that hooks were asked about, in order."""
        return [request["input"]["hook_event_name"] for request in self.requests("hook_callback")]
