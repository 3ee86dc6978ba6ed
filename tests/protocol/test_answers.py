"""Answers of clients to hooks, elicitations and messages for their MCP servers: typed, and writable again."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from msgspec import UNSET, Raw

from protocol import cli
from protocol.answers import ElicitationAnswer, HookAnswer, McpAnswer, RpcError, decode, decode_hook
from protocol.codes import ErrorCode
from protocol.errors import ClientError
from tests.protocol.strategies import OBJECTS
from tests.soak import size

DEEP = 100_000


def raw(value: object) -> Raw:
    return Raw(value if isinstance(value, bytes) else msgspec.json.encode(value))


def hook(event: str = "PreToolUse", **fields: Any) -> HookAnswer:
    return decode_hook(event, raw(fields), "r1")


def pre(**fields: Any) -> dict[str, Any]:
    return {"hookEventName": "PreToolUse", **fields}


def refusal(kind: Any, value: object) -> ClientError:
    with pytest.raises(ClientError) as caught:
        decode(kind, raw(value), "r1")
    assert (caught.value.code, caught.value.ref) == (ErrorCode.BAD_FRAME, "r1")
    assert len(caught.value.message) < 600
    return caught.value


@given(OBJECTS)
@settings(max_examples=size(20, 60), deadline=None)
def test_what_an_answer_carries_comes_back(content: dict[str, Any]) -> None:
    """Contents, changed inputs and results are taken over as they are meant, on one line for the CLI."""
    answered = [
        decode(ElicitationAnswer, raw({"action": "accept", "content": content}), "r1"),
        hook(hookSpecificOutput=pre(permissionDecision="allow", updatedInput=content)),
        decode(McpAnswer, raw({"mcp_response": {"jsonrpc": "2.0", "id": 1, "result": content}}), "r1"),
    ]
    wanted = [
        {"action": "accept", "content": content},
        {"hookSpecificOutput": pre(permissionDecision="allow", updatedInput=content)},
        {"mcp_response": {"jsonrpc": "2.0", "id": 1, "result": content}},
    ]
    for found, expected in zip(answered, wanted, strict=True):
        line = cli.answer_line("r1", found)
        assert line.count(b"\n") == 1
        assert json.loads(line)["response"]["response"] == expected


def test_a_hook_may_say_what_the_cli_understands() -> None:
    """Every field in the CLI's own spelling, and an empty answer, which has no objection."""
    everything: dict[str, Any] = {
        "continue": False, "suppressOutput": True, "stopReason": "s", "decision": "block", "systemMessage": "m",
        "reason": "r", "hookSpecificOutput": pre(
            permissionDecision="deny", permissionDecisionReason="d", updatedInput={}, additionalContext="c"
        ),
    }  # fmt: skip
    assert json.loads(msgspec.json.encode(hook(**everything))) == everything
    assert hook() == HookAnswer()
    assert msgspec.json.encode(hook()) == b"{}"
    context = {"hookEventName": "UserPromptSubmit", "additionalContext": "c"}
    assert hook("UserPromptSubmit", hookSpecificOutput=context).hookSpecificOutput is not UNSET


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"continue": False, "stopReason": "s"}, "s"),
        ({"decision": "block", "reason": "r"}, "r"),
        ({"hookSpecificOutput": pre(permissionDecision="deny", permissionDecisionReason="d")}, "d"),
        ({"hookSpecificOutput": pre(permissionDecision="deny")}, "blocked by a hook"),
        ({"decision": "approve", "hookSpecificOutput": pre(permissionDecision="deny")}, "blocked by a hook"),
        ({"decision": "block", "hookSpecificOutput": pre(permissionDecision="allow")}, "blocked by a hook"),
        ({"continue": False, "decision": "approve"}, "blocked by a hook"),
    ],
)
def test_any_part_that_is_against_it_blocks(fields: dict[str, Any], why: str) -> None:
    """An answer that contradicts itself counts as a block, with the reason that it gives."""
    assert hook(**fields).is_block
    assert hook(**fields).why == why


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"decision": "approve"},
        {"continue": True},
        {"hookSpecificOutput": pre(permissionDecision="ask")},
        {"systemMessage": "m"},
    ],
)
def test_the_rest_does_not_block(fields: dict[str, Any]) -> None:
    """Asking, approving and saying nothing let the CLI go on."""
    assert not hook(**fields).is_block


