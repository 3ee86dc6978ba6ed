"""Answers to control requests.

A table from subtype to function: it returns the payload of the answer (None for none) or raises ``Refused``.  What the
real program says behind an answer (a ``status``, a ``background_tasks_changed``) is said by ``_tell``.  What takes time
(a server that is being reached) is a generator: the lines behind it wait until it ends.
Caller: ``simulator.session``.
"""

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from simulator import messages, models
from simulator.flags import PERMISSION_MODES
from simulator.hooks import MALFORMED
from simulator.messages import Message
from simulator.settings_layer import SettingsError

if TYPE_CHECKING:
    from simulator.session import Session

Payload = Message | None
Answer = Payload | Generator[None, None, Any]
TASK_OUTPUT_BYTES: Final = 8192
_FEATURES_OFF: Final = (
    "ultracode", "ultracodeRequested", "ultrathinkAvailable", "outsideFileToolReadsBlocked",
    "outsideFileToolWritesBlocked", "outsideBlocksCountLaunchFoldersOnly", "launchEnvLeftOwnFilesInPlace",
)  # fmt: skip
_NO_SCHEMA: Final = "An internal error ended the session (WeakMap keys must be objects or non-registered symbols)."


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
    repeated = session.is_initialized
    try:
        carry_out = _TABLE.get(subtype) if isinstance(subtype, str) else None
        if carry_out is None:
            raise Refused(f"Unsupported control request subtype: {subtype}", "unsupported_request")
        found = carry_out(session, request)
    except Refused as refused:
        _tell(session, request_id, request, refused)
        return
    if not isinstance(found, Generator):
        _tell(session, request_id, request, found, repeated=repeated)
        return

    def finish(steps: Generator[None, None, Any]) -> bool:
        try:
            next(steps)
        except StopIteration as end:
            _tell(session, request_id, request, end.value)
        except Refused as refused:
            _tell(session, request_id, request, refused)
        else:
            return False
        return True

    session.hold(found, finish)


def _tell(
    session: "Session", request_id: str, request: Message, answer: Payload | Refused, *, repeated: bool = False
) -> None:
    """Answer, and say what belongs behind the answer."""
    if isinstance(answer, Refused):
        body: Message = {"subtype": "error", "request_id": request_id, **answer.fields}
    else:
        body = {"subtype": "success", "request_id": request_id}
        body |= {} if answer is None else {"response": answer}
    subtype = request.get("subtype")
    if subtype == "initialize":
        body |= {"pending_permission_requests": session.questions.prompts, "pending_user_dialog_requests": []}
    session.send({"type": "control_response", "response": body})
    if subtype == "initialize" and repeated:
        session.system("background_tasks_changed", tasks=[])
    elif subtype == "set_permission_mode" and session.settings.is_mode_news():
        session.system("status", status=None, permissionMode=session.settings.mode)


def _initialize(session: "Session", request: Message) -> Payload:
    agents, hooks = request.get("agents"), request.get("hooks")
    if not session.hooks.register(hooks):
        raise Refused(MALFORMED)
    if not session.is_initialized and isinstance(agents, dict):
        rows = [(name, agent) for name, agent in agents.items() if isinstance(agent, dict)]
        session.agents += [{"name": name, "description": str(agent.get("description", ""))} for name, agent in rows]
    settings = session.settings
    if not session.is_initialized and not settings.use_schema(request.get("jsonSchema")):
        session.fail(_NO_SCHEMA)
    if not session.is_initialized:
        session.shows_subagents = session.shows_subagents or request.get("forwardSubagentText") is True
        if request.get("sdkMcpServers"):
            session.servers.add_of_host(request["sdkMcpServers"])
    session.is_initialized = True
    answer = messages.initialized(
        settings.account, session.agents, settings.mode, session.state, session.version, settings.output_style,
        session.extensions,
    )  # fmt: skip
    return answer | ({"hooks_applied": True} if hooks is not None else {})


def _interrupt(session: "Session", request: Message) -> Payload:
    cancelled = []
    if request.get("cancel_queued") is True:
        cancelled = session.inbox.clear()
        for uuid in cancelled:
            session.lifecycle(uuid, "cancelled")
    turn = session.turn
    if turn is not None and turn.is_armed:
        turn.is_stopped = True
        session.questions.withdraw_all()
    elif turn is None and session.inbox and not session.results:
        session.first_is_stopped = True
    elif turn is None:
        session.tasks.stop_agents()
    return {
        "still_queued": session.inbox.uuids,
        **({"cancelled": cancelled} if request.get("cancel_queued") is True else {}),
    }


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
    mode = "default" if mode == "manual" else mode
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
        text = "max_thinking_tokens must be an integer or null and thinking_display must be "
        raise Refused(f'set_max_thinking_tokens: {text}"summarized", "omitted", "highlights", or null')
    session.settings.max_thinking_tokens = limit
    return None


