"""Shapes of what the CLI says: every message that is not part of an API stream.

Pure but for ids and times.  Keys and their order are those of 2.1.329 (in a ``result``, ``type`` is not the first one).
It has more than 300 lines because each shape is written out once, key by key.
Callers: ``simulator.session``, ``simulator.turn``, ``simulator.controls``, ``simulator.commands``, ``simulator.cli``.
"""

import os
import time
from typing import Any, Final, NamedTuple

from simulator import models
from simulator.extensions import Extensions
from simulator.ids import new_id, new_uuid, random_uuid, timestamp
from simulator.refusals import Refusal
from simulator.transcript import project_dir
from simulator.usage import Usage, turn_usage

Message = dict[str, Any]

VERSION: Final = "2.1.329"
BUILD_TIME: Final = "2026-11-19T16:23:05Z"
TOOLS: Final = (
    "Task", "AskUserQuestion", "Bash", "Edit", "ExitPlanMode", "NotebookEdit", "Read", "Skill", "TaskStop",
    "ToolSearch", "WebFetch", "WebSearch", "Write",
)  # fmt: skip
SLASH_COMMANDS: Final = ("clear", "compact", "context", "cost", "init", "mcp", "model", "usage")
AGENTS: Final = (("general-purpose", "Does any task."), ("Explore", "Searches and reads."), ("Plan", "Plans."))
INIT_CAPABILITIES: Final = (
    "interrupt_receipt_v1", "interrupt_cancel_queued_v1", "msg_lifecycle_v1", "mcp_read_resource_v1",
    "mcp_call_result_not_for_model_v1", "mcp_call_check_permissions_v1", "reload_plugins_refuse_if_busy_v1",
)  # fmt: skip
INTERRUPTED: Final = "[Request interrupted by user]"
INTERRUPTED_TOOL: Final = "[Request interrupted by user for tool use]"
_FAST_MODE: Final = {"fast_mode_state": "off", "fast_mode_disabled_reason": "sdk_opt_in_required"}
_SUBAGENTS: Final = {
    "spawned": 0,
    "requested": {"background": 0, "foreground": 0, "unset": 0},
    "started_in_background": 0,
    "max_depth": 0,
    "spawned_by_subagents": 0,
    "completed": 0,
    "failed": 0,
    "killed": {"parent": 0, "user": 0, "system": 0},
    "refused": {"depth_limit": 0, "concurrency_limit": 0, "budget": 0},
    "by_type": {},
}


class Outcome(NamedTuple):
    """How a turn ended: what its ``result`` says beyond the counters."""

    subtype: str = "success"
    text: str = ""
    is_error: bool = False
    stop_reason: str | None = "end_turn"
    terminal_reason: str | None = "completed"
    turns: int = 1
    error: str | None = None
    """The line of ``errors`` for a subtype that is not ``success``."""
    status: int | None = None
    error_type: str | None = None
    counted: bool = True
    local_command: str | None = None
    first_token_ms: int | None = None
    structured: Message | None = None
    """What was given through the tool for structured output."""


def tail(session_id: str) -> Message:
    """What nearly every message ends with."""
    return {"uuid": new_uuid(), "session_id": session_id}


def system(session_id: str, subtype: str, **fields: Any) -> Message:
    """A small ``system`` message."""
    return {"type": "system", "subtype": subtype, **fields, "uuid": new_uuid(), "session_id": session_id}


def lifecycle(session_id: str, message_uuid: str, state: str) -> Message:
    """What became of a user message that carries a ``uuid``."""
    head = {"type": "command_lifecycle", "command_uuid": message_uuid, "state": state}
    return {**head, "uuid": new_uuid(), "session_id": session_id}


