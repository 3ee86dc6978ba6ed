"""The client's side of MCP for one server: handshake, list of tools, calls, and what the server asks in between.

Waiting is written as generators that yield until something came: the program has one place where it waits, and goes on
reading stdin meanwhile.  Owner: ``simulator.server``.  Caller: ``simulator.servers``.
"""

from collections.abc import Generator
from typing import Any, Final, TypeVar

from simulator.mcp_wire import Message, Wire
from simulator.messages import VERSION
from simulator.questions import Questions, payload

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Something that takes time: it yields while it waits."""

PROTOCOL: Final = "2025-11-25"
MAX_PAGES: Final = 20
_METHOD_NOT_FOUND: Final = -32601
_ME: Final = {
    "name": "claude-code", "title": "Claude Code", "version": VERSION, "description": "A simulated coding tool",
    "websiteUrl": "https://example.invalid/claude-code",
}  # fmt: skip
_ACTIONS: Final = ("accept", "decline", "cancel")


class Problem(Exception):
    """The server cannot be reached, or refused; the text is what the CLI says."""


class HostWire:
    """To a server that lives in the host: every message is a control request, and its answer the server's."""

    fd: int | None = None
    problem: str | None = None
    is_sending = False

    def __init__(self, name: str, questions: Questions) -> None:
        self._name = name
        self._questions = questions
        self._open: dict[str, Any] = {}
        """Request id -> id of the message, None for a notification."""

    def send(self, message: Message) -> None:
        request = {"subtype": "mcp_message", "server_name": self._name, "message": message}
        self._open[self._questions.ask(request)] = message.get("id")

    def take(self) -> list[Message]:
        found = []
        for request_id, number in list(self._open.items()):
            answer = self._questions.answer(request_id)
            if answer is None:
                continue
            del self._open[request_id]
            said = payload(answer)
            if number is None:
                continue
            if said is not None and isinstance(said.get("mcp_response"), dict):
                found.append({**said["mcp_response"], "id": number})
            else:
                text = str(answer.get("error") or "Invalid MCP response")
                found.append({"jsonrpc": "2.0", "id": number, "error": {"code": -32000, "message": text}})
        return found

    def close(self) -> None:
        self._open.clear()


class Client:
    """One connection.  ``info`` and ``tools`` are known after ``handshake``."""

    def __init__(self, name: str, wire: Wire, questions: Questions) -> None:
        self.name = name
        self.wire = wire
        self.info: Message = {}
        self.tools: list[Message] = []
        self._questions = questions
        self._number = 0
        self._waiting: set[Any] = set()
        self._answers: dict[Any, Message] = {}
        """What came for the requests that somebody waits for, by their numbers."""
        self._elicitations: dict[str, Any] = {}
        """Question to the host -> id of the server's request."""

    def handshake(self) -> Steps[None]:
        """Introduce ourselves and list the tools; raises ``Problem``."""
        capabilities: Message = {} if isinstance(self.wire, HostWire) else {"elicitation": {}}
        params = {"protocolVersion": PROTOCOL, "capabilities": capabilities, "clientInfo": _ME}
        result = yield from self._request("initialize", params)
        self.info = result.get("serverInfo") or {}
        self.wire.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        while self.wire.is_sending:
            yield
        cursor: Message | None = None
        for _ in range(MAX_PAGES):
            result = yield from self._request("tools/list", cursor)
            self.tools += [tool for tool in result.get("tools") or () if isinstance(tool, dict)]
            if not result.get("nextCursor"):
                break
            cursor = {"cursor": result["nextCursor"]}

    def call(self, tool: str, given: Message, call_id: str) -> Steps[Message]:
        """Call a tool and return the result as it came; raises ``Problem``.  Closed early, it tells the server."""
        meta = {"claudecode/toolUseId": call_id, "progressToken": self._number}
        number = self._number
        try:
            return (yield from self._request("tools/call", {"name": tool, "arguments": given, "_meta": meta}))
        except GeneratorExit:
            params = {"requestId": number, "reason": "AbortError: remote-cancel"}
            self.wire.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
            raise

    def listen(self) -> None:
        """Take in what came: answers of the server, its own requests, the host's answers to those."""
        for message in self.wire.take():
            if "method" not in message:
                if isinstance(message.get("id"), int) and message["id"] in self._waiting:
                    self._answers[message["id"]] = message
            elif "id" in message:
                self._serve(message)
        for question, number in list(self._elicitations.items()):
            answer = self._questions.answer(question)
            if answer is not None:
                del self._elicitations[question]
                self._reply(number, _decision(answer))

    def close(self) -> None:
        for question in self._elicitations:
            self._questions.withdraw(question)
        self.wire.close()

    def _request(self, method: str, params: Message | None) -> Steps[Message]:
        number, self._number = self._number, self._number + 1
        more = {} if params is None else {"params": params}
        self.wire.send({"method": method, **more, "jsonrpc": "2.0", "id": number})
        self._waiting.add(number)
        try:
            while True:
                self.listen()
                if (answer := self._answers.pop(number, None)) is not None:
                    break
                if self.wire.problem is not None:
                    raise Problem(self.wire.problem)
                yield
        finally:
            self._waiting.discard(number)
        if "error" in answer:
            error = answer["error"]
            raise Problem(str(error.get("message")) if isinstance(error, dict) else str(error))
        result = answer.get("result")
        return result if isinstance(result, dict) else {}

    def _serve(self, message: Message) -> None:
        """A request of the server's."""
        params = message.get("params") or {}
        if message["method"] == "ping":
            self._reply(message["id"], {})
        elif message["method"] == "elicitation/create":
            schema = params.get("requestedSchema") or {}
            request = {"subtype": "elicitation", "mcp_server_name": self.name, "message": params.get("message", "")}
            form = {"mode": "form", "requested_schema": schema, "property_order": list(schema.get("properties") or ())}
            self._elicitations[self._questions.ask({**request, **form})] = message["id"]
        else:
            error = {"code": _METHOD_NOT_FOUND, "message": "Method not found"}
            self.wire.send({"jsonrpc": "2.0", "id": message["id"], "error": error})

    def _reply(self, number: Any, result: Message) -> None:
        self.wire.send({"jsonrpc": "2.0", "id": number, "result": result})


def _decision(answer: Message) -> Message:
    """What the server is told; whatever is no proper answer cancels."""
    said = payload(answer) or {}
    if said.get("action") not in _ACTIONS:
        return {"action": "cancel"}
    return {key: said[key] for key in ("action", "content") if key in said}
