"""One MCP server of a session: its configuration, its state, the way to it.

Owner and caller: ``simulator.servers``.
"""

import urllib.parse

from simulator.mcp import Client, HostWire, Problem, Steps
from simulator.mcp_wire import HttpWire, SseWire, StdioWire, Wire
from simulator.messages import Message
from simulator.questions import Questions


class Server:
    """One entry of the set."""

    def __init__(self, name: str, config: Message) -> None:
        self.name = name
        self.config = config
        self.kind = str(config.get("type", "stdio"))
        self.status = "pending"
        self.error: str | None = None
        self.client: Client | None = None
        self.tries = 0

    @property
    def is_of_host(self) -> bool:
        return self.kind == "sdk"

    def row(self) -> Message:
        """What ``mcp_status`` says."""
        row: Message = {"name": self.name, "status": self.status}
        connected = self.status == "connected" and self.client is not None
        if connected and self.client is not None:
            row["serverInfo"] = self.client.info
        if self.error is not None and self.status == "failed":
            row["error"] = self.error
        if not self.is_of_host:
            row["config"] = {key: value for key, value in self.config.items() if key != "env"}
        row |= {"transport": self.kind, "scope": "dynamic", "source": self.source}
        if connected and self.client is not None:
            row["tools"] = [{"name": tool.get("name"), "annotations": {}} for tool in self.client.tools]
        return row

    @property
    def source(self) -> str:
        return "sdk" if self.is_of_host else "dynamic"

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None

    def fail(self, error: str) -> None:
        """It cannot be used, for a reason."""
        prefix = "SSE error: " if self.kind == "sse" and error.startswith("ECONNREFUSED") else ""
        self.status, self.error = "failed", prefix + error
        self.close()

    def connect(self, questions: Questions, environment: dict[str, str]) -> Steps[None]:
        """Reach it: in the end it is ``connected`` or ``failed``."""
        self.close()
        self.status, self.error = "pending", None
        try:
            self.client = Client(self.name, self._wire(questions, environment), questions)
            yield from self.client.handshake()
        except Problem as problem:
            self.fail(str(problem))
        else:
            self.status = "connected"

    def _wire(self, questions: Questions, environment: dict[str, str]) -> Wire:
        config = self.config
        if self.is_of_host:
            return HostWire(self.name, questions)
        if self.kind in {"http", "sse"}:
            url, headers = _address(config)
            return HttpWire(url, headers) if self.kind == "http" else SseWire(url, headers)
        if self.kind != "stdio":
            raise Problem(f"Unsupported server type: {self.kind}")
        if not isinstance(config.get("args"), list) or not isinstance(config.get("command"), str):
            raise Problem("Spread syntax requires ...iterable not be null or undefined")
        own = config.get("env") or {}
        try:
            return StdioWire(config["command"], [str(one) for one in config["args"]], environment | own)
        except OSError as error:
            raise Problem(f"ENOENT: no such file or directory, posix_spawn '{config['command']}'") from error


def _address(config: Message) -> tuple[str, dict[str, str]]:
    """URL and headers of a configuration; raises ``Problem``."""
    url, headers = config.get("url"), config.get("headers") or {}
    if not isinstance(url, str):
        raise Problem("TypeError dialing [unparseable url] (ERR_INVALID_URL)")
    try:
        parts = urllib.parse.urlsplit(url)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound:
        raise Problem("'url' is not a valid URL. Update the server's config and reconnect.")
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise Problem("[mcp error detail unavailable: redaction failed]")
    return url, headers
