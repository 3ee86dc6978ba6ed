"""What the broker understands of the CLI's lines, and that what it writes is one line each."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from protocol import cli
from protocol.cli import Peek, encode_line, peek
from protocol.codes import DropReason
from protocol.content import Base64Source, Content, ImageBlock, TextBlock
from tests.protocol.strategies import JSON, OBJECTS, TEXT
from tests.soak import size

DEEP = 100_000


def seen(line: bytes) -> Peek:
    found = peek(line)
    assert isinstance(found, Peek), found
    return found


# -- what passes -----------------------------------------------------------------------------------------------------

BAD_LINES = {
    DropReason.NOT_JSON: [
        b"", b" ", b"\r", b"[SandboxDebug] hello", b"{", b"}", b'{"type"', b'{"type":"x"', b'{"type":"x"}}',
        b'{"a":1}{}',
        b'{"type":"x",}', b"{'type':'x'}", b'{"type":"x","a":NaN}', b'{"type":"x","a":Infinity}', b'{"a":-Infinity}',
        b'{"type":"x","a":01}', b'{"type":"x","a":1.}', b'{"type":"x","a":+1}', b'{"type":"x","a":"\x00"}',
        b'{"type":"x"\x00}', b'\x00{"type":"x"}', b'{"type":"x","a":"\x1f"}', b'{"type":"x","a":"\\q"}', b"nul", b"[1,",
        b"[NaN]", b'"x', b'\xef\xbb\xbf{"type":"x"}', b'{"type":"x","a":"\\ud800"}', b'{"a":"\\udc00\\ud800"}',
        b'{"type":"x","a":' + b"[" * DEEP + b"]" * DEEP + b"}", b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        b"[" * DEEP, b"{" * DEEP,
    ],
    DropReason.NOT_AN_OBJECT: [b"{}", b"{   }", b"\t{ }\r", b"[]", b'[{"type":"x"}]', b'"x"', b"null", b"1", b"true"],
    DropReason.BAD_UTF8: [
        b'{"type":"x","a":"\xff"}', b'{"type":"x","a":"\xc3"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\xc0\x80"}', b"\xff",
        b'{"a":"\xf4\x90\x80\x80"}',
    ],
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD_LINES)
def test_what_cannot_be_forwarded_is_dropped_for_its_reason(reason: DropReason) -> None:
    """Only one complete, non-empty JSON object in valid UTF-8 passes; nothing else raises, however deep or torn."""
    assert [(line[:60], peek(line)) for line in BAD_LINES[reason] if peek(line) is not reason] == []


@given(st.binary(max_size=40) | st.text(alphabet='{}[]":,\\u0d8e+-. \x00tfn', max_size=30).map(str.encode))
@settings(max_examples=size(100, 400), deadline=None)
def test_what_passes_is_json_to_a_strict_reader(line: bytes) -> None:
    """Whatever bytes come: a line that passes is a non-empty object for Python's own reader as well."""
    if isinstance(peek(line), Peek):
        found = json.loads(line.decode(), parse_constant=pytest.fail)
        assert isinstance(found, dict)
        assert found


@given(OBJECTS, st.booleans(), st.sampled_from([b"", b" ", b"\t\r "]))
@settings(max_examples=size(50, 200), deadline=None)
def test_every_object_passes(fields: dict[str, Any], is_ascii: bool, around: bytes) -> None:
    """Any non-empty object passes, whatever types its fields have, with white space around it too."""
    line = around + json.dumps(fields, ensure_ascii=is_ascii).encode() + around
    found = peek(line)
    if not fields:
        assert found is DropReason.NOT_AN_OBJECT
        return
    assert isinstance(found, Peek)
    kind = fields.get("type")
    assert found.type == (kind if isinstance(kind, str) else "")
    assert (found.seq is not UNSET) == ("seq" in fields)


def test_half_a_character_is_replaced() -> None:
    """JavaScript writes what it cut in the middle of a surrogate pair; the line loses that half and nothing else."""
    line = (
        b'{"type":"user","a":"cut \\ud83d","b":"\\udE00\\ud83d\\ude00","c":1.0,"d":"\\u2028","e":[{"\\uDBFFk":null}]}'
    )
    assert peek(line) is DropReason.NOT_JSON
    repaired = cli.repair(line)
    assert repaired is not None
    assert json.loads(repaired) == {
        "type": "user", "a": "cut ?", "b": "?\U0001f600", "c": 1.0, "d": "\u2028", "e": [{"?k": None}]
    }  # fmt: skip
    assert seen(repaired).type == "user"
    assert b"\n" not in repaired


