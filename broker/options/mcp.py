"""MCP servers of a session: the tenant's beside the operator's, and what a tenant may read about them.

Pure.  Callers: ``broker.options.binding``, ``broker.sessions.gate``, ``broker.options.shown``.  The operator's names
win.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct

from protocol.controls import DECODE_ERRORS
from protocol.mcp import McpSdk, McpServer, McpStdio
from protocol.options import Agent

MAX_ERROR = 256
_STATUS = re.compile(r"\b(?:HTTP|status|code)\b\D{0,12}([1-5]\d\d)\b", re.IGNORECASE)
_LIMIT = re.compile(r"\btim(?:ed out|eout)\b\D{0,12}(\d{1,6}) ?ms\b", re.IGNORECASE)
_CAUSES = (
    "ECONNREFUSED", "ECONNRESET", "ENOTFOUND", "EHOSTUNREACH", "ENETUNREACH", "ETIMEDOUT", "EPIPE", "ENOENT", "EACCES",
    "connection closed", "connection refused", "certificate", "unauthorized", "forbidden", "not found", "timed out",
    "timeout", "unable to connect",
)  # fmt: skip
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)


class _Answer(Struct, frozen=True):
    added: list[str] = []
    removed: list[str] = []
    errors: dict[str, str] = {}


_answer = msgspec.json.Decoder(_Answer)


def cli_servers(own: Mapping[str, McpServer], operator: Mapping[str, McpServer]) -> dict[str, dict[str, Any]]:
    """The whole set in the CLI's form.  It replaces what was set before, so the operator's are always in it."""
    return {name: _cli_server(name, server) for name, server in {**own, **operator}.items()}


def _cli_server(name: str, server: McpServer) -> dict[str, Any]:
    match server:
        case McpSdk():
            return {"type": "sdk", "name": name}
        case McpStdio(command=command, args=args, env=env):  # 2.1.329 fails without `args`
            return {"type": "stdio", "command": command, "args": args, "env": env}
        case other:
            return {"type": other.__struct_config__.tag, "url": other.url, "headers": other.headers}


def cli_agents(agents: Mapping[str, Agent]) -> dict[str, dict[str, Any]]:
    """Subagents in the CLI's form: servers of their own as the session's, names of the session's as they are."""
    found = {name: msgspec.to_builtins(agent) for name, agent in agents.items()}
    for name, agent in agents.items():
        if agent.mcpServers is not UNSET:
            servers = [one if isinstance(one, str) else cli_servers(one, {}) for one in agent.mcpServers]
            found[name]["mcpServers"] = servers
    return found


def taken(own: Mapping[str, McpServer], operator: Mapping[str, McpServer]) -> dict[str, str]:
    """Errors of the tenant's servers that have a name of the operator's."""
    return {name: "the name is the operator's (policy.mcp_servers)" for name in own if name in operator}


def errors(response: Raw) -> dict[str, str]:
    """The servers that did not connect, by name, from the answer to ``mcp_set_servers``."""
    try:
        found = _answer.decode(response)
    except DECODE_ERRORS:
        return {}
    return {name: cause(text) for name, text in found.errors.items()}


def shown_answer(response: Raw, own: Mapping[str, McpServer], operator: Mapping[str, McpServer]) -> dict[str, Any]:
    """The answer to ``mcp_set_servers`` as its client gets it."""
    try:
        found = _answer.decode(response)
    except DECODE_ERRORS:
        found = _Answer()
    told = errors(response) | taken(own, operator)
    return {"added": found.added, "removed": found.removed, "errors": told}


def cause(text: str) -> str:
    """Why a server is not there, in words of a closed list.

    The CLI quotes what a server answers, and follows where it is sent: by its words a tenant would read what only this
    machine can reach.
    """
    status, limit, lower = _STATUS.search(text), _LIMIT.search(text), text.lower()
    found = [each for each in _CAUSES if each.lower() in lower]
    told = [f"HTTP {status.group(1)}"] if status else []
    told += [f"nothing within {limit.group(1)} ms"] if limit else []
    return ", ".join([*told, *found[:2]]) or "could not be connected"


def plain(text: str, longest: int = MAX_ERROR) -> str:
    """An error text without addresses, which may hold secrets; at most ``longest`` characters."""
    return _URL.sub("(url)", text)[:longest]
