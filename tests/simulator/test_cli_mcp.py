"""MCP servers of the simulated CLI: reached or not, replaced as a set, their tools canned."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.simulator.cli_child import Child, tool_results


class _Server(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200 if self.headers["authorization"] == "Bearer good" else 401)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_arguments: object) -> None:
        pass


@contextmanager
def server() -> Iterator[str]:
    """A server that wants the token ``good``; yields its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_port}/mcp"
        finally:
            listener.shutdown()
            thread.join(5)


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"


def test_servers_are_reached_or_reported_by_name(tmp_path: Path) -> None:
    """A good one is connected; a refused credential says HTTP 401, a closed port says so, a bad entry too."""
    with server() as url, Child(tmp_path) as child:
        servers = {
            "good": {"type": "http", "url": url, "headers": {"Authorization": "Bearer good"}},
            "refused": {"type": "http", "url": url, "headers": {"Authorization": "Bearer wrong"}},
            "closed": {"type": "http", "url": closed_port()},
            "odd": {"type": "http", "url": "nonsense"},
            "local": {"command": "true"},
        }
        answer = child.ask("mcp_set_servers", servers=servers)["response"]
        rows = {row["name"]: row["status"] for row in child.ask("mcp_status")["response"]["mcpServers"]}
    assert (answer["added"], answer["removed"]) == (list(servers), [])
    assert answer["errors"].keys() == {"refused", "closed", "odd", "local"}
    assert "HTTP 401" in answer["errors"]["refused"]
    assert "ECONNREFUSED" in answer["errors"]["closed"]
    assert rows == {"good": "connected", "refused": "failed", "closed": "failed", "odd": "failed", "local": "failed"}


def test_the_set_is_replaced(tmp_path: Path) -> None:
    """``removed`` names what went, and ``init`` lists what is there."""
    good = {"type": "sdk", "name": "a"}
    with Child(tmp_path) as child:
        child.ask("mcp_set_servers", servers={"a": good})
        answer = child.ask("mcp_set_servers", servers={"b": good})["response"]
        frames = child.turn("hello")
        assert child.ask("mcp_set_servers", servers=5)["subtype"] == "error"
    assert answer == {"added": ["b"], "removed": ["a"], "errors": {}}
    init = next(frame for frame in frames if frame.get("subtype") == "init")
    assert init["mcp_servers"] == [{"name": "b", "status": "connected"}]


def test_tools_of_a_server_are_canned_and_obey_rules(tmp_path: Path) -> None:
    """``mcp__NAME`` allows all tools of a connected server; a server that is not there has none."""
    with Child(tmp_path) as child:
        child.ask("mcp_set_servers", servers={"acme": {"type": "sdk", "name": "acme"}})
        child.ask("apply_flag_settings", settings={"permissions": {"allow": ["mcp__acme"]}})
        child.turn("work [[sim tool=mcp__acme__find:x]]")
        child.turn("work [[sim tool=mcp__other__find:x]]")
        assert child.ask("mcp_toggle", serverName="acme", enabled=False)["subtype"] == "success"
        child.turn("work [[sim tool=mcp__acme__find:x]]")
        assert child.ask("mcp_reconnect", serverName="acme")["subtype"] == "success"
        assert child.ask("mcp_reconnect", serverName="nobody")["subtype"] == "error"
    assert [block.get("is_error", False) for block in tool_results(child.frames)] == [False, True, True]
