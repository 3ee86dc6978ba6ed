"""Control requests and permission answers of clients: typed, bounded, and nothing else."""

import json
import re
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw, Struct

from protocol import cli
from protocol.codec import decode_client
from protocol.codes import ErrorCode
from protocol.controls import (
    KNOWN_CONTROLS,
    MATCHER,
    AddRules,
    Control,
    GetContextUsage,
    HookEvent,
    Initialize,
    Interrupt,
    McpStatus,
    PermissionAnswer,
    RewindFiles,
    SetMaxThinkingTokens,
    SetModel,
    ToolRule,
    decode_answer,
    decode_control,
    decode_updates,
    mistake,
)
from protocol.errors import ClientError
from protocol.frames import ControlRequest
from tests.protocol.strategies import OBJECTS, instances
from tests.soak import size

DEEP = 100_000
CONTROLS: tuple[type[Struct], ...] = get_args(Control)
RULE = {"type": "addRules", "rules": [{"toolName": "Bash"}], "behavior": "allow", "destination": "session"}


def raw(value: object) -> Raw:
    return Raw(value if isinstance(value, bytes) else json.dumps(value).encode())


def control(**request: Any) -> Control:
    return decode_control(raw(request), "c1")


def refusal(request: object) -> ClientError:
    with pytest.raises(ClientError) as caught:
        decode_control(raw(request), "c1")
    return caught.value


# -- control requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONTROLS)
@given(data=st.data())
@settings(max_examples=size(20, 30), deadline=None)
def test_a_control_request_comes_back(kind: type[Struct], data: st.DataObject) -> None:
    """Whatever a control's struct allows is decoded to the same, within its frame too, and encoded for the CLI."""
    request = data.draw(instances(kind))
    assert decode_control(raw(msgspec.json.encode(request)), "c1") == request
    frame = decode_client(msgspec.json.encode({"type": "control_request", "request_id": "c1", "request": request}))
    assert isinstance(frame, ControlRequest)
    assert decode_control(frame.request, frame.request_id) == request
    line = json.loads(cli.control_line("client-1", request))
    assert line["request"]["subtype"] == kind.__struct_config__.tag


def test_the_list_of_controls_is_the_union() -> None:
    """What is allowed is what can be decoded, and nothing else."""
    assert {kind.__struct_config__.tag for kind in CONTROLS} == KNOWN_CONTROLS == {
        "interrupt", "set_model", "set_permission_mode", "set_max_thinking_tokens", "set_credentials", "mcp_status",
        "mcp_set_servers", "mcp_reconnect", "mcp_toggle", "rewind_files", "stop_task", "get_context_usage",
        "get_settings", "apply_flag_settings", "initialize",
    }  # fmt: skip


def test_controls_in_their_plain_form() -> None:
    """What may be left out has a default, and null means the CLI's own."""
    assert control(subtype="interrupt") == Interrupt(UNSET, cancel_queued=False)
    assert control(subtype="interrupt", turn="m-9", cancel_queued=True) == Interrupt("m-9", cancel_queued=True)
    assert control(subtype="set_model", model=None) == SetModel(None) == control(subtype="set_model")
    assert control(subtype="set_max_thinking_tokens") == SetMaxThinkingTokens(None)
    assert control(subtype="mcp_status") == McpStatus()
    assert control(subtype="rewind_files", user_message_id="m-9") == RewindFiles("m-9", dry_run=False)
    assert control(subtype="get_context_usage") == GetContextUsage(UNSET)
    assert control(subtype="initialize", hooks=None, agents=None, jsonSchema=None, skills=None) == Initialize()


def test_what_an_initialize_leaves_out_is_not_sent() -> None:
    """A null and an absent key are the same to the CLI's host: neither is written.  An empty prompt is one."""
    given = {"subtype": "initialize", "systemPrompt": [""], "agents": None, **hooks(matcher=None)}
    sent = json.loads(cli.control_line("i", control(**given)))
    assert sent["request"] == {"subtype": "initialize", "systemPrompt": [""], **hooks()}


@pytest.mark.parametrize("subtype", ["set_cwd", "can_use_tool", "get_binary_version", "", "Interrupt", "x" * 10_000])
def test_other_controls_are_not_allowed(subtype: str) -> None:
    """What is not on the list is refused by its name, of which a part is enough."""
    error = refusal({"subtype": subtype})
    assert error.code is ErrorCode.CONTROL_NOT_ALLOWED
    assert error.message == f"{subtype[:64]}: not on the list of allowed controls"


