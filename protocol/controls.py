"""Payloads of control requests and permission answers, typed by subtype: unknown keys are refused.

``decode_control`` and ``decode_answer`` turn the raw part of a client's frame into one of these; what the CLI then gets
is encoded from the struct, never from the client's bytes.
"""

from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from protocol.codes import ErrorCode
from protocol.errors import ClientError
from protocol.frames import MessageId
from protocol.json_schema import JsonSchema
from protocol.mcp import NO_CONTROL, McpName, McpServers
from protocol.options import Agents, Credentials, Model, PermissionMode, Rule, Settings

DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Everything that decoding untrusted JSON can raise: nesting too deep and bad UTF-8 are not ``MsgspecError``."""

MAX_ECHO = 240
"""Longest head and tail of a decoder's message: it may echo a client's value, and ends with the JSON path."""


class _Control(Struct, frozen=True, forbid_unknown_fields=True, tag_field="subtype"):
    """One control request of a client."""


class Interrupt(_Control, frozen=True, tag="interrupt"):
    """Stop the running turn.  ``turn`` guards against stopping the next one; ``cancel_queued`` empties the queue."""

    turn: MessageId | UnsetType = UNSET
    cancel_queued: bool = False


class SetModel(_Control, frozen=True, tag="set_model"):
    """Another model from the next request on; null is the CLI's default."""

    model: Model | None = None


class SetPermissionMode(_Control, frozen=True, tag="set_permission_mode"):
    """Another permission mode at once."""

    mode: PermissionMode


class SetMaxThinkingTokens(_Control, frozen=True, tag="set_max_thinking_tokens"):
    """Another thinking budget; null is the CLI's default."""

    max_thinking_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None


class McpStatus(_Control, frozen=True, tag="mcp_status"):
    """State of the MCP servers (their configuration is stripped from the answer)."""


class SetCredentials(_Control, frozen=True, tag="set_credentials"):
    """Another credential from the next request on; the broker's own, the CLI knows no such request."""

    credentials: Credentials


class McpSetServers(_Control, frozen=True, tag="mcp_set_servers"):
    """The session's MCP servers from now on, beside those of the operator; the whole set is replaced."""

    servers: McpServers


class McpReconnect(_Control, frozen=True, tag="mcp_reconnect"):
    """Connect to one of the servers again."""

    serverName: McpName


class McpToggle(_Control, frozen=True, tag="mcp_toggle"):
    """Switch one of the servers off or on."""

    serverName: McpName
    enabled: bool


class RewindFiles(_Control, frozen=True, tag="rewind_files"):
    """Put the files that the agent changed back to how they were at a user message."""

    user_message_id: Annotated[str, Meta(min_length=1, max_length=96, pattern=r"^[\x21-\x7e]+$(?!\n)")]
    dry_run: bool = False


class StopTask(_Control, frozen=True, tag="stop_task"):
    """End a background task."""

    task_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,128}$(?!\n)")]


class GetContextUsage(_Control, frozen=True, tag="get_context_usage"):
    """What fills the model's context; costs up to 27 requests of the API, so one per 10 s."""

    detail: Literal["summary", "full"] | UnsetType = UNSET


class GetSettings(_Control, frozen=True, tag="get_settings"):
    """The settings in force; what is secret is stripped from the answer."""


class ApplyFlagSettings(_Control, frozen=True, tag="apply_flag_settings"):
    """Settings from the next turn on, merged with what was given before; the policy of hello's ``settings`` holds."""

    settings: Settings


HookEvent = Literal[
    "PreToolUse", "PostToolUse", "PostToolUseFailure", "UserPromptSubmit", "Stop", "SubagentStart", "SubagentStop",
    "PreCompact", "Notification", "SessionStart", "SessionEnd",
]  # fmt: skip


MATCHER = r"^(\*|(\.\*|[A-Za-z0-9_-]+(\.\*)?)(\|(\.\*|[A-Za-z0-9_-]+(\.\*)?))*)?$(?!\n)"
"""Names, prefixes with ``.*`` and alternatives of both.  The CLI takes a matcher for a regular expression and never
calls a hook whose matcher it cannot read: what guards a tool would fail open."""


CallbackId = Annotated[str, Meta(min_length=1, max_length=128, pattern=NO_CONTROL)]