def test_what_is_broken_otherwise_is_not_repaired() -> None:
    """Torn, too deep, or without half a character: there is nothing to repair."""
    for line in (
        b'{"a":"x"',
        b'{"a":"\\ud800"',
        b"garbage \\ud800",
        b'{"a":"\\ud800","b":' + b"[" * DEEP,
        b"",
        b'{"a":1}',
    ):
        assert cli.repair(line) is None
    for constant in (b"NaN", b"1e400"):
        repaired = cli.repair(b'{"a":"\\ud800","b":' + constant + b"}")
        assert repaired is None or peek(repaired) is DropReason.NOT_JSON


# -- what is seen ----------------------------------------------------------------------------------------------------


def test_the_type_need_not_come_first() -> None:
    """A result whose ``type`` stands in the middle, as newer versions write it, is still a result."""
    line = (b'{"duration_ms":1873,"is_error":false,"uuid":"u","session_id":"s","type":"result","subtype":"success",'
            b'"usage":{"type":"x","nested":{"seq":1}},"result":"{\\"type\\":\\"user\\"}"}')  # fmt: skip
    found = seen(line)
    assert (found.type, found.subtype, found.seq) == ("result", "success", UNSET)


def test_a_nested_type_is_not_the_type() -> None:
    """Only the top level counts, and of a repeated key the last."""
    assert seen(b'{"message":{"type":"result"},"type":"user"}').type == "user"
    assert seen(b'{"message":{"type":"result","seq":3}}') == Peek()
    assert seen(b'{"type":"a","type":"b"}').type == "b"
    assert seen(b'{"ty\\u0070e":"x","s\\u0065q":1}').type == "x"
    assert seen(b'{"ty\\u0070e":"x","s\\u0065q":1}').seq is not UNSET


@pytest.mark.parametrize(
    ("delta", "is_visible"),
    [
        ("text_delta", True),
        ("thinking_delta", True),
        ("input_json_delta", True),
        ("signature_delta", False),
        ("", False),
    ],
)
def test_a_delta_that_a_person_would_see(delta: str, is_visible: bool) -> None:
    """Text, thinking and a tool's input are visible; a signature is not."""
    event = {"type": "content_block_delta", "index": 0, "delta": {"type": delta, "text": "x"}}
    line = json.dumps({"type": "stream_event", "event": event, "parent_tool_use_id": None}).encode()
    assert seen(line).is_visible_delta is is_visible


def test_other_events_are_no_deltas() -> None:
    """The beginning of a message, a line without an event and an event without a delta are not visible deltas."""
    for event in ({"type": "message_start", "delta": {"type": "text_delta"}}, {"type": "content_block_delta"}, None):
        assert not seen(json.dumps({"type": "stream_event", "event": event}).encode()).is_visible_delta
    assert not seen(b'{"type":"assistant"}').is_visible_delta


def test_a_field_of_another_type_hides_itself_only() -> None:
    """A line that has one of our names with another type keeps its type, subtype, state and error."""
    line = b'{"event":1,"type":"system","subtype":"session_state_changed","state":"idle","error":"e","request_id":null}'
    found = seen(line)
    assert (found.type, found.subtype, found.state, found.request_id) == ("system", "session_state_changed", "idle", "")
    assert found.error is not UNSET
    assert bytes(found.error) == b'"e"'
    assert seen(b'{"type":"result","subtype":null}').type == "result"
    assert seen(b'{"type":7,"subtype":["x"],"seq":null}') == Peek(seq=Raw(b"null"))


def test_numbers_beyond_python_pass() -> None:
    """JSON has no largest number: 5,000 digits and 1e400 are the client's business."""
    digits = b"1" * 5000
    assert seen(b'{"type":"x","a":' + digits + b',"b":1e400}').type == "x"
    assert seen(b'{"a":' + digits + b',"b":1e400}') == Peek()
    found = seen(b'{"type":"x","seq":' + digits + b"}")
    assert found.seq is not UNSET


# -- what is decoded -------------------------------------------------------------------------------------------------


