"""MCP servers of the simulated CLI: reached for real, replaced as a set, called; servers that live in the host."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.kit.mcp_child import STDIO, configuration, mcp_server
from tests.simulator.cli_child import Child, Frame, is_init, is_result, tool_results

CALL = r'work [[sim tool="mcp__acme__add:{\"a\": 4200, \"b\": 42}"]]'
ASK = r'work [[sim tool="mcp__acme__ask:{\"question\": \"Which colour?\"}"]]'
CALL_HOST = r'work [[sim tool="mcp__x__find:{\"q\": 1}"]]'
ALLOWED = {"permissions": {"allow": ["mcp__acme", "mcp__x"]}}


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"


def request(child: Child, subtype: str, method: str | None = None) -> Frame:
    """The next request of the CLI's of that kind."""

    def is_it(frame: Frame) -> bool:
        asked = frame.get("request", {})
        return asked.get("subtype") == subtype and (method is None or asked["message"]["method"] == method)

    return child.until(is_it)


def answered(asked: Frame, response: Any) -> Frame:
    body = {"subtype": "success", "request_id": asked["request_id"], "response": response}
    if isinstance(response, str):
        body = {"subtype": "error", "request_id": asked["request_id"], "error": response}
    return {"type": "control_response", "response": body}


def rpc(asked: Frame, result: Any) -> Frame:
    """The answer of a server in the host."""
    number = asked["request"]["message"].get("id")
    return answered(asked, {"mcp_response": {"jsonrpc": "2.0", "id": number, "result": result}})


def introduce(child: Child) -> None:
    """The handshake of a server in the host, with one tool."""
    child.send(rpc(request(child, "mcp_message", "initialize"), {"serverInfo": {"name": "x"}}))
    child.send(rpc(request(child, "mcp_message", "notifications/initialized"), {}))
    child.send(rpc(request(child, "mcp_message", "tools/list"), {"tools": [{"name": "find"}]}))


@pytest.mark.parametrize("transport", ["http", "sse"])
def test_a_server_is_called_for_real(tmp_path: Path, transport: str) -> None:
    """The tool's answer comes back, ``mcp_status`` lists the tools, and another token is refused by name."""
    with mcp_server(tmp_path, "secret", transport) as url, Child(tmp_path) as child:
        good = child.ask("mcp_set_servers", servers={"acme": configuration(url, "secret")})["response"]
        child.ask("apply_flag_settings", settings=ALLOWED)
        child.turn(CALL)
        (row,) = child.ask("mcp_status")["response"]["mcpServers"]
        bad = child.ask("mcp_set_servers", servers={"acme": configuration(url, "wrong")})["response"]
        child.turn(CALL)
    assert good == {"added": ["acme"], "removed": [], "errors": {}}
    assert (row["status"], [tool["name"] for tool in row["tools"]]) == ("connected", ["add", "slow", "ask"])
    assert (bad["added"], list(bad["errors"])) == (["acme"], ["acme"])
    assert "HTTP 401" in bad["errors"]["acme"]
    first, second = tool_results(child.frames)
    assert json.loads(first["content"]) == {"result": 4242}
    assert "No such tool available" in second["content"]


def test_a_program_is_a_server_too(tmp_path: Path) -> None:
    """A stdio server is started, called, and ended with the set; its environment is not shown."""
    with Child(tmp_path) as child:
        assert child.ask("mcp_set_servers", servers={"acme": STDIO})["response"]["errors"] == {}
        child.ask("apply_flag_settings", settings=ALLOWED)
        child.turn(CALL)
        assert "env" not in child.ask("mcp_status")["response"]["mcpServers"][0]["config"]
        assert child.ask("mcp_set_servers", servers={})["response"]["removed"] == ["acme"]
        assert child.ask("mcp_set_servers", servers={"no": {"command": "/no/such", "args": []}})["response"]["errors"]
    assert "4242" in tool_results(child.frames)[0]["content"]


