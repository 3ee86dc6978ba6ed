"""The CLI's side of the language: peek at what it says, encode what it is told.

Callers: ``broker.sessions.interpreter`` peeks each line once that is not one more event of an answer;
``broker.options.binding`` and ``broker.sessions.session`` encode lines for stdin.  Source: the stream-json protocol of
Claude Code 2.1.197 and 2.1.329.  Over 300 lines because both directions of the one language are looked up in one place.
"""

import json
import re
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from protocol.codes import DropReason
from protocol.content import Content
from protocol.controls import DECODE_ERRORS

T = TypeVar("T")


class _Delta(Struct, frozen=True, gc=False):
    type: str = ""


class _Event(Struct, frozen=True, gc=False):
    type: str = ""
    delta: _Delta | None = None


class Peek(Struct, frozen=True, gc=False):
    """The few fields of a CLI line that the broker acts on; everything else is skipped, not decoded."""

    type: str = ""
    subtype: str = ""
    seq: Raw | UnsetType = UNSET
    event: _Event | None = None
    parent_tool_use_id: str | None = None
    request_id: str = ""
    state: str = ""
    error: Raw | UnsetType = UNSET

    @property
    def is_visible_delta(self) -> bool:
        """A delta that a person would see: text, thinking, or a tool's input."""
        event = self.event
        return (
            event is not None
            and event.type == "content_block_delta"
            and event.delta is not None
            and event.delta.type in VISIBLE_DELTAS
        )


_TEXTS: Final = frozenset({"type", "subtype", "request_id", "state"})
_SESSION_ID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
VISIBLE_DELTAS: Final = frozenset({"text_delta", "thinking_delta", "input_json_delta"})


class _Origin(Struct, frozen=True):
    kind: str = ""


class Result(Struct, frozen=True):
    """A turn's ``result``.

    ``total_cost_usd`` is cumulative for the process; after ``--resume`` it goes on from what the process before noted
    when it ended in order (2.1.329), or begins at zero (2.1.197, or a process that was killed).
    """

    subtype: str = ""
    is_error: bool = False
    session_id: str = ""
    total_cost_usd: float | None = None
    usage: Raw | UnsetType = UNSET
    api_error_status: int | None = None
    errors: list[str] = []
    result: str = ""
    terminal_reason: str | None = None
    startup_failure_reason: str | None = None
    user_message_uuid: str | None = None
    user_message_uuids: list[str] = []
    origin: Raw | UnsetType = UNSET
    model_usage_since_last_result: Raw | UnsetType = UNSET

    @property
    def is_of_the_cli(self) -> bool:
        """Whether the CLI began the turn by itself: a background task has ended."""
        found = None if self.origin is UNSET else _decoded(_origin, self.origin)
        return found is not None and found.kind not in ("", "human")


class Init(Struct, frozen=True, rename={"api_key_source": "apiKeySource", "permission_mode": "permissionMode"}):
    """``system/init``, sent at the start of every turn."""

    session_id: str = ""
    model: str = ""
    api_key_source: str = ""
    permission_mode: str = ""


class RpcMessage(Struct, frozen=True):
    """A JSON-RPC message for an MCP server; a notification has no id."""

    method: str = ""
    id: Raw | UnsetType = UNSET


class _CliRequestBody(Struct, frozen=True):
    subtype: str = ""
    input: Raw = Raw(b"{}")
    agent_id: str | None = None
    callback_id: str = ""
    server_name: str = ""
    message: Raw = Raw(b"{}")
    """A JSON-RPC message of ``mcp_message``, words of ``elicitation``."""


class CliRequest(Struct, frozen=True):
    """A ``control_request`` that the CLI sends."""

    request_id: str
    request: _CliRequestBody


class _Subtype(Struct, frozen=True):
    subtype: str = ""


class BareRequest(Struct, frozen=True):
    """What is left of one whose fields have other types than the documented ones."""

    request_id: str
    request: _Subtype


class _HookInput(Struct, frozen=True):
    hook_event_name: str = ""


class _Answer(Struct, frozen=True):
    request_id: str
    subtype: str = ""
    response: Raw | UnsetType = UNSET
    error: str = ""


class _AnswerLine(Struct, frozen=True):
    response: _Answer


class Answer(Struct, frozen=True):
    """A ``control_response`` of the CLI.  ``error`` is None on success; ``response`` is its raw payload or null."""

    request_id: str
    error: str | None
    response: Raw


_peek = msgspec.json.Decoder(Peek)
_any = msgspec.json.Decoder()
_whole = msgspec.json.Decoder(Raw)
_fields = msgspec.json.Decoder(dict[str, Raw])
_result = msgspec.json.Decoder(Result)
_origin = msgspec.json.Decoder(_Origin)
_init = msgspec.json.Decoder(Init)
_request = msgspec.json.Decoder(CliRequest)
_bare_request = msgspec.json.Decoder(BareRequest)
_hook_input = msgspec.json.Decoder(_HookInput)
_rpc_message = msgspec.json.Decoder(RpcMessage)
_answer = msgspec.json.Decoder(_AnswerLine)
_encoder = msgspec.json.Encoder()