def _apply_flag_settings(session: "Session", request: Message) -> Payload:
    try:
        session.settings.apply(request.get("settings"))
    except SettingsError as error:
        raise Refused(str(error)) from error
    return None


def _mcp_set_servers(session: "Session", request: Message) -> Answer:
    servers = request.get("servers")
    if not isinstance(servers, dict) or not all(isinstance(config, dict) for config in servers.values()):
        raise Refused("mcp_set_servers: servers must be an object of config objects")
    if not servers and not session.has_servers:
        return {"added": [], "removed": [], "errors": {}}
    return session.servers.replace(servers)


def _mcp_status(session: "Session", _request: Message) -> Payload:
    return {"mcpServers": session.servers.rows() if session.has_servers else []}


def _cancel_async_message(session: "Session", request: Message) -> Payload:
    uuid = request.get("message_uuid")
    is_cancelled = session.inbox.cancel(uuid)
    if is_cancelled:
        session.lifecycle(str(uuid), "cancelled")
    return {"cancelled": is_cancelled}


def _stop_task(session: "Session", request: Message) -> Payload:
    session.tasks.stop(_text(request, "stop_task", "task_id"))
    return {}


def _get_task_output(session: "Session", request: Message) -> Payload:
    output = session.tasks.output(_text(request, "get_task_output", "task_id"))
    tail = output[-TASK_OUTPUT_BYTES:].decode(errors="replace")
    return {"output": tail, "total_bytes": len(output), "truncated": len(output) > TASK_OUTPUT_BYTES}


def _text(request: Message, subtype: str, key: str) -> str:
    if not isinstance(request.get(key), str):
        raise Refused(f"{subtype}: {key} must be a string")
    return str(request[key])


def _rewind_files(session: "Session", request: Message) -> Payload:
    checkpoints, uuid = session.checkpoints, request.get("user_message_id")
    problem, is_dry = checkpoints.problem(uuid), request.get("dry_run") is True
    if problem is not None:
        if is_dry:
            return {"canRewind": False, "error": problem}
        raise Refused(problem)
    if is_dry:
        inserted, deleted = checkpoints.sizes(str(uuid))
        changed = list(checkpoints.changes(str(uuid)))
        return {"canRewind": True, "filesChanged": changed, "insertions": inserted, "deletions": deleted}
    checkpoints.rewind(str(uuid))
    return {"canRewind": True, "skippedLinks": 0}


def _get_context_usage(session: "Session", _request: Message) -> Payload:
    from simulator import context_usage  # noqa: PLC0415 - seldom asked

    return context_usage.answer(session)


def _get_settings(session: "Session", _request: Message) -> Payload:
    layer = session.settings.layer
    off = dict.fromkeys(_FEATURES_OFF, False)
    applied = {"model": session.settings.model, "effort": session.settings.effort, "advisor": None, **off}
    return {
        "effective": layer,
        "sources": [{"source": "flagSettings", "settings": layer}] if layer else [],
        "served_settings_state": "ineligible",
        "applied": {**applied, "ultracodeAvailable": True},
    }


def _get_session_cost(session: "Session", _request: Message) -> Payload:
    return {"text": f"Estimated cost:        ${session.usage.total_cost_usd:.4f}"}


def _get_binary_version(session: "Session", _request: Message) -> Payload:
    return {"version": session.version, "buildTime": messages.BUILD_TIME}


_TABLE: Final[dict[str, Callable[["Session", Message], Answer]]] = {
    "get_binary_version": _get_binary_version,
    "initialize": _initialize,
    "interrupt": _interrupt,
    "set_model": _set_model,
    "set_permission_mode": _set_permission_mode,
    "set_max_thinking_tokens": _set_max_thinking_tokens,
    "apply_flag_settings": _apply_flag_settings,
    "mcp_set_servers": _mcp_set_servers,
    "mcp_status": _mcp_status,
    "mcp_reconnect": lambda session, request: session.servers.reconnect(request.get("serverName")),
    "mcp_toggle": lambda session, request: session.servers.toggle(request.get("serverName"), request.get("enabled")),
    "mcp_message": lambda _session, _request: None,
    "cancel_async_message": _cancel_async_message,
    "stop_task": _stop_task,
    "background_tasks": lambda _session, _request: {},
    "get_task_output": _get_task_output,
    "rewind_files": _rewind_files,
    "get_context_usage": _get_context_usage,
    "get_settings": _get_settings,
    "get_session_cost": _get_session_cost,
    "list_models": lambda _session, _request: {"models": models.listing()},
}
