"""How messages travel to an MCP server and back: streamable HTTP, server-sent events, or a child's pipes.

Every wire has threads of its own that block on the network; what comes goes into a queue, and a byte into the pipe
``fd``, which the program's one ``select`` watches.  A wire says why it is broken in ``problem``.
Owner: ``simulator.server``.  Caller: ``simulator.mcp``.
"""

import http.client
import json
import os
import queue
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

from simulator import tools

Message = dict[str, Any]
REFUSED: Final = "ECONNREFUSED: Unable to connect. Is the computer able to access the url?"
REJECTED: Final = (
    "Server rejected the configured Authorization header (HTTP 401). Check that the token is valid for this MCP "
    "endpoint — OAuth fallback is disabled when headers.Authorization is set."
)
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
READ_DEADLINE_S: Final = 3600.0
"""For a socket whose reader nobody waits for any more."""


class Wire(Protocol):
    """One way to a server; ``send`` returns at once."""

    fd: int | None
    problem: str | None

    @property
    def is_sending(self) -> bool: ...
    def send(self, message: Message) -> None: ...
    def take(self) -> list[Message]: ...
    def close(self) -> None: ...


class _Threaded:
    """The queue and the pipe that all wires with threads share."""

    def __init__(self) -> None:
        self.fd: int | None
        self.fd, self._bell = os.pipe()
        os.set_blocking(self.fd, False)
        self.problem: str | None = None
        self._busy = 0
        self._came: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._lock = threading.Lock()

    @property
    def is_sending(self) -> bool:
        """A message is on its way, and a later one could overtake it."""
        return False

    def take(self) -> list[Message]:
        """What has come since the last look."""
        found: list[Message] = []
        if self.fd is None:
            return found
        try:
            while os.read(self.fd, 4096):
                pass
        except BlockingIOError:
            pass  # that was all
        while not self._came.empty():
            found.append(self._came.get())
        return found

    def close(self) -> None:
        """Forget the server; threads that still wait for it end unheard."""
        with self._lock:
            if self.fd is not None:
                os.close(self.fd)
                os.close(self._bell)
                self.fd = None

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        with self._lock:
            self._busy += 1
        threading.Thread(target=self._run, args=(work, *arguments), daemon=True).start()

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except ConnectionRefusedError:
            self.problem = REFUSED
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.problem = f"Connection failed: {str(error) or type(error).__name__}"
        finally:
            with self._lock:
                self._busy -= 1
            self._ring()

    def _push(self, text: str) -> None:
        """One message from the server, or a list of them; anything else is dropped."""
        value = json.loads(text)
        for message in value if isinstance(value, list) else [value]:
            if isinstance(message, dict):
                self._came.put(message)
        self._ring()

    def _ring(self) -> None:
        with self._lock:
            if self.fd is not None:
                os.write(self._bell, b"!")


class HttpWire(_Threaded):
    """Streamable HTTP: each message is a POST, whose answer is JSON or a stream of events."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        super().__init__()
        self._url = url
        self._headers = headers
        self._session: dict[str, str] = {}

    @property
    def is_sending(self) -> bool:
        return self._busy > 0

    def send(self, message: Message) -> None:
        self._start(self._post, message)

    def _post(self, message: Message) -> None:
        fixed = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        answer = _request(self._url, "POST", {**fixed, **self._headers, **self._session}, json.dumps(message))
        if answer.status >= 400:
            self.problem = refusal(answer.status, self._headers)
            return
        if found := answer.headers.get("mcp-session-id"):
            self._session = {"Mcp-Session-Id": found}
        if "text/event-stream" in answer.headers.get("content-type", ""):
            for kind, text in _events(answer):
                if kind == "message":
                    self._push(text)
        elif text := answer.read(MAX_ANSWER_BYTES).decode():
            self._push(text)


class SseWire(_Threaded):
    """The older transport: one stream of events, whose first names the address for messages."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        super().__init__()
        self._url = url
        self._headers = headers
        self._target = ""
        self._is_open = threading.Event()
        self._start(self._listen)

    def send(self, message: Message) -> None:
        self._start(self._post, message)

    def _listen(self) -> None:
        answer = _request(self._url, "GET", {"Accept": "text/event-stream", **self._headers}, None)
        if answer.status >= 400:
            self.problem = refusal(answer.status, self._headers)
            return
        for kind, text in _events(answer):
            if kind == "endpoint":
                self._target = urllib.parse.urljoin(self._url, text)
                self._is_open.set()
            elif kind == "message":
                self._push(text)
        self.problem = "SSE error: the stream has ended"

    def _post(self, message: Message) -> None:
        if not self._is_open.wait(READ_DEADLINE_S):
            return
        fixed = {"Content-Type": "application/json"}
        answer = _request(self._target, "POST", {**fixed, **self._headers}, json.dumps(message))
        answer.read(MAX_ANSWER_BYTES)
        if answer.status >= 400:
            self.problem = refusal(answer.status, self._headers)


class StdioWire(_Threaded):
    """A program that reads and writes lines.  Raises ``OSError`` when it cannot be started."""

    def __init__(self, command: str, arguments: list[str], environment: dict[str, str]) -> None:
        super().__init__()
        self._child = subprocess.Popen(
            [command, *arguments], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        tools.kill_at_exit(self._child.pid)
        self._start(self._listen)

    def send(self, message: Message) -> None:
        stdin = self._child.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(message).encode() + b"\n")
            stdin.flush()
        except OSError:
            self.problem = "Connection closed"
            self._ring()

    def close(self) -> None:
        super().close()
        tools.kill(self._child.pid)
        self._child.wait(10)

    def _listen(self) -> None:
        stdout = self._child.stdout
        assert stdout is not None
        for line in stdout:
            self._push(line.decode(errors="replace"))
        self.problem = "Connection closed"


def refusal(status: int, headers: dict[str, str]) -> str:
    """What the CLI says of an HTTP status that is none."""
    if status == 401 and any(name.lower() == "authorization" for name in headers):
        return REJECTED
    return f"Error connecting to the server: HTTP {status}"


def _request(url: str, method: str, headers: dict[str, str], body: str | None) -> http.client.HTTPResponse:
    parts = urllib.parse.urlsplit(url)
    kinds: dict[str, type[http.client.HTTPConnection]] = {
        "http": http.client.HTTPConnection, "https": http.client.HTTPSConnection,
    }  # fmt: skip
    connection = kinds[parts.scheme](parts.hostname or "", parts.port, timeout=READ_DEADLINE_S)
    path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    connection.request(method, path, body, headers)
    return connection.getresponse()


def _events(lines: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """(kind, data) of every server-sent event."""
    kind, data = "message", list[str]()
    for raw in lines:
        line = raw.decode(errors="replace").rstrip("\r\n")
        name, _, value = line.partition(":")
        if not line:
            if data:
                yield kind, "\n".join(data)
            kind, data = "message", []
        elif name == "event":
            kind = value.strip()
        elif name == "data":
            data.append(value.removeprefix(" "))