def hooks(**fields: Any) -> dict[str, Any]:
    return {"subtype": "initialize", "hooks": {"PreToolUse": [{"hookCallbackIds": ["h"], **fields}]}}


SERVERS = {"acme": {"type": "http", "url": "https://mcp.example.com/"}}
RIGHT_CONTROLS: list[dict[str, Any]] = [
    *({"subtype": "set_credentials", "credentials": {kind: "t"}} for kind in ("oauth_token", "api_key", "auth_token")),
    {"subtype": "mcp_set_servers", "servers": {}},
    {
        "subtype": "mcp_set_servers",
        "servers": {**SERVERS, "mine": {"type": "sdk"}, "b": {"type": "stdio", "command": "x"}},
    },
    {"subtype": "mcp_reconnect", "serverName": "a" * 64},
    *({"subtype": "mcp_toggle", "serverName": "acme", "enabled": value} for value in (True, False)),
    {"subtype": "rewind_files", "user_message_id": "0b4e2f6a-0000-4000-8000-000000000000", "dry_run": True},
    {"subtype": "stop_task", "task_id": "b" * 128},
    *({"subtype": "get_context_usage", "detail": value} for value in ("summary", "full")),
    {"subtype": "get_settings"},
    {"subtype": "apply_flag_settings", "settings": {}},
    {"subtype": "apply_flag_settings", "settings": {"effortLevel": "low", "permissions": {"deny": ["Bash(rm:*)"]}}},
    {"subtype": "initialize"},
    {"subtype": "initialize", "hooks": {}},
    {"subtype": "initialize", "hooks": {event: [] for event in get_args(HookEvent)}},
    {"subtype": "initialize", "hooks": {"Stop": [{"hookCallbackIds": ["h"]}] * 64}},
    hooks(timeout=0.1, onFailure="block"),
    hooks(timeout=3600, onFailure="continue", hookCallbackIds=["h" * 128] * 32),
    *(hooks(matcher=value) for value in ("", "*", ".*", "Bash", "Write|Edit|mcp__acme__.*", "a" * 1024)),
    {"subtype": "initialize", "sdkMcpServers": ["a"] * 32},
    *({"subtype": "initialize", "systemPrompt": value} for value in ("", [""], ["a\nb"] * 16, "é" * 262144)),
    {"subtype": "initialize", "appendSystemPrompt": "", "agents": {"a": {"description": "d", "prompt": "p"}}},
    {"subtype": "initialize", "jsonSchema": {"type": "object"}, "title": "t" * 256, "skills": ["s" * 256] * 256},
    {
        "subtype": "initialize",
        "excludeDynamicSections": True,
        "promptSuggestions": False,
        "agentProgressSummaries": None,
    },
]


def test_a_control_at_its_bound_is_accepted() -> None:
    """The longest, shortest and oddest values that are allowed are decoded, and encoded for the CLI as they were."""
    for request in RIGHT_CONTROLS:
        line = json.loads(cli.control_line("i", control(**request)))
        assert {**request, **line["request"]} == request, request


