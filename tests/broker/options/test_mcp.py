"""MCP servers: the tenant's beside the operator's, and answers without addresses."""

import pytest
from msgspec import Raw

from broker.options.mcp import cli_agents, cli_servers, errors, plain, shown_answer, taken
from protocol.mcp import McpHttp, McpSdk, McpServer, McpSse, McpStdio
from protocol.options import Agent

OWN: dict[str, McpServer] = {
    "acme": McpHttp("https://mcp.example.com/", {"Authorization": "Bearer x"}),
    "old": McpSse("https://old.example.com/"),
    "tab": McpSdk(),
}
OPERATOR: dict[str, McpServer] = {"acme": McpStdio("/usr/bin/acme", ["--quiet"], {"KEY": "k"})}


def test_the_operators_server_wins() -> None:
    """The tenant's of the same name is left out and told; every kind is in the CLI's form, with all of its keys."""
    assert cli_servers(OWN, OPERATOR) == {
        "acme": {"type": "stdio", "command": "/usr/bin/acme", "args": ["--quiet"], "env": {"KEY": "k"}},
        "old": {"type": "sse", "url": "https://old.example.com/", "headers": {}},
        "tab": {"type": "sdk", "name": "tab"},
    }
    assert list(taken(OWN, OPERATOR)) == ["acme"]
    assert taken(OWN, {}) == {}
    assert cli_servers({}, {"docs": McpStdio("/usr/bin/docs")})["docs"]["args"] == []


def test_an_agents_servers_are_in_the_clis_form_too() -> None:
    """A name stands for one of the session's; a program always has its arguments."""
    agents = {"a": Agent("d", "p", mcpServers=["acme", {"own": McpStdio("/usr/bin/own")}]), "b": Agent("d", "p")}
    assert cli_agents(agents) == {
        "a": {
            "description": "d",
            "prompt": "p",
            "mcpServers": ["acme", {"own": {"type": "stdio", "command": "/usr/bin/own", "args": [], "env": {}}}],
        },
        "b": {"description": "d", "prompt": "p"},
    }


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (b'{"added":["acme"],"removed":[],"errors":{}}', {}),
        (b'{"errors":{"acme":"Streamable HTTP error: HTTP 401 Unauthorized"}}', {"acme": "HTTP 401, unauthorized"}),
        (b'{"errors":{"acme":"connect ECONNREFUSED 127.0.0.1:9"}}', {"acme": "ECONNREFUSED"}),
        (b'{"errors":{"acme":"Error POSTing to endpoint: SECRET role"}}', {"acme": "could not be connected"}),
        (b'{"errors":{"acme":"timed out after 2000ms"}}', {"acme": "nothing within 2000 ms, timed out"}),
        (b'{"errors":{"acme":"HTTP 403: Invalid OAuth error. Raw body: SECRET"}}', {"acme": "HTTP 403"}),
        (b"{}", {}),
        (b"null", {}),
        (b'{"errors":["acme"]}', {}),
        (b"[" * 100_000, {}),
    ],
    ids=["connected", "refused", "dead", "quoted", "slow", "discovered", "silent", "null", "list", "deep"],
)
def test_servers_that_did_not_connect_are_named(response: bytes, expected: dict[str, str]) -> None:
    """By name, with the cause; what a server has said is not told, since nobody knows which server it was."""
    assert errors(Raw(response)) == expected


def test_an_address_in_an_error_is_taken_out() -> None:
    """It may hold a secret, and may be the operator's; the rest of the text stays."""
    text = 'cannot reach "https://user:secret@mcp.example.com/path?key=1" (wss://x/y), HTTP 401'
    assert plain(text) == 'cannot reach "(url)" ((url) HTTP 401'
    assert plain("x" * 1000, 512) == "x" * 512
    assert plain("ECONNREFUSED: Unable to connect.") == "ECONNREFUSED: Unable to connect."


def test_the_answer_to_a_change_of_servers() -> None:
    """What was added, what went, and why something did not connect: by name, the operator's name among them."""
    response = Raw(
        b'{"added":["old"],"removed":["gone"],"errors":{"old":"SSE error: https://old.example.com/ refused"}}'
    )
    assert shown_answer(response, OWN, OPERATOR) == {
        "added": ["old"],
        "removed": ["gone"],
        "errors": {"old": "could not be connected", "acme": "the name is the operator's (policy.mcp_servers)"},
    }
    assert shown_answer(Raw(b"null"), {}, {}) == {"added": [], "removed": [], "errors": {}}
