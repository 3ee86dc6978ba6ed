"""Reaching an MCP server: one request, to learn whether it is there and takes the credential.

No tool of a server is ever listed or called over the wire; ``mcp__NAME__anything`` is canned.  The deadline is short,
because nothing else is read meanwhile.  Caller: ``simulator.controls``.
"""

import http.client
import json
import urllib.parse
from typing import Any, Final

from simulator.messages import VERSION

DEADLINE_S: Final = 2.0
REFUSED: Final = "ECONNREFUSED: Unable to connect. Is the computer able to access the url?"
_INITIALIZE: Final = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "claude-code", "version": VERSION},
    },
}


def connect(name: str, config: Any) -> dict[str, Any]:
    """The status row of a server after one attempt to reach it."""
    if not isinstance(config, dict):
        return {"name": name, "status": "failed", "error": "Invalid configuration", "config": config}
    kind = config.get("type", "stdio")
    origin = {"transport": kind, "scope": "dynamic", "source": "dynamic"}
    row = {"name": name, "status": "connected", "config": config, **origin}
    error = None
    if kind in {"http", "sse"}:
        error = _try(kind, str(config.get("url", "")), config.get("headers") or {})
    elif kind != "sdk":
        error = f"{kind} servers are not simulated"
    return {**row, "status": "failed", "error": error} if error else {**row, "tools": []}


def _try(kind: str, url: str, headers: Any) -> str | None:
    """What is wrong with the server, None if nothing is."""
    try:
        parts = urllib.parse.urlsplit(url)
        make = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[parts.scheme]
        connection = make(parts.hostname or "", parts.port, timeout=DEADLINE_S)
    except (ValueError, KeyError, http.client.InvalidURL):
        return f"Invalid URL: {url}"
    sent = {str(key): str(value) for key, value in headers.items()} if isinstance(headers, dict) else {}
    path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    try:
        if kind == "http":
            fixed = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
            connection.request("POST", path, json.dumps(_INITIALIZE), {**fixed, **sent})
        else:
            connection.request("GET", path, headers={"Accept": "text/event-stream", **sent})
        status = connection.getresponse().status
    except ConnectionRefusedError:
        return REFUSED
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"Connection failed: {str(error) or type(error).__name__}"
    finally:
        connection.close()
    return None if status < 400 else f"Error connecting to the server: HTTP {status}"