NOT_MATCHERS: list[object] = ["(", "[a]", "a|", "|a", "**", "*a", "a\n", "a" * 1025, 5, [], "^a$"]
NOT_PROMPTS: list[object] = [None, 7, {}, "a\x00", ["a\x00"], ["a"] * 17, "a" * 262145]
WRONG_CONTROLS: list[tuple[object, str]] = [
    ({}, "`subtype`"),
    ({"subtype": 7}, "`$.subtype`"),
    ([], "object"),
    ("interrupt", "object"),
    (b"", "truncated"),
    (b"{", "truncated"),
    (b"[" * DEEP, "object"),
    (b'{"subtype":"interrupt","turn":' + b"[" * DEEP, "nested too deeply"),
    ({"subtype": "interrupt", "force": True}, "`force`"),
    ({"subtype": "interrupt", "turn": ""}, "`$.turn`"),
    ({"subtype": "interrupt", "turn": "m-9\n"}, "`$.turn`"),
    ({"subtype": "interrupt", "cancel_queued": 1}, "`$.cancel_queued`"),
    ({"subtype": "set_model", "model": "--dangerously"}, "`$.model`"),
    ({"subtype": "set_model", "model": "sonnet\n"}, "`$.model`"),
    ({"subtype": "set_model", "model": ""}, "`$.model`"),
    ({"subtype": "set_permission_mode"}, "`mode`"),
    ({"subtype": "set_permission_mode", "mode": "yolo"}, "`$.mode`"),
    ({"subtype": "set_permission_mode", "mode": "x" * 1_000_000}, "`$.mode`"),
    ({"subtype": "set_max_thinking_tokens", "max_thinking_tokens": -1}, "`$.max_thinking_tokens`"),
    ({"subtype": "set_max_thinking_tokens", "max_thinking_tokens": 10**30}, "`$.max_thinking_tokens`"),
    ({"subtype": "mcp_status", "more": 1}, "`more`"),
    ({"subtype": "set_credentials"}, "`credentials`"),
    ({"subtype": "set_credentials", "credentials": {}}, "exactly one of"),
    ({"subtype": "set_credentials", "credentials": {"api_key": "a\n"}}, "`$.credentials.api_key`"),
    ({"subtype": "set_credentials", "credentials": {"api_key": "a", "auth_token": "b"}}, "exactly one of"),
    ({"subtype": "mcp_set_servers", "servers": []}, "`$.servers`"),
    ({"subtype": "mcp_set_servers", "servers": {"a b": {"type": "sdk"}}}, "`key` in `$.servers`"),
    ({"subtype": "mcp_set_servers", "servers": {"__proto__": {"type": "sdk"}}}, "`key` in `$.servers`"),
    ({"subtype": "mcp_set_servers", "servers": {"a": {"url": "https://a/"}}}, "`type` - at `$.servers[...]`"),
    ({"subtype": "mcp_set_servers", "servers": {"a": {"type": "http", "url": "file:///"}}}, "`$.servers[...].url`"),
    ({"subtype": "mcp_set_servers", "servers": {f"a{n}": {"type": "sdk"} for n in range(33)}}, "`$.servers`"),
    ({"subtype": "mcp_reconnect"}, "`serverName`"),
    ({"subtype": "mcp_reconnect", "serverName": "a\n"}, "`$.serverName`"),
    ({"subtype": "mcp_reconnect", "server_name": "a"}, "`server_name`"),
    ({"subtype": "mcp_toggle", "serverName": "a"}, "`enabled`"),
    ({"subtype": "mcp_toggle", "serverName": "a", "enabled": 1}, "`$.enabled`"),
    ({"subtype": "rewind_files", "user_message_id": "-\n"}, "`$.user_message_id`"),
    ({"subtype": "rewind_files", "user_message_id": "m", "dry_run": "no"}, "`$.dry_run`"),
    *(({"subtype": "stop_task", "task_id": value}, "`$.task_id`") for value in ("", "a/b", "a\n", "a" * 129, "a b", 7)),
    ({"subtype": "get_context_usage", "detail": "all"}, "`$.detail`"),
    ({"subtype": "get_settings", "source": "userSettings"}, "`source`"),
    ({"subtype": "apply_flag_settings"}, "`settings`"),
    ({"subtype": "apply_flag_settings", "settings": None}, "`$.settings`"),
    ({"subtype": "apply_flag_settings", "settings": {"env": {}}}, "`env` - at `$.settings`"),
    (
        {"subtype": "apply_flag_settings", "settings": {"permissions": {"allow": "Bash"}}},
        "`$.settings.permissions.allow`",
    ),
    ({"subtype": "initialize", "more": 1}, "`more`"),
    ({"subtype": "initialize", "plugins": []}, "`plugins`"),
    ({"subtype": "initialize", "hooks": []}, "`$.hooks`"),
    ({"subtype": "initialize", "hooks": {"Nope": []}}, "`key` in `$.hooks`"),
    ({"subtype": "initialize", "hooks": {"Stop": "x"}}, "`$.hooks[...]`"),
    ({"subtype": "initialize", "hooks": {"Stop": [{}]}}, "`hookCallbackIds` - at `$.hooks[...][0]`"),
    ({"subtype": "initialize", "hooks": {"Stop": [{"hookCallbackIds": ["h"]}] * 65}}, "`$.hooks[...]`"),
    *(
        (hooks(hookCallbackIds=value), "hookCallbackIds")
        for value in ("h", [], ["h"] * 33, [""], ["h" * 129], ["h\n"], [7])
    ),
    *((hooks(matcher=value), "matcher`") for value in NOT_MATCHERS),
    *((hooks(timeout=value), "timeout`") for value in (0, -1, 3601, "1", None)),
    *((hooks(onFailure=value), "onFailure`") for value in ("", "Block", None)),
    (hooks(command="sh"), "`command` - at `$.hooks[...][0]`"),
    ({"subtype": "initialize", "sdkMcpServers": ["a"] * 33}, "`$.sdkMcpServers`"),
    ({"subtype": "initialize", "sdkMcpServers": ["a b"]}, "`$.sdkMcpServers[0]`"),
    *(({"subtype": "initialize", "systemPrompt": value}, "`$.systemPrompt") for value in NOT_PROMPTS),
    ({"subtype": "initialize", "agents": {"-": {"description": "d"}}}, "`prompt` - at `$.agents[...]`"),
    ({"subtype": "initialize", "agents": {"__proto__": {"description": "d", "prompt": "p"}}}, "`key` in `$.agents`"),
    ({"subtype": "initialize", "jsonSchema": []}, "`$.jsonSchema`"),
    ({"subtype": "initialize", "jsonSchema": "{}"}, "`$.jsonSchema`"),
    ({"subtype": "initialize", "jsonSchema": {"type": "bogus"}}, "`$.jsonSchema.type`"),
    (
        {"subtype": "initialize", "jsonSchema": {"description": "d" * 65536}},
        "bytes, 65536 are allowed - at `$.jsonSchema`",
    ),
    ({"subtype": "initialize", "title": "a\n"}, "`$.title`"),
    ({"subtype": "initialize", "title": "a" * 257}, "`$.title`"),
    ({"subtype": "initialize", "skills": ["a\x00"]}, "`$.skills[0]`"),
    ({"subtype": "initialize", "skills": ["a"] * 257}, "`$.skills`"),
    ({"subtype": "initialize", "promptSuggestions": 1}, "`$.promptSuggestions`"),
]