def test_a_result_and_an_init_are_decoded_as_far_as_they_matter() -> None:
    """The fields that a turn's end and a turn's start are judged by; null where the CLI writes null."""
    line = b"""{"type":"result","subtype":"success","is_error":true,"api_error_status":529,"session_id":"s",
        "errors":["e"],"total_cost_usd":0.5,"usage":{"output_tokens":3},"result":"text","user_message_uuids":["m-9"],"more":1}"""
    result = cli.decode_result(line)
    assert result is not None
    assert (result.is_error, result.api_error_status, result.total_cost_usd) == (True, 529, 0.5)
    assert (result.session_id, result.errors, result.user_message_uuids) == ("s", ["e"], ["m-9"])
    assert isinstance(result.usage, Raw)
    assert bytes(result.usage) == b'{"output_tokens":3}'
    nulls = cli.decode_result(b'{"type":"result","total_cost_usd":null,"api_error_status":null,"terminal_reason":null}')
    assert nulls is not None
    assert (nulls.total_cost_usd, nulls.usage) == (None, UNSET)
    init = cli.decode_init(
        b'{"type":"system","subtype":"init","apiKeySource":"none","permissionMode":"plan","model":"m"}'
    )
    assert init is not None
    assert (init.api_key_source, init.permission_mode, init.model, init.session_id) == ("none", "plan", "m", "")


@pytest.mark.parametrize(
    ("origin", "is_own"),
    [
        (b'{"kind":"task-notification","producer":"session-task"}', True),
        (b'{"kind":"human"}', False),
        (b"{}", False),
        (b"null", False),
        (b'"task"', False),
    ],
)
def test_a_turn_that_the_cli_began_says_so(origin: bytes, is_own: bool) -> None:
    """By the origin of its result; one that is not told, or is of another form, is nobody's word."""
    result = cli.decode_result(b'{"type":"result","origin":' + origin + b"}")
    assert result is not None
    assert result.is_of_the_cli is is_own
    assert not cli.Result().is_of_the_cli


def test_a_permission_request_is_decoded_with_its_input_as_it_stands() -> None:
    """The tool's input is kept byte for byte, for an answer that allows it unchanged."""
    request = b'{"subtype":"can_use_tool","tool_name":"Bash","tool_use_id":"t","input":{"n":1.0}}'
    body = b'{"type":"control_request","request_id":"r","request":' + request + b"}"
    found = cli.decode_request(body)
    assert isinstance(found, cli.CliRequest)
    assert (found.request_id, found.request.subtype, found.request.agent_id) == ("r", "can_use_tool", None)
    assert bytes(found.request.input) == b'{"n":1.0}'


def test_requests_of_other_kinds_are_decoded_as_far_as_they_can_be() -> None:
    """A hook's and an MCP server's name what they concern; of an odd one there is enough left to refuse it."""
    hook = b'{"subtype":"hook_callback","callback_id":"h","input":{"hook_event_name":"Stop"},"tool_use_id":null}'
    found = cli.decode_request(b'{"request_id":"r","request":' + hook + b"}")
    assert isinstance(found, cli.CliRequest)
    assert (found.request.callback_id, cli.hook_event(found.request.input)) == ("h", "Stop")
    call = b'{"subtype":"mcp_message","server_name":"acme","message":{"jsonrpc":"2.0","id":2,"method":"tools/call"}}'
    found = cli.decode_request(b'{"request_id":"r","request":' + call + b"}")
    assert isinstance(found, cli.CliRequest)
    assert found.request.server_name == "acme"
    assert cli.rpc_message(found.request.message).method == "tools/call"
    assert cli.rpc_message(Raw(b"7")) == cli.RpcMessage()
    odd = cli.decode_request(b'{"request_id":"r","request":{"subtype":"hook_callback","callback_id":7}}')
    assert isinstance(odd, cli.BareRequest)
    assert (odd.request_id, odd.request.subtype) == ("r", "hook_callback")
    for nothing in (b"{}", b'{"request_id":7}', b"[]", b"{"):
        assert cli.decode_request(nothing) is None
    for event in (b"[]", b'{"hook_event_name":7}', b"null"):
        assert cli.hook_event(Raw(event)) == ""


def test_answers_of_the_cli() -> None:
    """Success has a payload, or null; an error has its text, or says that there is none."""

    def answer(body: str) -> cli.Answer:
        found = cli.decode_answer_line(b'{"type":"control_response","response":' + body.encode() + b"}")
        assert found is not None
        return found

    good = answer('{"subtype":"success","request_id":"r","response":{"a":1}}')
    assert (good.request_id, good.error, bytes(good.response)) == ("r", None, b'{"a":1}')
    assert bytes(answer('{"subtype":"success","request_id":"r"}').response) == b"null"
    assert answer('{"subtype":"error","request_id":"r","error":"no"}').error == "no"
    assert answer('{"subtype":"error","request_id":"r"}').error == "error without text"
    assert answer('{"request_id":"r","response":{}}').error == "error without text"


