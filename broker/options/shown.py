"""A CLI's answer to a control request as a client may see it: what is secret is taken out.

Pure.  Caller: ``broker.sessions.exchange``.  What is shown of settings is a list of keys: a new one is hidden until it
is known.
"""

from typing import Any

import msgspec
from msgspec import Raw

from broker.options.mcp import cause
from protocol.controls import DECODE_ERRORS, Control, GetSettings, McpStatus

SETTINGS = (
    "model", "fallbackModel", "effortLevel", "outputStyle", "alwaysThinkingEnabled", "language", "permissions",
)  # fmt: skip
PERMISSIONS = ("allow", "deny", "ask", "defaultMode", "additionalDirectories")
APPLIED = ("model", "effort", "ultracode")
SOURCES = ("flagSettings", "userSettings", "projectSettings", "localSettings")
"""Not the operator's own (managed) ones."""
ACCOUNT = ("tokenSource", "apiKeySource", "apiProvider", "subscriptionType")
"""What is told of an account that the operator pays with."""
HIDDEN_OF_INITIALIZE = ("pid", "user_output_styles_dir")


def shown(control: Control, response: Raw) -> Any:
    """``response`` for the client that asked."""
    match control:
        case McpStatus():
            return _mcp_status(_decoded(response))
        case GetSettings():
            return _settings(_decoded(response))
        case _:
            return response


def shown_initialize(response: Raw, *, is_own_account: bool) -> dict[str, Any]:
    """The answer to ``initialize``."""
    found = _decoded(response)
    kept = {key: value for key, value in found.items() if key not in HIDDEN_OF_INITIALIZE}
    if not is_own_account and "account" in kept:
        kept["account"] = _only(kept["account"], ACCOUNT)
    return kept


def _decoded(response: Raw) -> dict[str, Any]:
    try:
        found: Any = msgspec.json.decode(response)
    except DECODE_ERRORS:
        return {}
    return found if isinstance(found, dict) else {}


def _only(value: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value[key] for key in keys if key in value} if isinstance(value, dict) else {}


def _rows(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _mcp_status(found: dict[str, Any]) -> dict[str, Any]:
    """Configurations hold URLs, headers and commands; error texts may repeat them."""
    rows = _rows(found.get("mcpServers"))
    for row in rows:
        row.pop("config", None)
        if isinstance(row.get("error"), str):
            row["error"] = cause(row["error"])
    return {"mcpServers": rows}


def _settings(found: dict[str, Any]) -> dict[str, Any]:
    sources = [row for row in _rows(found.get("sources")) if row.get("source") in SOURCES]
    return {
        "effective": _layer(found.get("effective")),
        "sources": [{"source": row["source"], "settings": _layer(row.get("settings"))} for row in sources],
        "applied": _only(found.get("applied"), APPLIED),
    }


def _layer(value: Any) -> dict[str, Any]:
    layer = _only(value, SETTINGS)
    if "permissions" in layer:
        layer["permissions"] = _only(layer["permissions"], PERMISSIONS)
    return layer
