"""Control requests and permission answers of clients: typed, bounded, and nothing else."""

import json
from typing import Any

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
    UNSUPPORTED_CONTROLS,
    AddRules,
    Control,
    Interrupt,
    McpStatus,
    PermissionAnswer,
    SetMaxThinkingTokens,
    SetModel,
    SetPermissionMode,
    ToolRule,
    decode_answer,
    decode_control,
    decode_updates,
    mistake,
)
from protocol.errors import ClientError
from protocol.frames import ControlRequest
from tests.protocol.strategies import OBJECTS, instances

DEEP = 100_000
CONTROLS: list[type[Struct]] = [Interrupt, SetModel, SetPermissionMode, SetMaxThinkingTokens, McpStatus]
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
@settings(max_examples=30, deadline=None)
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
    """What is allowed is what can be decoded; what is not built is told apart from it."""
    assert {kind.__struct_config__.tag for kind in CONTROLS} == KNOWN_CONTROLS
    assert not KNOWN_CONTROLS & UNSUPPORTED_CONTROLS


def test_controls_in_their_plain_form() -> None:
    """What may be left out has a default, and null means the CLI's own."""
    assert control(subtype="interrupt") == Interrupt(UNSET, cancel_queued=False)
    assert control(subtype="interrupt", turn="m-9", cancel_queued=True) == Interrupt("m-9", cancel_queued=True)
    assert control(subtype="set_model", model=None) == SetModel(None) == control(subtype="set_model")
    assert control(subtype="set_max_thinking_tokens") == SetMaxThinkingTokens(None)
    assert control(subtype="mcp_status") == McpStatus()


@pytest.mark.parametrize("subtype", sorted(UNSUPPORTED_CONTROLS))
def test_a_control_that_is_not_built_is_refused_as_such(subtype: str) -> None:
    """A control that only the protocol names is told apart from one that nobody may send, whatever it carries."""
    error = refusal({"subtype": subtype, "settings": {"env": {}}})
    assert (error.code, error.message) == (
        ErrorCode.CONTROL_NOT_ALLOWED,
        f"{subtype}: not supported by this version",
    )
    assert error.ref == "c1"


@pytest.mark.parametrize("subtype", ["set_cwd", "can_use_tool", "get_binary_version", "", "Interrupt", "x" * 10_000])
def test_other_controls_are_not_allowed(subtype: str) -> None:
    """What is not on the list is refused by its name, of which a part is enough."""
    error = refusal({"subtype": subtype})
    assert error.code is ErrorCode.CONTROL_NOT_ALLOWED
    assert error.message == f"{subtype[:64]}: not on the list of allowed controls"


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
]


def test_a_control_of_the_wrong_form_is_a_bad_frame() -> None:
    """A payload that does not fit is told where, in a short line, under the id of its frame."""
    for request, path in WRONG_CONTROLS:
        error = refusal(request)
        assert (error.code, error.ref) == (ErrorCode.BAD_FRAME, "c1")
        assert error.message.startswith("request: ")
        assert path in error.message
        assert len(error.message) < 600


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
@settings(max_examples=80, deadline=None)
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