def peek(line: bytes) -> Peek | DropReason:
    """Classify one line of the CLI, or say why it cannot be forwarded.

    A line passes only if it is valid UTF-8 and one non-empty JSON object: a browser fails its socket on bad UTF-8.
    ``type`` is not always the first key, so a prefix test cannot classify, and only a decoder knows what is valid.
    """
    if not line.isascii():
        try:
            line.decode()
        except UnicodeDecodeError:
            return DropReason.BAD_UTF8
    try:
        found = _peek.decode(line)
    except msgspec.ValidationError:
        return _peek_loosely(line)
    except DECODE_ERRORS:
        return DropReason.NOT_JSON
    return found if found.type else _peek_loosely(line)


def _peek_loosely(line: bytes) -> Peek | DropReason:
    """The rare line: no object, an empty one, or one whose fields have other types than ours (these are left out)."""
    try:
        _whole.decode(line)
    except DECODE_ERRORS:
        return DropReason.NOT_JSON
    try:
        fields = _fields.decode(line)
    except DECODE_ERRORS:
        return DropReason.NOT_AN_OBJECT
    texts = {name: _any.decode(raw) for name, raw in fields.items() if name in _TEXTS and bytes(raw).startswith(b'"')}
    if not fields:
        return DropReason.NOT_AN_OBJECT
    return Peek(seq=fields.get("seq", UNSET), error=fields.get("error", UNSET), **texts)


def repair(line: bytes) -> bytes | None:
    """A line that holds half of a surrogate pair, with that half replaced; None when it is something else.

    JavaScript cuts strings by UTF-16 unit and writes what is left: JSON to most parsers, and to msgspec not.
    """
    if not _SURROGATE.search(line):
        return None
    try:
        text = json.dumps(json.loads(line), ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return None
    return text.encode("utf-8", "replace")


def decode_result(line: bytes) -> Result | None:
    """The ``result`` in ``line``, or None when its fields do not have the documented types."""
    return _decoded(_result, line)


def decode_init(line: bytes) -> Init | None:
    """The ``system/init`` in ``line``, or None when its fields do not have the documented types."""
    return _decoded(_init, line)


def session_id(found: str, known: str) -> str:
    """The CLI's id of a conversation: ``found`` if it can be one, else ``known``.

    It becomes a file's name and an argument, and whatever else writes to the CLI's stdout may have made it up.
    """
    return found if _SESSION_ID.fullmatch(found) else known


def decode_request(line: bytes) -> CliRequest | BareRequest | None:
    """The CLI's ``control_request`` in ``line``, or as much of it as is needed to refuse it, or None."""
    return _decoded(_request, line) or _decoded(_bare_request, line)


def rpc_message(message: Raw) -> RpcMessage:
    """The message of an ``mcp_message``; an empty one, as a notification, when it cannot be read."""
    return _decoded(_rpc_message, message) or RpcMessage()


def hook_event(hook_input: Raw) -> str:
    """The event that a ``hook_callback`` is about; empty when it is not told."""
    found = _decoded(_hook_input, hook_input)
    return "" if found is None else found.hook_event_name


def decode_answer_line(line: bytes) -> Answer | None:
    """The ``control_response`` in ``line``, or None when it is not of the documented form."""
    found = _decoded(_answer, line)
    if found is None:
        return None
    body = found.response
    error = None if body.subtype == "success" else body.error or "error without text"
    return Answer(body.request_id, error, Raw(b"null") if body.response is UNSET else body.response)


def _decoded(decoder: "msgspec.json.Decoder[T]", line: bytes) -> T | None:
    try:
        return decoder.decode(line)
    except DECODE_ERRORS:
        return None


def encode_line(message: Any) -> bytes:
    """One message as exactly one line of the CLI's stdin.

    JSON encoding leaves no raw control character; U+2028, U+2029 and NEL are escaped too, since JavaScript's line
    readers take the first two for line ends.  They can only stand inside strings, so a byte replacement is exact.
    """
    data = _encoder.encode(message)
    if not data.isascii():
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
        data = data.replace(b"\xc2\x85", b"\\u0085")
    return data + b"\n"


def user_line(message_id: str, content: Content, *, is_command: bool = False, is_steering: bool = False) -> bytes:
    """A user message.  ``client_composed`` keeps the CLI from expanding ``@file`` and from dispatching slash commands
    (2.1.248 and later; older ones ignore it, which is why text that begins with ``/`` is refused before).

    ``is_command``: such text is allowed, so the CLI may take it for a command.  ``is_steering``: the turn that runs
    takes it in at its next tool result, or it is the next turn.
    """
    line = {
        "type": "user",
        "message": {"role": "user", "content": content},
        "parent_tool_use_id": None,
        "uuid": message_id,
        "client_composed": not is_command,
    }
    return encode_line({**line, "priority": "next"} if is_steering else line)


def control_line(request_id: str, request: Any) -> bytes:
    """A control request to the CLI."""
    return encode_line({"type": "control_request", "request_id": request_id, "request": request})


def answer_line(request_id: str, response: Any) -> bytes:
    """A successful answer to a control request of the CLI."""
    body = {"subtype": "success", "request_id": request_id, "response": response}
    return encode_line({"type": "control_response", "response": body})


def refusal_line(request_id: str, error: str) -> bytes:
    """An error answer to a control request of the CLI."""
    body = {"subtype": "error", "request_id": request_id, "error": error}
    return encode_line({"type": "control_response", "response": body})


def environment_line(variables: dict[str, str]) -> bytes:
    """Late environment.  The CLI answers nothing; only the OAuth token takes effect this way."""
    return encode_line({"type": "update_environment_variables", "variables": variables})