WRONG_HOOKS: list[tuple[object, str]] = [
    ({"async": True, "asyncTimeout": 5}, "`async`"),
    ({"decision": "deny"}, "`$.decision`"),
    ({"decision": {"behavior": "allow"}}, "`$.decision`"),
    ({"continue": "false"}, "`$.continue`"),
    ({"updatedPermissions": []}, "`updatedPermissions`"),
    ({"hookSpecificOutput": {}}, "`hookEventName`"),
    ({"hookSpecificOutput": pre(permissionDecision="perhaps")}, "`$.hookSpecificOutput.permissionDecision`"),
    ({"hookSpecificOutput": pre(updatedPermissions=[])}, "`updatedPermissions`"),
    ({"hookSpecificOutput": pre(decision={"behavior": "allow"})}, "`decision`"),
    ({"hookSpecificOutput": pre(updatedInput=[])}, "`$.hookSpecificOutput.updatedInput`"),
    ({"hookSpecificOutput": {"hookEventName": "PermissionRequest"}}, "`$.hookSpecificOutput.hookEventName`"),
    ({"hookSpecificOutput": {"hookEventName": "Stop", "permissionDecision": "allow"}}, "PreToolUse only"),
    ({"hookSpecificOutput": {"hookEventName": "PostToolUse", "updatedInput": {}}}, "PreToolUse only"),
    ("allow", "object"),
    (b"null", "object"),
    (b"", "truncated"),
    (b'{"hookSpecificOutput":' + b"[" * DEEP, "object"),
    (b'{"hookSpecificOutput":{"hookEventName":"PreToolUse","updatedInput":{"a":' + b"[" * DEEP, "nested too deeply"),
]


def test_a_hooks_answer_of_the_wrong_form_is_a_bad_frame() -> None:
    """What could widen permissions, and what the CLI could not read, is told where it is."""
    for value, path in WRONG_HOOKS:
        assert path in refusal(HookAnswer, value).message


def test_a_hook_that_speaks_of_another_event_is_a_bad_frame() -> None:
    """The CLI would take its answer for none."""
    with pytest.raises(ClientError, match="hookEventName: Stop is not PreToolUse"):
        hook("PreToolUse", hookSpecificOutput={"hookEventName": "Stop"})


WRONG_REPLIES: list[tuple[object, str]] = [
    ({}, "`mcp_response`"),
    ({"mcp_response": {"jsonrpc": "1.0", "result": {}}}, "`$.mcp_response.jsonrpc`"),
    ({"mcp_response": {"jsonrpc": "2.0", "id": 1}}, "result or error"),
    ({"mcp_response": {"jsonrpc": "2.0", "result": {}, "error": {"code": 1, "message": "m"}}}, "result or error"),
    ({"mcp_response": {"jsonrpc": "2.0", "result": []}}, "`$.mcp_response.result`"),
    ({"mcp_response": {"jsonrpc": "2.0", "error": "no"}}, "`$.mcp_response.error`"),
    ({"mcp_response": {"jsonrpc": "2.0", "result": {}, "method": "x"}}, "`method`"),
]


def test_a_reply_of_the_wrong_form_is_a_bad_frame() -> None:
    """A JSON-RPC reply has either a result or an error, and no method."""
    for value, path in WRONG_REPLIES:
        assert path in refusal(McpAnswer, value).message
    reply = decode(McpAnswer, raw({"mcp_response": {"jsonrpc": "2.0", "error": {"code": -1, "message": "m"}}}), "r1")
    assert reply.mcp_response.error == RpcError(-1, "m")


def test_an_elicitation_is_accepted_with_content_or_turned_down() -> None:
    """Content goes with an acceptance only, and the action is one of three."""
    assert decode(ElicitationAnswer, raw({"action": "decline"}), "r1") == ElicitationAnswer("decline")
    assert "accept only" in refusal(ElicitationAnswer, {"action": "cancel", "content": {}}).message
    assert "`$.action`" in refusal(ElicitationAnswer, {"action": "perhaps"}).message
    assert "`$.content`" in refusal(ElicitationAnswer, {"action": "accept", "content": "blue"}).message


def test_an_answer_without_a_response_is_a_bad_frame() -> None:
    """It says nothing, and is told so."""
    with pytest.raises(ClientError, match="missing"):
        decode(HookAnswer, UNSET, "r1")


def test_what_an_answer_nests_can_be_written() -> None:
    """At every depth it is refused, or its line for the CLI can be made."""
    accepted = 0
    for depth in range(880, 1000):
        body = b'{"action":"accept","content":' + b'{"a":' * depth + b"1" + b"}" * (depth + 1)
        try:
            found = decode(ElicitationAnswer, raw(body), "r1")
        except ClientError as error:
            assert "nested too deeply" in error.message  # noqa: PT017 - either outcome is right
            continue
        cli.answer_line("r1", found)
        accepted += 1
    assert 0 < accepted < 120
