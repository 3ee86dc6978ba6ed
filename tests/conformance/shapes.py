"""A frame without its ids, times, texts and counts: what kind it is, which keys it has, which values mean something.

Pure.  Callers: ``comparison`` and its tests.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from tests.conformance.driver import Frame

_OPEN_MAPS: Final = re.compile(
    r"(^|\.)(modelUsage|model_usage|model_usage_since_last_result|input|tool_input|by_type|response\.errors|env"
    r"|headers|arguments|answers|properties|structured_output|structuredContent)$"
)
"""Objects whose keys are data (names of models, arguments, servers, variables): every key becomes ``*``."""
_TEXTS: Final = re.compile(
    r"(^|\.)(text|thinking|signature|partial_json|content|result|description|message|error_message|cwd|path|ruleContent"
    r"|stdout|stderr|name|title|id|uuid|session_id|request_id|tool_use_id|parent_tool_use_id|command_uuid"
    r"|api_message_id|timestamp|version"
    r"|model|error|task_id|run_id|runId|agent_id|prompt_id|transcript_path|output_file|summary|url|websiteUrl|blocked_path|thinking_display|user_message_uuid|buildTime|claude_code_version|reason|\*)$"
)
"""Names of values that are ids, times or free text.  The ``error`` of an assistant frame is part of its kind."""
_NUMBERS: Final = re.compile(r"(^|\.)(num_turns|api_error_status|index)$")
"""The only numbers that are neither counts nor times."""
HOOK_INPUT: Final = "request.hook_input"


class Shape(NamedTuple):
    """One frame, normalised.  Paths read ``message.content[].type``."""

    kind: str
    keys: frozenset[str]
    """Every path that is there; inside a list only what all of its elements have."""
    types: frozenset[tuple[str, str]]
    """(path, JSON type)."""
    values: frozenset[tuple[str, Any]]
    """(path, value) of the values that are neither ids, times, texts nor counts."""


def shape(frame: Frame) -> Shape:
    frame = _hook_input_apart(frame)
    paths = list(_walk(frame, ""))
    types = frozenset((path, _type(value)) for path, value in paths)
    values = frozenset((path, value) for path, value in paths if _means_something(path, value))
    return Shape(kind(frame), frozenset(_keys(frame, "")), types, values)


def _hook_input_apart(frame: Frame) -> Frame:
    """The ``input`` of a hook has keys that mean something, that of a tool has not: its path is ``HOOK_INPUT``."""
    request = frame.get("request", {})
    if request.get("subtype") != "hook_callback":
        return frame
    return {**frame, "request": {"hook_input" if key == "input" else key: request[key] for key in request}}


def kind(frame: Frame) -> str:
    """The name under which frames are compared: type, subtype, and what else makes one mean something of its own."""
    name = frame.get("type")
    if frame.get("parent_tool_use_id"):
        return _joined("subagent", name, _blocks(frame))
    if name == "stream_event":
        event = frame.get("event", {})
        part = event.get("delta", {}).get("type") or event.get("content_block", {}).get("type")
        return _joined(name, event.get("type"), part)
    if name == "assistant":
        return _joined(name, _blocks(frame), frame.get("error"))
    if name == "user":
        return _joined(name, _blocks(frame))
    if name == "result":
        return _joined(name, frame.get("subtype"), "is_error" if frame.get("is_error") else None)
    if name == "control_response":
        response = frame.get("response", {})
        return _joined(name, str(response.get("request_id", "")).rpartition("-")[0], response.get("subtype"))
    if name == "control_request":
        return _joined(name, frame.get("request", {}).get("subtype"))
    return _joined(name, frame.get("subtype"), frame.get("status"), frame.get("state"))


def _blocks(frame: Frame) -> str:
    content = frame.get("message", {}).get("content")
    return "+".join(str(block.get("type")) for block in content) if isinstance(content, list) else _type(content)


def _joined(*parts: object) -> str:
    return "/".join(str(part) for part in parts if part)


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of everything inside ``value``; list elements share one path."""
    if path:
        yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, _below(path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, f"{path}[]")


def _keys(value: Any, path: str) -> set[str]:
    """Every path that is there, for lists and open maps only what all of the elements have."""
    if isinstance(value, dict):
        inner = [{_below(path, key)} | _keys(below, _below(path, key)) for key, below in value.items()]
        return _common(inner) if _OPEN_MAPS.search(path) else set().union(*inner)
    if isinstance(value, list):
        return _common(_keys(below, f"{path}[]") for below in value)
    return set()


def _common(sets: Iterable[set[str]]) -> set[str]:
    found = list(sets)
    return set.intersection(*found) if found else set()


def _below(path: str, key: str) -> str:
    name = "*" if _OPEN_MAPS.search(path) else key
    return f"{path}.{name}" if path else name


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    return {str: "string", list: "list", dict: "object", type(None): "null"}[type(value)]


def _means_something(path: str, value: Any) -> bool:
    if _NUMBERS.search(path):
        return True
    if path.endswith("[]") or _TEXTS.search(path):
        return False
    return value is None or isinstance(value, (bool, str))
