"""A client's answers to the CLI's requests other than permission prompts, typed by kind: unknown keys are refused.

What the CLI then gets is encoded from the struct, never from the client's bytes.  Callers:
``broker.sessions.questions``.  The answer to a permission prompt is in ``protocol.controls``, beside the rules that it
may carry.
"""

from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from protocol.codes import ErrorCode
from protocol.controls import DECODE_ERRORS, HookEvent, mistake
from protocol.errors import ClientError

Words = Annotated[str, Meta(max_length=65536)]
PRE_TOOL_USE: Final = "PreToolUse"


class ElicitationAnswer(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the user said to the question of an MCP server; ``content`` only goes with ``accept``."""

    action: Literal["accept", "decline", "cancel"]
    content: dict[str, Any] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.content is not UNSET and self.action != "accept":
            raise ValueError("content goes with action accept only")


class HookOutput(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a hook says about the event that it was asked about; the decisions are those of PreToolUse."""

    hookEventName: HookEvent
    permissionDecision: Literal["allow", "deny", "ask"] | UnsetType = UNSET
    permissionDecisionReason: Words | UnsetType = UNSET
    updatedInput: dict[str, Any] | UnsetType = UNSET
    additionalContext: Words | UnsetType = UNSET

    def __post_init__(self) -> None:
        decides = (self.permissionDecision, self.permissionDecisionReason, self.updatedInput)
        if self.hookEventName != PRE_TOOL_USE and any(value is not UNSET for value in decides):
            raise ValueError("permissionDecision and updatedInput are for PreToolUse only")


class HookAnswer(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename={"continue_": "continue"}):
    """A hook's answer.  An answer that comes later (``async``) is not among them: it would let a tool run meanwhile."""

    continue_: bool | UnsetType = UNSET
    suppressOutput: bool | UnsetType = UNSET
    stopReason: Words | UnsetType = UNSET
    decision: Literal["approve", "block"] | UnsetType = UNSET
    systemMessage: Words | UnsetType = UNSET
    reason: Words | UnsetType = UNSET
    hookSpecificOutput: HookOutput | UnsetType = UNSET

    @property
    def is_block(self) -> bool:
        """Whether any part of it is against going on, or it contradicts itself: the CLI may follow the other part."""
        output = self.hookSpecificOutput
        wish = UNSET if output is UNSET else output.permissionDecision
        is_denied = wish == "deny" or (wish == "ask" and self.decision == "approve")
        return is_denied or self.decision == "block" or self.continue_ is False

    @property
    def why(self) -> str:
        """The reason of a block."""
        output = self.hookSpecificOutput
        given = UNSET if output is UNSET else output.permissionDecisionReason
        return given or self.reason or self.stopReason or "blocked by a hook"


class RpcError(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Why a JSON-RPC request failed."""

    code: Annotated[int, Meta(ge=-(2**31), le=2**31)]
    message: Words
    data: Any = UNSET


class RpcReply(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A JSON-RPC 2.0 reply of an MCP server inside a client; to a notification, an empty ``result`` without ``id``."""

    jsonrpc: Literal["2.0"]
    id: int | str | UnsetType | None = UNSET
    result: dict[str, Any] | UnsetType = UNSET
    error: RpcError | UnsetType = UNSET

    def __post_init__(self) -> None:
        if (self.result is UNSET) == (self.error is UNSET):
            raise ValueError("either result or error is needed")


class McpAnswer(Struct, frozen=True, forbid_unknown_fields=True):
    """The answer to ``mcp_message``."""

    mcp_response: RpcReply


KINDS: Final = (ElicitationAnswer, HookAnswer, McpAnswer)
A = TypeVar("A", ElicitationAnswer, HookAnswer, McpAnswer)

_encoder = msgspec.json.Encoder()


def decode(kind: type[A], raw: Raw | UnsetType, request_id: str) -> A:
    """The typed answer; raises ``ClientError(bad_frame)`` with the JSON path.

    What it nests can also be encoded again, a few levels deeper in the line for the CLI.
    """
    if raw is UNSET:
        raise ClientError(ErrorCode.BAD_FRAME, "response.response is missing", ref=request_id)
    try:
        answer = msgspec.json.decode(raw, type=kind)
        _encoder.encode([[[[[[[[answer]]]]]]]])
        return answer
    except DECODE_ERRORS as error:
        raise ClientError(ErrorCode.BAD_FRAME, f"response.response: {mistake(error)}", ref=request_id) from error


def decode_hook(event: str, raw: Raw | UnsetType, request_id: str) -> HookAnswer:
    """The same for a hook that was asked about ``event``; an answer about another one is ``bad_frame`` too: the CLI
    would take it for none."""
    answer = decode(HookAnswer, raw, request_id)
    output = answer.hookSpecificOutput
    if output is not UNSET and output.hookEventName != event:
        message = f"response.response.hookSpecificOutput.hookEventName: {output.hookEventName} is not {event[:64]}"
        raise ClientError(ErrorCode.BAD_FRAME, message, ref=request_id)
    return answer