def test_what_cannot_be_reached_is_named(tmp_path: Path) -> None:
    """Every server that fails has its reason; a set that is no object of objects is refused as a whole."""
    servers = {
        "closed": {"type": "http", "url": closed_port()},
        "closed-sse": {"type": "sse", "url": closed_port()},
        "odd": {"type": "http", "url": "nonsense"},
        "without": {"type": "http"},
        "header": {"type": "http", "url": closed_port(), "headers": {"A": 5}},
        "kind": {"type": "carrier-pigeon"},
        "local": {"command": "true"},
    }
    with Child(tmp_path) as child:
        answer = child.ask("mcp_set_servers", servers=servers)["response"]
        rows = {row["status"] for row in child.ask("mcp_status")["response"]["mcpServers"]}
        odd: list[Any] = ["x", None, [], {"acme": 5}]
        refused = [child.ask("mcp_set_servers", servers=bad)["subtype"] for bad in odd]
        again = child.ask("mcp_reconnect", serverName="closed")
        assert child.result("hello")["subtype"] == "success"
    assert (answer["added"], answer["removed"], rows) == (list(servers), [], {"failed"})
    assert answer["errors"].keys() == servers.keys()
    assert "ECONNREFUSED" in answer["errors"]["closed"]
    assert answer["errors"]["closed-sse"].startswith("SSE error: ECONNREFUSED")
    assert refused == ["error"] * 4
    assert "ECONNREFUSED" in again["error"]


def test_a_silent_server_holds_up_what_stdin_brings_but_not_the_turn(tmp_path: Path) -> None:
    """It is given up after ``MCP_TIMEOUT``; until then the turn goes on and later requests wait, in their order."""
    with socket.create_server(("127.0.0.1", 0)) as silent, Child(tmp_path, MCP_TIMEOUT="1000") as child:
        config = {"type": "http", "url": f"http://127.0.0.1:{silent.getsockname()[1]}/mcp"}
        child.say("hello [[sim tokens=1000 itl_ms=5]]")
        child.until(is_init)
        began = time.monotonic()
        slow, quick = ({"type": "control_request", "request_id": name} for name in ("slow", "quick"))
        child.send(
            {**slow, "request": {"subtype": "mcp_set_servers", "servers": {"acme": config}}},
            {**quick, "request": {"subtype": "get_binary_version"}},
        )
        answers = [child.until(lambda frame: frame["type"] == "control_response") for _ in range(2)]
        took = time.monotonic() - began
        seen = [frame["type"] for frame in child.frames]
        child.ask("interrupt")
    assert [answer["response"]["request_id"] for answer in answers] == ["slow", "quick"]
    assert "timed out after 1000ms" in answers[0]["response"]["response"]["errors"]["acme"]
    assert 0.9 < took < 10
    assert seen.count("stream_event") > 20


def test_switching_a_server_off_and_on(tmp_path: Path) -> None:
    """A disabled server has no tools and is not reconnected; unknown names and bad values are refused."""
    with mcp_server(tmp_path, "secret") as url, Child(tmp_path) as child:
        child.ask("mcp_set_servers", servers={"acme": configuration(url, "secret")})
        child.ask("mcp_toggle", serverName="acme", enabled=False)
        (off,) = child.ask("mcp_status")["response"]["mcpServers"]
        errors = [
            child.ask("mcp_reconnect", serverName="acme"),
            child.ask("mcp_reconnect", serverName="nobody"),
            child.ask("mcp_reconnect"),
            child.ask("mcp_toggle", serverName="nobody", enabled=True),
            child.ask("mcp_toggle", serverName="acme"),
        ]
        back = child.ask("mcp_toggle", serverName="acme", enabled=True)["subtype"]
        (on,) = child.ask("mcp_status")["response"]["mcpServers"]
    assert (off["status"], "tools" in off, on["status"], back) == ("disabled", False, "connected", "success")
    assert [answer["error"].split(" — ")[0] for answer in errors] == [
        "MCP server acme is disabled",
        "Server not found: nobody",
        "mcp_reconnect: serverName must be a string",
        "Server not found: nobody",
        "mcp_toggle: enabled must be a boolean",
    ]


def test_a_tool_of_a_server_asks_the_user(tmp_path: Path) -> None:
    """Its question is a control request, and what is answered reaches the tool; an interrupt withdraws it."""
    with mcp_server(tmp_path, "secret") as url, Child(tmp_path) as child:
        child.ask("mcp_set_servers", servers={"acme": configuration(url, "secret")})
        child.ask("apply_flag_settings", settings=ALLOWED)
        wanted = []
        for answer in ({"action": "accept", "content": {"colour": "blue"}}, {"action": "decline"}, "no", {"action": 5}):
            child.say(ASK)
            asked = request(child, "elicitation")
            wanted.append(asked["request"]["requested_schema"]["required"])
            child.send(answered(asked, answer))
            child.until(is_result)
        child.say(ASK)
        open_now = request(child, "elicitation")
        child.ask("interrupt")
        child.until(is_result)
    assert wanted == [["colour"]] * 4
    said = [str(block["content"]) for block in tool_results(child.frames)]
    for text, expected in zip(said, ("blue", "decline", "cancel", "cancel", "doesn't want to proceed"), strict=True):
        assert expected in text
    assert {"type": "control_cancel_request", "request_id": open_now["request_id"]} in child.frames