def init(session_id: str, *, model: str, mode: str, source: str, tools: list[str], servers: list[Message],
         version: str, agents: list[str], uuids: list[str], style: str, directories: list[str],
         extensions: Extensions) -> Message:  # fmt: skip
    """``system/init``, at the start of every turn."""
    cwd = os.getcwd()
    return {
        "type": "system",
        "subtype": "init",
        "cwd": cwd,
        "session_id": session_id,
        "tools": tools,
        "mcp_servers": servers,
        "model": model,
        "permissionMode": mode,
        "slash_commands": [*SLASH_COMMANDS, *extensions.commands],
        "terminal_slash_commands": [],
        "apiKeySource": source,
        "claude_code_version": version,
        "output_style": style,
        "agents": agents,
        "skills": extensions.skills,
        "plugins": extensions.plugins,
        **({"plugin_errors": extensions.errors} if extensions.errors else {}),
        "capabilities": list(INIT_CAPABILITIES),
        "analytics_disabled": True,
        "product_feedback_disabled": True,
        "served_by_anthropic": False,
        "uuid": new_uuid(),
        "memory_paths": {"auto": os.path.join(project_dir(cwd), "memory", "")},
        "original_cwd": cwd,
        "additional_directories": directories,
        **_FAST_MODE,
        "view_mode": "default",
        **({"user_message_uuids": uuids} if uuids else {}),
    }


def assistant(session_id: str, message: Message, request_id: str, uuids: list[str], **extra: Any) -> Message:
    """One finished block of the assistant.  ``uuids`` only on the first of a turn."""
    return {
        "type": "assistant",
        "message": message,
        "parent_tool_use_id": None,
        "session_id": session_id,
        "uuid": new_uuid(),
        "timestamp": timestamp(),
        "request_id": request_id,
        **extra,
        **_marks(uuids),
    }


def synthetic(session_id: str, text: str, stop_reason: str, uuids: list[str], **extra: Any) -> Message:
    """An assistant message that no model said: an API error, or what a local command prints."""
    message = {
        "diagnostics": None,
        "id": random_uuid(),
        "container": None,
        "model": "<synthetic>",
        "role": "assistant",
        "stop_details": None,
        "stop_reason": stop_reason,
        "stop_sequence": "" if stop_reason == "stop_sequence" else None,
        "type": "message",
        "usage": {**turn_usage(0, 0), "output_tokens_details": None, "service_tier": None, "inference_geo": None,
                  "iterations": None, "speed": None},
        "content": [{"type": "text", "text": text}],
        "context_management": None,
    }  # fmt: skip
    return {
        "type": "assistant",
        "message": message,
        "parent_tool_use_id": None,
        "session_id": session_id,
        "uuid": new_uuid(),
        "timestamp": timestamp(),
        **extra,
        **_marks(uuids),
    }


def api_error(session_id: str, refusal: Refusal, uuids: list[str]) -> Message:
    """The synthetic assistant message of a request that the API refused, or that never reached it."""
    extra: Message = {"error": refusal.kind}
    if refusal.status is not None:
        extra["request_id"] = new_id("req_")
    extra["is_api_error_message"] = True
    if refusal.status is not None:
        extra |= {"api_error_status": refusal.status, "api_error_type": refusal.error_type}
    return synthetic(session_id, refusal.text, "stop_sequence", uuids, **extra)


def user(session_id: str, content: Any, **extra: Any) -> Message:
    """A ``user`` message that the CLI itself says: a tool result, or that the turn was interrupted."""
    return {
        "type": "user",
        "message": {"role": "user", "content": content},
        "parent_tool_use_id": None,
        "session_id": session_id,
        "uuid": new_uuid(),
        "timestamp": timestamp(),
        **extra,
    }