@pytest.mark.parametrize("decode", [cli.decode_result, cli.decode_init, cli.decode_request, cli.decode_answer_line])
def test_a_line_of_unknown_form_is_none(decode: Any) -> None:
    """What has not the documented types is None, never an exception, however deep or torn."""
    for line in (b"", b"{", b"[]", b"\xff", b'{"request_id":1,"subtype":1,"session_id":1,"response":1}', b"[" * DEEP):
        assert decode(line) is None


# -- what is written -------------------------------------------------------------------------------------------------

ENDS = ("\n", "\r", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e")
"""Everything that Python, JavaScript or Unicode takes for the end of a line."""


def is_one_line(line: bytes) -> bool:
    text = line.decode()
    return text.endswith("\n") and not any(end in text[:-1] for end in ENDS) and text[:-1].splitlines() == [text[:-1]]


@given(JSON | st.text(alphabet="".join(ENDS) + '"\\a\U0001f600\u00e2\u0080', max_size=12))
@settings(max_examples=size(100, 400), deadline=None)
@example("".join(ENDS))
@example({"".join(ENDS): ["\u2028" * 3]})
def test_any_value_is_one_line_and_comes_back(value: Any) -> None:
    """No text can end the line, as a key or a value, and the CLI reads back exactly what was meant."""
    line = encode_line(value)
    assert is_one_line(line)
    assert json.loads(line) == value == msgspec.json.decode(line)


@given(st.one_of(TEXT, st.text(alphabet='\n\r\u2028{}":,control_requsinp', max_size=60)))
@settings(max_examples=size(50, 200), deadline=None)
@example('"}\n{"type":"control_request","request_id":"x","request":{"subtype":"interrupt"}}\n')
def test_a_message_is_one_line_of_type_user(text: str) -> None:
    """A client's text cannot become a second line or another type."""
    blocks: Content = [TextBlock(text), ImageBlock(Base64Source(text, text))]
    for content in (text, blocks):
        line = cli.user_line("m-9", content)
        assert is_one_line(line)
        found = json.loads(line)
        assert (found["type"], found["message"]["role"], found["uuid"]) == ("user", "user", "m-9")
        assert found["client_composed"] is True
        assert json.loads(cli.user_line("m-9", content, is_command=True)) == found | {"client_composed": False}
        assert json.loads(cli.user_line("m-9", content, is_steering=True)) == found | {"priority": "next"}
        assert found["parent_tool_use_id"] is None
        assert found["message"]["content"] == msgspec.to_builtins(content)


def test_the_lines_of_the_broker() -> None:
    """Requests, answers, refusals and the late environment have the CLI's shapes."""
    lines = [
        cli.control_line("c", {"subtype": "interrupt"}),
        cli.answer_line("r", {"behavior": "allow", "updatedInput": Raw(b'{"n":1.0}')}),
        cli.refusal_line("r", "no"),
        cli.environment_line({"CLAUDE_CODE_OAUTH_TOKEN": "t"}),
    ]
    assert b"".join(lines).split(b"\n") == [
        b'{"type":"control_request","request_id":"c","request":{"subtype":"interrupt"}}',
        b'{"type":"control_response","response":{"subtype":"success","request_id":"r",'
        b'"response":{"behavior":"allow","updatedInput":{"n":1.0}}}}',
        b'{"type":"control_response","response":{"subtype":"error","request_id":"r","error":"no"}}',
        b'{"type":"update_environment_variables","variables":{"CLAUDE_CODE_OAUTH_TOKEN":"t"}}',
        b"",
    ]


SESSION = "0b4ec0de-1234-4abc-8def-0123456789AB"


@pytest.mark.parametrize(
    "found", ["", "x", "../../../v/home/.claude/projects/p/secret", SESSION[:-1], f"{SESSION}\n", f"{SESSION}\0"]
)
def test_what_cannot_be_a_session_id_is_not_taken(found: str) -> None:
    """It becomes a file's name and an argument."""
    assert cli.session_id(found, "known") == "known"
    assert cli.session_id(SESSION, "known") == SESSION