def test_a_control_of_the_wrong_form_is_a_bad_frame() -> None:
    """A payload that does not fit is told where, in a short line, under the id of its frame."""
    for request, path in WRONG_CONTROLS:
        error = refusal(request)
        assert (error.code, error.ref) == (ErrorCode.BAD_FRAME, "c1")
        assert error.message.startswith("request: ")
        assert path in error.message
        assert len(error.message) < 600


@given(st.from_regex(MATCHER.replace(r"$(?!\n)", r"\Z")))
@settings(max_examples=size(50, 200), deadline=None)
def test_a_matcher_is_a_regular_expression(matcher: str) -> None:
    """What is let through compiles, or is one of the two words for everything: no hook is silently never asked."""
    assert matcher in ("", "*") or re.compile(matcher).pattern == matcher


def test_a_mistake_is_cut_in_the_middle() -> None:
    """What is wrong and where stays, the value between goes."""
    assert mistake(ValueError("short")) == "short"
    assert mistake(RecursionError("maximum recursion depth exceeded")) == "nested too deeply"
    text = mistake(ValueError("head" + "x" * 10_000 + " - at `$.mode`"))
    assert text.startswith("head")
    assert text.endswith(" - at `$.mode`")
    assert len(text) < 500


# -- permission answers ----------------------------------------------------------------------------------------------


def answer(**fields: Any) -> PermissionAnswer:
    return decode_answer(raw({"behavior": "allow", **fields}), "r1")


@given(OBJECTS, st.text(max_size=20), st.booleans(), st.sampled_from(["allow", "deny"]))
@settings(max_examples=size(20, 80), deadline=None)
def test_an_answer_comes_back(changed: dict[str, Any], message: str, interrupt: bool, behavior: str) -> None:
    """Behaviour, changed input, message and interrupt are taken over; the input as it is meant, on one line."""
    found = answer(behavior=behavior, updatedInput=changed, message=message, interrupt=interrupt)
    assert (found.behavior, found.updatedInput, found.message, found.interrupt) == (
        behavior, changed, message, interrupt
    )  # fmt: skip
    line = cli.answer_line("r1", {"behavior": "allow", "updatedInput": found.updatedInput})
    assert json.loads(line)["response"]["response"]["updatedInput"] == changed
    assert line.count(b"\n") == 1


def test_what_an_answer_may_leave_out() -> None:
    """Only the behaviour is needed."""
    found = decode_answer(raw({"behavior": "deny"}), "r1")
    assert found == PermissionAnswer("deny")
    assert (found.updatedInput, found.message, found.interrupt, found.updatedPermissions) == (UNSET,) * 4
    assert answer(toolUseID="t", decisionClassification="user_temporary").toolUseID == "t"


