"""The commands of ``broker chat``: a line that begins with ``/`` becomes a frame, or something for the program itself.

Pure, but for the file that ``/image``, ``/pdf`` and ``@FILE`` read.  Caller: ``broker.chat.terminal``.
"""

import base64
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

Frame = dict[str, Any]
MAX_FILE_BYTES: Final = 6 * 2**20
"""Larger files do not fit into a message of the default 8 MiB once they are base64."""
MEDIA_TYPES: Final = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp",
    ".pdf": "application/pdf",
}  # fmt: skip


class Mistake(ValueError):
    """A command that cannot be carried out; its text is for the person who typed it."""


class Local(NamedTuple):
    """Something for the program: ``help``, ``quit``, ``fork``, ``sessions``; ``argument`` may be empty."""

    name: str
    argument: str = ""


Wish = Frame | Local


class Command(NamedTuple):
    """What follows the name, one line of help, and how it becomes a wish."""

    usage: str
    help: str
    make: Callable[[str], Wish]


def wish_of(line: str) -> Wish:
    """What ``line``, which begins with ``/``, asks for.  Control requests lack their ``request_id``.

    Raises ``Mistake``.
    """
    name, _, argument = line[1:].partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise Mistake(f"no command /{name}; /help lists them, // sends text that begins with /")
    return command.make(argument.strip())


def help_text() -> str:
    """All commands, one a line."""
    rows = [(f"/{name} {command.usage}".rstrip(), command.help) for name, command in COMMANDS.items()]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{left:<{width}}  {right}" for left, right in rows)


def message(content: Any, **more: Any) -> Frame:
    """A user message without its id."""
    return {"type": "user_message", "content": content, **more}


def json_of(text: str, what: str) -> Any:
    """JSON, or the JSON in the file behind ``@``.  Raises ``Mistake``."""
    try:
        return msgspec.json.decode(_read(text[1:]) if text.startswith("@") else text.encode())
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Mistake(f"{what}: {error}") from error


def _read(path: str) -> bytes:
    try:
        data = Path(path).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # the last: a home folder of nobody
        raise Mistake(str(error)) from error
    if len(data) > MAX_FILE_BYTES:
        raise Mistake(f"{path} has more than {MAX_FILE_BYTES} bytes")
    return data


def _needed(argument: str, usage: str) -> str:
    if not argument:
        raise Mistake(f"what is missing: {usage}")
    return argument


def _request(subtype: str, **payload: Any) -> Frame:
    return {"type": "control_request", "request": {"subtype": subtype, **payload}}


def _number(argument: str, usage: str) -> int:
    if not argument.isascii() or not argument.isdecimal() or len(argument) > 9:
        raise Mistake(f"a number is needed: {usage}")
    return int(argument)


def _media(kind: str) -> Callable[[str], Wish]:
    def make(argument: str) -> Wish:
        try:
            path, *words = shlex.split(_needed(argument, "FILE [TEXT]"))
        except ValueError as error:
            raise Mistake(str(error)) from error
        media_type = MEDIA_TYPES.get(Path(path).suffix.lower())
        if media_type is None or (media_type == "application/pdf") != (kind == "document"):
            raise Mistake(f"{path} is not known as {kind}: {', '.join(MEDIA_TYPES)}")
        source = {"type": "base64", "media_type": media_type, "data": base64.b64encode(_read(path)).decode()}
        block: list[Frame] = [{"type": kind, "source": source}]
        return message([*block, {"type": "text", "text": " ".join(words)}] if words else block)

    return make


def _mcp(argument: str) -> Wish:
    verb, _, rest = argument.partition(" ")
    match verb:
        case "" | "status":
            return _request("mcp_status")
        case "reconnect":
            return _request("mcp_reconnect", serverName=_needed(rest, "/mcp reconnect NAME"))
        case "on" | "off":
            return _request("mcp_toggle", serverName=_needed(rest, f"/mcp {verb} NAME"), enabled=verb == "on")
        case "set":
            return _request("mcp_set_servers", servers=json_of(_needed(rest, "/mcp set JSON"), "servers"))
        case _:
            raise Mistake("/mcp takes status, reconnect NAME, on NAME, off NAME, set JSON")


def _rewind(argument: str) -> Wish:
    message_id, _, rest = _needed(argument, "/rewind MESSAGE [dry]").partition(" ")
    return _request("rewind_files", user_message_id=message_id, dry_run=rest == "dry")


def _settings(argument: str) -> Wish:
    if not argument:
        return _request("get_settings")
    return _request("apply_flag_settings", settings=json_of(argument, "settings"))


def _thinking(argument: str) -> Wish:
    tokens = None if argument == "default" else _number(argument, "/thinking TOKENS|default")
    return _request("set_max_thinking_tokens", max_thinking_tokens=tokens)


def _history(argument: str) -> Wish:
    return {"type": "broker.history", "limit": _number(argument, "/history [N]") if argument else 20}


def _raw(argument: str) -> Wish:
    frame = json_of(_needed(argument, "/raw JSON"), "frame")
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        raise Mistake("a frame is an object with a type")
    return frame


COMMANDS: Final[dict[str, Command]] = {
    "help": Command("", "this list", lambda _: Local("help")),
    "model": Command(
        "NAME|default", "another model",
        lambda a: _request("set_model", model=None if a == "default" else _needed(a, "/model NAME|default")),
    ),
    "mode": Command("MODE", "another permission mode: default, plan, acceptEdits, ...",
                    lambda a: _request("set_permission_mode", mode=_needed(a, "/mode MODE"))),
    "thinking": Command("TOKENS|default", "another thinking budget", _thinking),
    "settings": Command("[JSON|@FILE]", "show the settings, or apply some", _settings),
    "credential": Command("VARIABLE", "go on with the credential of this environment variable",
                          lambda a: Local("credential", _needed(a, "/credential VARIABLE"))),
    "mcp": Command("[status|reconnect NAME|on NAME|off NAME|set JSON]", "the MCP servers", _mcp),
    "context": Command("", "what fills the model's context", lambda _: _request("get_context_usage")),
    "image": Command("FILE [TEXT]", "send a picture", _media("image")),
    "pdf": Command("FILE [TEXT]", "send a document", _media("document")),
    "steer": Command("TEXT", "hand a message to the running turn",
                     lambda a: message(_needed(a, "/steer TEXT"), steer=True)),
    "cancel": Command("MESSAGE", "withdraw a queued message",
                      lambda a: {"type": "broker.cancel", "id": _needed(a, "/cancel MESSAGE")}),
    "interrupt": Command("", "stop the running turn (Ctrl-C does the same)", lambda _: _request("interrupt")),
    "stop": Command("TASK", "end a background task",
                    lambda a: _request("stop_task", task_id=_needed(a, "/stop TASK"))),
    "rewind": Command("MESSAGE [dry]", "put the agent's files back to how they were at a message", _rewind),
    "history": Command("[N]", "the conversation so far", _history),
    "fork": Command("", "go on in a branch of this conversation", lambda _: Local("fork")),
    "end": Command("", "stop the process, keep the conversation", lambda _: {"type": "broker.end"}),
    "delete": Command("", "end the conversation and wipe it", lambda _: {"type": "broker.delete"}),
    "raw": Command("JSON", "send this frame as it is", _raw),
    "quit": Command("", "leave; the conversation is kept", lambda _: Local("quit")),
}  # fmt: skip