class HookMatcher(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which uses of which tools lead to a ``hook_callback``; ``timeout`` in seconds."""

    hookCallbackIds: Annotated[list[CallbackId], Meta(min_length=1, max_length=32)]
    matcher: Annotated[str, Meta(max_length=1024, pattern=MATCHER)] | None = None
    timeout: Annotated[float, Meta(gt=0, le=3600)] | UnsetType = UNSET
    onFailure: Literal["continue", "block"] | UnsetType = UNSET


PromptPart = Annotated[str, Meta(max_length=262144, pattern=r"^[^\x00]*$(?!\n)")]
"""A prompt that may be empty: the SDK sends ``""`` for one that its caller did not give."""
ShortLine = Annotated[str, Meta(max_length=256, pattern=NO_CONTROL)]


class Initialize(_Control, frozen=True, tag="initialize", omit_defaults=True):
    """What only the first ``initialize`` of a process can set, in the SDK's shape (``options.initialize``: client)."""

    hooks: dict[HookEvent, Annotated[list[HookMatcher], Meta(max_length=64)]] | None = None
    sdkMcpServers: Annotated[list[McpName], Meta(max_length=32)] | UnsetType = UNSET
    systemPrompt: PromptPart | Annotated[list[PromptPart], Meta(max_length=16)] | UnsetType = UNSET
    appendSystemPrompt: PromptPart | UnsetType = UNSET
    agents: Agents | None = None
    jsonSchema: JsonSchema | None = None
    title: ShortLine | UnsetType = UNSET
    skills: Annotated[list[ShortLine], Meta(max_length=256)] | None = None
    excludeDynamicSections: bool | None = None
    promptSuggestions: bool | None = None
    agentProgressSummaries: bool | None = None
    forwardSubagentText: bool | None = None


Control: TypeAlias = (
    Interrupt | SetModel | SetPermissionMode | SetMaxThinkingTokens | McpStatus | SetCredentials | McpSetServers
    | McpReconnect | McpToggle | RewindFiles | StopTask | GetContextUsage | GetSettings | ApplyFlagSettings
    | Initialize
)  # fmt: skip


class ToolRule(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"):
    """A permission rule in the CLI's shape: tool name and optional content."""

    tool_name: Rule
    rule_content: Annotated[str, Meta(max_length=4096)] | UnsetType = UNSET


class AddRules(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="addRules"):
    """The one kind of permission update that a policy may let through, and only for this session."""

    rules: Annotated[list[ToolRule], Meta(max_length=64)]
    behavior: Literal["allow", "deny", "ask"]
    destination: Literal["session", "userSettings", "projectSettings", "localSettings", "cliArg"]


class _UpdateKind(Struct, frozen=True):
    type: str


class PermissionAnswer(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A client's answer to ``can_use_tool``."""

    behavior: Literal["allow", "deny"]
    updatedInput: dict[str, Any] | UnsetType = UNSET
    message: Annotated[str, Meta(max_length=65536)] | UnsetType = UNSET
    interrupt: bool | UnsetType = UNSET
    updatedPermissions: list[Raw] | UnsetType = UNSET
    toolUseID: str | UnsetType = UNSET
    decisionClassification: str | UnsetType = UNSET


class _Subtype(Struct, frozen=True):
    subtype: str


_encoder = msgspec.json.Encoder()
_subtype = msgspec.json.Decoder(_Subtype)
_control: msgspec.json.Decoder[Control] = msgspec.json.Decoder(Control)
_answer = msgspec.json.Decoder(PermissionAnswer)
_update_kind = msgspec.json.Decoder(_UpdateKind)
_add_rules = msgspec.json.Decoder(AddRules)

KNOWN_CONTROLS = frozenset(str(kind.__struct_config__.tag) for kind in get_args(Control))


def mistake(error: Exception) -> str:
    """What a decoder found wrong, and the JSON path; a long value that it echoes is cut in the middle."""
    text = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return text if len(text) <= 2 * MAX_ECHO else f"{text[:MAX_ECHO]} ... {text[-MAX_ECHO:]}"


def decode_control(raw: Raw, request_id: str) -> Control:
    """The typed request of a ``control_request`` frame.

    Raises ``ClientError``: ``control_not_allowed`` for a subtype that is not on the list, ``bad_frame`` with the JSON
    path for a payload of the wrong form.
    """
    try:
        subtype = _subtype.decode(raw).subtype
        if subtype in KNOWN_CONTROLS:
            return _control.decode(raw)
    except DECODE_ERRORS as error:
        raise ClientError(ErrorCode.BAD_FRAME, f"request: {mistake(error)}", ref=request_id) from error
    message = f"{subtype[:64]}: not on the list of allowed controls"
    raise ClientError(ErrorCode.CONTROL_NOT_ALLOWED, message, ref=request_id)


def decode_answer(raw: Raw, request_id: str) -> PermissionAnswer:
    """The typed answer to a permission prompt; raises ``ClientError(bad_frame)`` with the JSON path.

    What it nests in ``updatedInput`` can also be encoded again, a few levels deeper in the line for the CLI.
    """
    try:
        answer = _answer.decode(raw)
        _encoder.encode([[[[[[[[answer]]]]]]]])
        return answer
    except DECODE_ERRORS as error:
        raise ClientError(ErrorCode.BAD_FRAME, f"response.response: {mistake(error)}", ref=request_id) from error


def decode_updates(answer: PermissionAnswer, request_id: str) -> list[AddRules]:
    """The permission updates of an answer, judged by form: anything but ``addRules`` is ``option_not_allowed``."""
    if answer.updatedPermissions is UNSET:
        return []
    try:
        for raw in answer.updatedPermissions:
            kind = _update_kind.decode(raw).type
            if kind != "addRules":
                raise ClientError(ErrorCode.OPTION_NOT_ALLOWED, f"updatedPermissions: {kind[:64]}", ref=request_id)
        return [_add_rules.decode(raw) for raw in answer.updatedPermissions]
    except DECODE_ERRORS as error:
        raise ClientError(ErrorCode.BAD_FRAME, f"updatedPermissions: {mistake(error)}", ref=request_id) from error