WRONG_ANSWERS: list[tuple[object, str]] = [
    ({}, "`behavior`"),
    ({"behavior": "ask"}, "`$.behavior`"),
    ({"behavior": "x" * 1_000_000}, "`$.behavior`"),
    ({"behavior": "allow", "updatedInput": "rm -rf"}, "`$.updatedInput`"),
    ({"behavior": "allow", "updatedInput": []}, "`$.updatedInput`"),
    ({"behavior": "deny", "message": "m" * 65537}, "`$.message`"),
    ({"behavior": "deny", "interrupt": "yes"}, "`$.interrupt`"),
    ({"behavior": "allow", "updatedPermissions": {}}, "`$.updatedPermissions`"),
    ({"behavior": "allow", "more": 1}, "`more`"),
    (b'{"behavior":"allow","updatedInput":{"n":1e400}}', "out of range"),
    (b'{"behavior":"allow","updatedInput":{"n":' + b"1" * 5000 + b"}}", "out of range"),
    (b'{"behavior":"allow","updatedInput":{"a":' + b"[" * DEEP, "nested too deeply"),
    (b"null", "object"),
    (b"", "truncated"),
]


def test_an_answer_of_the_wrong_form_is_a_bad_frame() -> None:
    """An answer that does not fit is told where; the prompt then waits on."""
    for body, path in WRONG_ANSWERS:
        with pytest.raises(ClientError) as caught:
            decode_answer(raw(body), "r1")
        assert (caught.value.code, caught.value.ref) == (ErrorCode.BAD_FRAME, "r1")
        assert path in caught.value.message
        assert len(caught.value.message) < 600


def test_what_an_answer_nests_can_be_written() -> None:
    """At every depth an answer is refused, or its line for the CLI can be made: nothing fails after it was accepted."""
    accepted = 0
    for depth in range(880, 1000):
        body = b'{"behavior":"allow","updatedInput":' + b'{"a":' * depth + b"1" + b"}" * (depth + 1)
        try:
            found = decode_answer(raw(body), "r1")
        except ClientError as error:
            assert "nested too deeply" in error.message  # noqa: PT017 - either outcome is right
            continue
        cli.answer_line("r1", {"behavior": "allow", "updatedInput": found.updatedInput})
        accepted += 1
    assert 0 < accepted < 120


# -- permission updates ----------------------------------------------------------------------------------------------


def test_rules_of_an_answer() -> None:
    """Only ``addRules`` is understood, in the CLI's own spelling, and without updates there are none."""
    assert decode_updates(answer(), "r1") == []
    assert decode_updates(answer(updatedPermissions=[]), "r1") == []
    two = {**RULE, "rules": [{"toolName": "Bash", "ruleContent": "git log:*"}, {"toolName": "Read"}]}
    [update] = decode_updates(answer(updatedPermissions=[two]), "r1")
    assert update == AddRules([ToolRule("Bash", "git log:*"), ToolRule("Read")], "allow", "session")
    assert json.loads(msgspec.json.encode(update)) == two


@pytest.mark.parametrize("kind", ["replaceRules", "removeRules", "setMode", "addDirectories", "x" * 1000])
def test_other_updates_are_not_allowed(kind: str) -> None:
    """An update of another kind is refused by its name, also behind one that is allowed."""
    with pytest.raises(ClientError) as caught:
        decode_updates(answer(updatedPermissions=[RULE, {"type": kind, "mode": "bypassPermissions"}]), "r1")
    assert (caught.value.code, caught.value.ref) == (ErrorCode.OPTION_NOT_ALLOWED, "r1")
    assert caught.value.message == f"updatedPermissions: {kind[:64]}"


WRONG_UPDATES: list[object] = [
    {}, [], "addRules", None, {"type": 7}, {"type": "addRules"}, {**RULE, "more": 1}, {**RULE, "behavior": "maybe"},
    {**RULE, "destination": "everywhere"}, {**RULE, "rules": [{"toolName": "Bash\n"}]},
    {**RULE, "rules": [{"toolName": "Bash", "more": 1}]}, {**RULE, "rules": [{"tool_name": "Bash"}]},
    {**RULE, "rules": [{"toolName": "Bash", "ruleContent": "c" * 4097}]},
    {**RULE, "rules": [{"toolName": "Bash"}] * 65},
]  # fmt: skip


def test_rules_of_the_wrong_form_are_a_bad_frame() -> None:
    """A rule that does not fit is refused, unknown keys and over-long texts among them."""
    for update in WRONG_UPDATES:
        with pytest.raises(ClientError) as caught:
            decode_updates(answer(updatedPermissions=[update]), "r1")
        assert (caught.value.code, caught.value.ref) == (ErrorCode.BAD_FRAME, "r1")
        assert caught.value.message.startswith("updatedPermissions: ")
