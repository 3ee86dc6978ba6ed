"""The MCP servers of a session: replaced as a set, reconnected, switched off, called.

While a server is being reached, nothing else that stdin brings is looked at, as with the real program; the running turn
goes on.  ``MCP_TIMEOUT`` (milliseconds, 30,000) bounds that.  Servers of the host are introduced in the background, and
a turn waits for them.

Owner: ``simulator.session``.  Callers: ``simulator.controls``, ``simulator.turn``, ``simulator.tool_use``.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from simulator.controls import Refused
from simulator.mcp import Client, Problem, Steps
from simulator.messages import Message
from simulator.server import Server
from simulator.tools import ToolResult, failed

if TYPE_CHECKING:
    from simulator.session import Session

Listen = Callable[[float | None, Sequence[int]], list[int]]
DEFAULT_TIMEOUT_MS: Final = 30_000
HOST_TRIES: Final = 2
"""A server of the host's that did not answer is asked once more when the next turn begins."""


class Servers:
    """The set."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._servers: dict[str, Server] = {}
        self._background: list[Steps[None]] = []
        self._deadline: float | None = None
        """When the next attempt is given up (``time.monotonic``)."""

    @property
    def fds(self) -> list[int]:
        """What becomes readable when a server says something."""
        clients = (server.client for server in self._servers.values())
        return [client.wire.fd for client in clients if client is not None and client.wire.fd is not None]

    def sooner(self, seconds: float | None) -> float | None:
        """``seconds``, or less if an attempt must be given up before."""
        if self._deadline is None:
            return seconds
        left = max(0.0, self._deadline - time.monotonic())
        return left if seconds is None else min(seconds, left)

    def rows(self) -> list[Message]:
        return [server.row() for server in self._servers.values()]

    def init_rows(self) -> list[Message]:
        """``mcp_servers`` of ``system/init``."""
        return [{"name": one.name, "status": one.status, "source": one.source} for one in self._servers.values()]

    def has_tool(self, tool: str) -> bool:
        """Whether ``mcp__SERVER__TOOL`` exists."""
        return self._find(tool) is not None

    def title_of(self, tool: str) -> Message:
        """``tool_use_meta`` of a call, without its id."""
        _, _, rest = tool.partition("mcp__")
        server, _, name = rest.partition("__")
        title = {"display_name": name.replace("_", " ").capitalize()}
        return {**title, "server_display_name": server, "tool_name": name} if self.has_tool(tool) else title

    def source_of(self, tool: str) -> Message:
        """``mcp_server`` of a permission prompt."""
        server = self._servers[tool.split("__")[1]]
        return {"name": server.name, "source": server.source}

    def advance(self) -> None:
        """Let everything in the background go on, and take in what servers say that nobody waits for."""
        for server in self._servers.values():
            if server.client is not None:
                server.client.listen()
        self._background = [steps for steps in self._background if _is_unfinished(steps)]

    def add_of_host(self, names: Any) -> None:
        """``sdkMcpServers`` of ``initialize``."""
        for name in names if isinstance(names, list) else ():
            if isinstance(name, str) and name not in self._servers:
                self._servers[name] = Server(name, {"type": "sdk", "name": name})
                self._background.append(self._connect(self._servers[name]))
        self.advance()

    def settle(self, listen: Listen) -> None:
        """Wait for the servers of the host; raises what ``listen`` raises."""
        self._try_again()
        while self._background:
            listen(None, ())
            self._try_again()

    def _try_again(self) -> None:
        """Another attempt with those that failed."""
        if self._background:
            return
        for server in self._servers.values():
            if server.is_of_host and server.status == "failed" and server.tries < HOST_TRIES:
                self._background.append(self._connect(server))
        self.advance()

    def replace(self, configs: Message) -> Steps[Message]:
        """``mcp_set_servers``: the new set in place of the old one."""
        fresh = [name for name in configs if name not in self._servers]
        changed = [name for name, one in self._servers.items() if name in configs and one.config != configs[name]]
        gone = [name for name in self._servers if name not in configs]
        for name in (*gone, *changed):
            self._servers.pop(name).close()
        for name in (*fresh, *changed):
            self._servers[name] = Server(name, configs[name])
        added = [self._servers[name] for name in (*fresh, *changed)]
        yield from _all(self._connect(server) for server in added if not server.is_of_host)
        self._background += [self._connect(server) for server in added if server.is_of_host]
        errors = {server.name: server.error for server in added if server.error is not None}
        return {"added": [*fresh, *changed], "removed": gone, "errors": errors}

    def reconnect(self, name: Any) -> Steps[None]:
        """``mcp_reconnect``; raises ``Refused``."""
        if not isinstance(name, str):
            raise Refused("mcp_reconnect: serverName must be a string")
        server = self._named(name)
        if server.status == "disabled":
            raise Refused(f"MCP server {name} is disabled — enable it (mcp_toggle) before reconnecting")
        if server.is_of_host:
            raise Refused("SDK servers should be handled in print.ts")
        yield from self._connect(server)
        if server.error is not None:
            raise Refused(server.error)

    def toggle(self, name: Any, enabled: Any) -> Steps[None]:
        """``mcp_toggle``; raises ``Refused``."""
        if not isinstance(enabled, bool):
            raise Refused("mcp_toggle: enabled must be a boolean")
        server = self._named(name)
        if not enabled:
            server.close()
            server.status, server.error = "disabled", None
        elif server.is_of_host:
            server.tries = 0
            self._background.append(self._connect(server))
        else:
            yield from self._connect(server)
            if server.error is not None:
                raise Refused(server.error)

    def call(self, tool: str, given: Message, call_id: str, listen: Listen) -> ToolResult:
        """Run a tool of a server; raises what ``listen`` raises, and then the server was told."""
        found = self._find(tool)
        assert found is not None
        client, name = found
        steps = client.call(name, given, call_id)
        try:
            while True:
                next(steps)
                listen(None, self.fds)
        except StopIteration as end:
            return _result(end.value)
        except Problem as problem:
            return failed(str(problem))
        finally:
            steps.close()

    def _find(self, tool: str) -> tuple[Client, str] | None:
        _, _, rest = tool.partition("mcp__")
        server, _, name = rest.partition("__")
        client = self._servers[server].client if server in self._servers else None
        if client is None or name not in [one.get("name") for one in client.tools]:
            return None
        return (client, name) if self._servers[server].status == "connected" else None

    def _named(self, name: Any) -> Server:
        if not isinstance(name, str) or name not in self._servers:
            raise Refused(f"Server not found: {name}")
        return self._servers[name]

    def _connect(self, server: Server) -> Steps[None]:
        """Reach a server: in the end it is ``connected`` or ``failed``."""
        server.tries += 1
        limit_ms = self._timeout_ms()
        deadline = time.monotonic() + limit_ms / 1000
        environment = self._session.settings.tool_environment()
        steps = server.connect(self._session.questions, environment)
        while _is_unfinished(steps):
            if time.monotonic() >= deadline:
                server.fail(f'MCP server "{server.name}" connection timed out after {limit_ms}ms')
                break
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
            yield
        self._deadline = None

    def _timeout_ms(self) -> int:
        text = self._session.settings.env.get("MCP_TIMEOUT") or os.environ.get("MCP_TIMEOUT") or ""
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else DEFAULT_TIMEOUT_MS


def _result(said: Message) -> ToolResult:
    """What the model is told of a tool's result."""
    content = said.get("content") if isinstance(said.get("content"), list) else []
    if said.get("isError"):
        texts = [str(part.get("text", "")) for part in content or () if isinstance(part, dict)]
        return failed("\n".join(texts))
    if isinstance(said.get("structuredContent"), dict):
        text = json.dumps(said["structuredContent"], ensure_ascii=False, separators=(",", ":"))
        return ToolResult(text, False, {"content": text, "structuredContent": said["structuredContent"]})
    return ToolResult(content, False, content)


def _all(many: Iterable[Steps[None]]) -> Steps[None]:
    """All of them at the same time."""
    rest = [steps for steps in many if _is_unfinished(steps)]
    while rest:
        yield
        rest = [steps for steps in rest if _is_unfinished(steps)]


def _is_unfinished(steps: Steps[None]) -> bool:
    try:
        next(steps)
    except StopIteration:
        return False
    return True
