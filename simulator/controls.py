"""Answers to control requests.

A table from subtype to function: it returns the payload of the answer (None for none) or raises ``Refused``.  What the
real program says behind an answer (a ``status``, a ``background_tasks_changed``) is said by ``_AFTER``.
Caller: ``simulator.session``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from simulator import messages, models
from simulator.flags import PERMISSION_MODES
from simulator.messages import Message
from simulator.settings import SettingsError

if TYPE_CHECKING:
    from simulator.session import Session

Payload = Message | None


class Refused(Exception):
    """A control request that is answered with an error."""

    def __init__(self, text: str, code: str | None = None, **extra: Any) -> None:
        super().__init__(text)
        self.fields: Message = {"error": text, **({"error_code": code} if code else {}), **extra}


def answer(session: "Session", request_id: str, request: Message) -> None:
    """Carry out one control request and answer it; a model, which takes a while, after the lines behind it."""
    if request.get("subtype") == "set_model" and isinstance(request.get("model"), str):
        session.deferred.append(lambda: _carry_out(session, request_id, request))
    else:
        _carry_out(session, request_id, request)


def _carry_out(session: "Session", request_id: str, request: Message) -> None:
    subtype = request.get("subtype")
    repeated = subtype == "initialize" and session.is_initialized
    body: Message = {"subtype": "success", "request_id": request_id}
    try:
        carry_out = _TABLE.get(subtype) if isinstance(subtype, str) else None
        if carry_out is None:
            raise Refused(f"Unsupported control request subtype: {subtype}", "unsupported_request")
        payload = carry_out(session, request)
        if payload is not None:
            body["response"] = payload
    except Refused as refused:
        body = {"subtype": "error", "request_id": request_id, **refused.fields}
    if subtype == "initialize":
        body |= {"pending_permission_requests": list(session.prompts.values()), "pending_user_dialog_requests": []}
    session.send({"type": "control_response", "response": body})
    if repeated:
        session.system("background_tasks_changed", tasks=[])
    elif subtype == "set_permission_mode" and body["subtype"] == "success":
        session.system("status", status=None, permissionMode=session.settings.mode)


def _initialize(session: "Session", request: Message) -> Payload:
    agents = request.get("agents")
    if not session.is_initialized and isinstance(agents, dict):
        rows = [(name, agent) for name, agent in agents.items() if isinstance(agent, dict)]
        session.agents += [{"name": name, "description": str(agent.get("description", ""))} for name, agent in rows]
    session.is_initialized = True
    settings = session.settings
    return messages.initialized(settings.account, session.agents, settings.mode, session.state, session.version)


def _interrupt(session: "Session", request: Message) -> Payload:
    cancelled = []
    if request.get("cancel_queued") is True:
        cancelled = [message.uuid for message in session.queue if message.uuid]
        session.queue.clear()
        for uuid in cancelled:
            session.lifecycle(uuid, "cancelled")
    turn = session.turn
    if turn is not None and turn.is_armed:
        turn.is_stopped = True
        if turn.prompt_id is not None:
            session.prompts.pop(turn.prompt_id, None)
            session.send({"type": "control_cancel_request", "request_id": turn.prompt_id})
    elif turn is None and session.queue and not session.results:
        session.first_is_stopped = True
    queued = [message.uuid for message in session.queue if message.uuid]
    return {"still_queued": queued, **({"cancelled": cancelled} if request.get("cancel_queued") is True else {})}


def _set_model(session: "Session", request: Message) -> Payload:
    settings, name = session.settings, request.get("model")
    if name is not None and not isinstance(name, str):
        raise Refused("set_model: model must be a string", "invalid_request", model=settings.model)
    if name is not None and name not in models.ALIASES:
        # A full name is tried out with a request to the API; an alias is taken at its word.
        credential = settings.credential()
        if credential is None:
            raise Refused("Unable to validate model: no credential", "check_failed", model=settings.model)
        if credential.is_bad:
            text = "Authentication failed. Please check your API credentials."
            raise Refused(text, "auth_failed", model=settings.model)
        if not models.is_known(name):
            raise Refused(f"Model '{name}' not found", "not_found", model=settings.model)
    settings.set_model(name)
    return {"model": settings.model}


def _set_permission_mode(session: "Session", request: Message) -> Payload:
    mode = request.get("mode")
    if mode not in PERMISSION_MODES:
        raise Refused(f"Cannot set permission mode: must be one of {', '.join(PERMISSION_MODES)}", "invalid_mode")
    if mode == "bypassPermissions" and not session.flags.may_bypass:
        text = "the session was not launched with --dangerously-skip-permissions"
        raise Refused(f"Cannot set permission mode to bypassPermissions because {text}", "bypass_not_launched")
    session.settings.mode = mode
    return {"mode": mode}


def _set_max_thinking_tokens(session: "Session", request: Message) -> Payload:
    limit = request.get("max_thinking_tokens")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
        raise Refused("set_max_thinking_tokens: max_thinking_tokens must be a number or null", "invalid_request")
    session.settings.max_thinking_tokens = limit
    return None


def _apply_flag_settings(session: "Session", request: Message) -> Payload:
    try:
        session.settings.apply(request.get("settings"))
    except SettingsError as error:
        raise Refused(str(error)) from error
    return None


def _mcp_set_servers(session: "Session", request: Message) -> Payload:
    from simulator import mcp  # noqa: PLC0415 - only sessions with MCP servers pay for an HTTP client

    servers = request.get("servers")
    if not isinstance(servers, dict):
        raise Refused("mcp_set_servers: servers must be an object", "invalid_request")
    removed = [name for name in session.servers if name not in servers]
    added = [name for name, config in servers.items() if session.servers.get(name, {}).get("config") != config]
    kept = {name: row for name, row in session.servers.items() if name in servers and name not in added}
    session.servers = kept | {name: mcp.connect(name, servers[name]) for name in added}
    errors = {name: session.servers[name]["error"] for name in added if "error" in session.servers[name]}
    return {"added": added, "removed": removed, "errors": errors}


def _mcp_status(session: "Session", _request: Message) -> Payload:
    return {"mcpServers": list(session.servers.values())}


def _mcp_reconnect(session: "Session", request: Message) -> Payload:
    from simulator import mcp  # noqa: PLC0415

    name = _server(session, request)
    session.servers[name] = mcp.connect(name, session.servers[name]["config"])
    return {}


def _mcp_toggle(session: "Session", request: Message) -> Payload:
    name = _server(session, request)
    session.servers[name]["status"] = "connected" if request.get("enabled") else "disabled"
    return {}


def _server(session: "Session", request: Message) -> str:
    name = request.get("serverName")
    if not isinstance(name, str) or name not in session.servers:
        raise Refused(f"Server not found: {name}")
    return name


def _cancel_async_message(session: "Session", request: Message) -> Payload:
    found = [message for message in session.queue if message.uuid and message.uuid == request.get("message_uuid")]
    for message in found:
        session.queue.remove(message)
        session.lifecycle(message.uuid, "cancelled")
    return {"cancelled": bool(found)}


def _get_settings(session: "Session", _request: Message) -> Payload:
    layer = session.settings.layer
    applied = {"model": session.settings.model, "effort": "medium"}
    return {"effective": layer, "sources": [{"source": "flagSettings", "settings": layer}], "applied": applied}


def _get_session_cost(session: "Session", _request: Message) -> Payload:
    return {"text": f"Estimated cost:        ${session.usage.total_cost_usd:.4f}"}


def _get_binary_version(session: "Session", _request: Message) -> Payload:
    return {"version": session.version, "buildTime": messages.BUILD_TIME}


_TABLE: Final[dict[str, Callable[["Session", Message], Payload]]] = {
    "get_binary_version": _get_binary_version,
    "initialize": _initialize,
    "interrupt": _interrupt,
    "set_model": _set_model,
    "set_permission_mode": _set_permission_mode,
    "set_max_thinking_tokens": _set_max_thinking_tokens,
    "apply_flag_settings": _apply_flag_settings,
    "mcp_set_servers": _mcp_set_servers,
    "mcp_status": _mcp_status,
    "mcp_reconnect": _mcp_reconnect,
    "mcp_toggle": _mcp_toggle,
    "cancel_async_message": _cancel_async_message,
    "stop_task": lambda _session, _request: {},
    "get_settings": _get_settings,
    "get_session_cost": _get_session_cost,
    "list_models": lambda _session, _request: {"models": models.listing()},
}