def test_a_server_that_dies_between_calls_costs_nothing(tmp_path: Path) -> None:
    """Its stream ends while nobody listens: no time is spent on that, and the next call says what is wrong."""
    with Child(tmp_path) as child:
        with mcp_server(tmp_path, "secret", "sse") as url:
            child.ask("mcp_set_servers", servers={"acme": configuration(url, "secret")})
            child.ask("apply_flag_settings", settings=ALLOWED)
        child.turn("hello [[sim tokens=2 ttft_ms=500]]")
        spent = os.sysconf("SC_CLK_TCK") * 0.25
        fields = Path(f"/proc/{child.process.pid}/stat").read_text().rpartition(")")[2].split()
        frames = child.turn(CALL)
    assert int(fields[11]) + int(fields[12]) < spent, "CPU time since the start"
    assert tool_results(frames)[0]["is_error"] is True


def test_a_server_in_the_host_is_introduced_called_and_told_of_an_interrupt(tmp_path: Path) -> None:
    """``initialize`` names it; its tool is called through the host; a call that is given up is cancelled there."""
    with Child(tmp_path) as child:
        line = {"subtype": "initialize", "sdkMcpServers": ["x"]}
        child.send({"type": "control_request", "request_id": "i", "request": line})
        introduce(child)
        child.ask("apply_flag_settings", settings=ALLOWED)
        child.say(CALL_HOST)
        called = request(child, "mcp_message", "tools/call")
        child.send(rpc(called, {"content": [{"type": "text", "text": "found"}]}))
        child.until(is_result)
        child.say(CALL_HOST)
        child.send(answered(request(child, "mcp_message", "tools/call"), "the host refuses"))
        child.until(is_result)
        child.say(CALL_HOST)
        request(child, "mcp_message", "tools/call")
        child.ask("interrupt")
        child.until(is_result)
        cancelled = [
            frame["request"]["message"]["params"]["requestId"]
            for frame in child.frames
            if frame.get("request", {}).get("message", {}).get("method") == "notifications/cancelled"
        ]
        removed = child.ask("mcp_set_servers", servers={"y": {"type": "sdk", "name": "y"}})["response"]
    assert called["request"]["message"]["params"]["arguments"] == {"q": 1}
    contents = [block["content"] for block in tool_results(child.frames)]
    assert contents[:2] == [[{"type": "text", "text": "found"}], "the host refuses"]
    assert cancelled == [4]
    assert removed == {"added": ["y"], "removed": ["x"], "errors": {}}
    init = next(frame for frame in child.frames if is_init(frame))
    assert init["mcp_servers"] == [{"name": "x", "status": "connected", "source": "sdk"}]


def test_the_end_of_stdin_answers_for_the_host(tmp_path: Path) -> None:
    """A call that the host has not answered fails, the turn ends with its result, and the process with code 0."""
    with Child(tmp_path) as child:
        child.ask("mcp_set_servers", servers={"x": {"type": "sdk", "name": "x"}})
        introduce(child)
        child.ask("apply_flag_settings", settings=ALLOWED)
        child.say(CALL_HOST)
        request(child, "mcp_message", "tools/call")
        assert child.finish() == 0
    assert tool_results(child.frames)[0]["content"] == "Stream closed"


def test_a_turn_waits_for_a_server_in_the_host_that_is_silent(tmp_path: Path) -> None:
    """Two attempts, each as long as ``MCP_TIMEOUT``; then the turn goes on without it."""
    with Child(tmp_path, MCP_TIMEOUT="300") as child:
        child.ask("mcp_set_servers", servers={"x": {"type": "sdk", "name": "x"}})
        began = time.monotonic()
        frames = child.turn(CALL_HOST)
        took = time.monotonic() - began
        attempts = [f for f in child.frames if f.get("request", {}).get("message", {}).get("method") == "initialize"]
    assert next(frame for frame in frames if is_init(frame))["mcp_servers"][0]["status"] == "failed"
    assert "No such tool available" in tool_results(frames)[0]["content"]
    assert (len(attempts), took > 0.25) == (2, True)