def result(session_id: str, outcome: Outcome, usage: Usage, *, began: float, api_ms: float, index: int,
           denials: list[Message], queued: int, uuids: list[str], last: str | None,
           origin: Message | None) -> Message:  # fmt: skip
    """The one ``result`` of a turn.  ``last``: the last of the messages that began it; others may have joined later."""
    message: Message = {
        "duration_api_ms": round(api_ms),
        "stop_reason": outcome.stop_reason,
        "session_id": session_id,
        "total_cost_usd": usage.total_cost_usd,
        "usage": usage.of_turn(counted=outcome.counted),
        "modelUsage": usage.by_model(),
        "permission_denials": denials,
    }
    if outcome.terminal_reason is not None:
        message["terminal_reason"] = outcome.terminal_reason
    if origin is not None:
        message["origin"] = origin
    message |= {
        **_FAST_MODE,
        "subagent_stats": _SUBAGENTS,
        "safety_stops": 0,
        "is_error": outcome.is_error,
        "num_turns": outcome.turns,
        "subtype": outcome.subtype,
        **_ending(outcome),
        "type": "result",
        "duration_ms": round((time.monotonic() - began) * 1000),
        "uuid": new_uuid(),
    }
    if outcome.first_token_ms is not None:
        first = outcome.first_token_ms
        message |= {"ttft_stream_ms": first, "time_to_request_ms": 0, "first_content_frame_ms": first}
    message |= {
        **_marks(uuids, last),
        "queued_turn_count": queued,
        "result_index": index,
        "model_usage_since_last_result": usage.since_last(),
    }
    return message


def startup_failure(session_id: str, text: str, reason: str | None) -> Message:
    """The zeroed ``result`` of a process that will not start."""
    return {
        "type": "result",
        "subtype": "error_during_execution",
        "duration_ms": 0,
        "duration_api_ms": 0,
        "is_error": True,
        "num_turns": 0,
        "stop_reason": None,
        "session_id": session_id,
        "total_cost_usd": 0,
        "usage": turn_usage(0, 0),
        "modelUsage": {},
        "permission_denials": [],
        "uuid": new_uuid(),
        "errors": [text],
        **({"startup_failure_reason": reason} if reason else {}),
        "result_index": 0,
    }


def can_use_tool(block: Message, **more: Any) -> Message:
    """The permission prompt for a ``tool_use`` block, as the request of a control request."""
    tool, given = block["name"], block["input"]
    about = given.get("description") or given.get("file_path") or given.get("url")
    return {
        "subtype": "can_use_tool",
        "tool_name": tool,
        "display_name": tool,
        "input": given,
        **({"description": str(about)} if about else {}),
        "tool_use_id": block["id"],
        **more,
    }


def initialized(account: Message, agents: list[Message], mode: str, state: str, version: str, style: str,
                extensions: Extensions) -> Message:  # fmt: skip
    """The payload of the ``initialize`` answer."""
    builtin = [{"name": name, "description": name, "argumentHint": "", "builtin": True} for name in SLASH_COMMANDS]
    found = [{name: row[name] for name in row if name != "body"} for row in extensions.commands.values()]
    return {
        "commands": builtin + found,
        "agents": agents,
        "output_style": style,
        "available_output_styles": ["default", "Explanatory", "Learning"],
        "models": models.listing(),
        "account": account,
        "pid": os.getpid(),
        "claude_code_version": version,
        "current_permission_mode": mode,
        "hook_on_failure_supported": True,
        **_FAST_MODE,
        "session_state": state,
        "capabilities": ["mcp_call_result_not_for_model_v1", "mcp_call_check_permissions_v1"],
    }


def _ending(outcome: Outcome) -> Message:
    if outcome.subtype != "success":
        return {"errors": [outcome.error]}
    if outcome.local_command is not None:
        return {"result": outcome.text, "local_command": outcome.local_command}
    ending: Message = {"api_error_status": outcome.status}
    if outcome.error_type is not None:
        ending["api_error_type"] = outcome.error_type
    ending["result"] = outcome.text
    if outcome.structured is not None:
        ending["structured_output"] = outcome.structured
    if outcome.first_token_ms is not None:
        ending["ttft_ms"] = outcome.first_token_ms
    return ending


def _marks(uuids: list[str], last: str | None = None) -> Message:
    """Which user messages this belongs to: one uuid (the last, if not told otherwise) and all of them."""
    return {"user_message_uuid": last or uuids[-1], "user_message_uuids": uuids} if uuids else {}
