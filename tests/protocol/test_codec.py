"""Client bytes to frames, their mistakes in words, and the number that is spliced into a CLI's line."""

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.cli import Peek, peek
from protocol.codec import count_unknown_fields, decode_client, decode_hello, encode_server, splice_seq, without_seq
from protocol.codes import CloseCode, ErrorCode
from protocol.errors import ClientError, ConnectionRefused
from protocol.frames import Hello, KeepAlive, Ping, Pong, UserMessage
from tests.protocol.strategies import JSON, OBJECTS
from tests.soak import size

DEEP = 100_000
USER = b'{"type":"user","message":{"role":"user","content":"x"}'


def refusal(data: bytes) -> ClientError:
    with pytest.raises(ClientError) as caught:
        decode_client(data)
    return caught.value


# -- decoding --------------------------------------------------------------------------------------------------------


MISTAKES: list[tuple[bytes, str]] = [
    (b'{"type":"user_message","content":7}', "`$.content`"),
    (b'{"type":"user_message","content":[{"type":"text","text":7}]}', "`$.content[0].text`"),
    (b'{"type":"user_message","content":[{"type":"image"}]}', "`source` - at `$.content[0]`"),
    (b'{"type":"user_message"}', "`content`"),
    (b'{"type":"user_message","content":"x","steer":1}', "`$.steer`"),
    (b'{"type":"broker.history","limit":0}', "`$.limit`"),
    (b'{"type":"broker.history","before":"a\\n"}', "`$.before`"),
    (b'{"type":"broker.delete","id":"a"}', "`id`"),
    (b'{"type":"broker.ping","more":1}', "`more`"),
    (b'{"type":"broker.hello","session":{"more":1}}', "`more` - at `$.session`"),
    (b'{"type":"broker.hello","client":{"name":7}}', "`$.client.name`"),
    (b'{"type":"broker.hello","role":"king"}', "`$.role`"),
    (b'{"type":"user","message":{"role":"user"}}', "`content` - at `$.message`"),
    (b'{"type":"nonsense"}', "`$.type`"),
    (b'{"type":7}', "`$.type`"),
    (b"{}", "`type`"),
    (b"[]", "object"),
    (b"", "truncated"),
    (b'{"type":"broker.ping"', "truncated"),
    (b'{"type":"broker.ping"}x', "trailing"),
    (b'{"type":"broker.ping","t":NaN}', "invalid character"),
    (b'{"type":"broker.ping","t":1e400}', "out of range"),
    (b'{"type":"broker.ping","t":' + b"1" * 5000 + b"}", "out of range"),
    (b'{"type":"user_message","content":"\x00"}', "invalid"),
    (b'\xef\xbb\xbf{"type":"broker.ping"}', "invalid"),
    (b'{"type":"user_message","content":"\xff"}', "utf-8"),
    (USER[:-1] + b',"more":"\\ud800"}}', "truncated"),
    (b"[" * DEEP, "object"),
    (b'{"type":' + b"[" * DEEP, "nested too deeply"),
    (b'{"type":"keep_alive","more":' + b"[" * DEEP + b"]" * DEEP + b"}", "nested too deeply"),
    (b'{"type":"control_request","request_id":"r","request":' + b'{"a":' * DEEP, "nested too deeply"),
    (USER + b',"type":"broker.hello"}', "`$.type`"),
]


def test_a_mistake_is_told_with_its_path() -> None:
    """Every frame that does not decode is ``bad_frame``, in one short line that says where."""
    for data, path in MISTAKES:
        error = refusal(data)
        assert error.code is ErrorCode.BAD_FRAME
        assert path in error.message
        assert (error.close, error.ref) == (None, None)
        assert len(error.message) < 600
        assert "\n" not in error.message


@given(st.binary(max_size=30) | OBJECTS.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=size(75, 300), deadline=None)
def test_nothing_else_is_raised(data: bytes) -> None:
    """Any bytes are a frame or a ``ClientError``; as a first frame, hello or a refusal."""
    for decode in (decode_client, decode_hello):
        with contextlib.suppress(ClientError, ConnectionRefused):
            decode(data)


def test_a_long_value_is_not_echoed_and_keeps_its_path() -> None:
    """A value of a megabyte in the place of a choice is cut, and the path behind it stays."""
    value = b"x" * 1_000_000
    error = refusal(b'{"type":"broker.hello","role":"' + value + b'"}')
    assert error.code is ErrorCode.BAD_FRAME
    assert error.message.endswith("- at `$.role`")
    error = refusal(b'{"type":"broker.hello","options":{"permission_mode":"' + value + b'"}}')
    assert error.code is ErrorCode.BAD_OPTIONS
    assert error.message.endswith("- at `$.options.permission_mode`")
    assert len(error.message) < 600


def test_of_a_repeated_key_the_last_wins() -> None:
    """Two contents: the second is the message, and nobody downstream sees the first."""
    assert decode_client(b'{"type":"user_message","content":"a","content":"b"}') == UserMessage("b")


def test_unknown_fields_are_dropped_and_counted_in_the_sdk_shape() -> None:
    """``user`` and its kin drop what they do not know, at the top and below, and the number can be told."""
    data = USER[:-1] + b',"more":1},"uuid":"m","session_id":"s","parent_tool_use_id":null,"x":{"y":1}}'
    frame = decode_client(data)
    assert count_unknown_fields(frame, data) == 3
    assert b"session_id" not in msgspec.json.encode(frame)
    assert count_unknown_fields(decode_client(USER + b"}"), USER + b"}") == 0
    for kind in ("keep_alive", "control_request", "control_response"):
        data = (
            b'{"type":"%s","more":1,"request_id":"r","request":{},"response":{"subtype":"error","request_id":"r"}}'
            % (kind.encode())
        )
        assert count_unknown_fields(decode_client(data), data) >= 1


def test_counting_never_fails() -> None:
    """What decoded can be counted: numbers that Python cannot hold, and nesting just below the limit."""
    values = [b"1" * 5000, b"1e400", b"[" * 900 + b"]" * 900, b'"\\u0000"']
    for value in values:
        data = b'{"type":"keep_alive","more":' + value + b"}"
        assert decode_client(data) == KeepAlive()
        assert count_unknown_fields(KeepAlive(), data) == 1


OURS = ["hello", "ping", "end", "cancel", "delete", "history"]


@pytest.mark.parametrize("kind", ["user_message", *(f"broker.{name}" for name in OURS)])
def test_unknown_fields_are_refused_in_our_own_frames(kind: str) -> None:
    """A misspelt field of a broker frame is a mistake, never silence."""
    error = refusal(b'{"type":"%s","id":"m","content":"x","nonsense":1}' % kind.encode())
    assert error.code is ErrorCode.BAD_FRAME
    assert "unknown field" in error.message


# -- the first frame -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"7", b"{}", b'{"type":null}', b'{"type":"user_message","content":"x"}',
        b'{"type":"broker.ping"}',
        b'{"type":"BROKER.HELLO"}', b"[" * DEEP, b'{"type":"broker.hello","type":"broker.ping"}', b"GET / HTTP/1.1",
        b'{"type":"\xff"}',
    ],
    ids=lambda data: str(data[:30]),
)  # fmt: skip
def test_a_first_frame_that_is_no_hello_ends_the_connection(data: bytes) -> None:
    """Whoever does not say hello is closed with 4502, whatever was sent."""
    with pytest.raises(ConnectionRefused) as caught:
        decode_hello(data)
    assert caught.value.close is CloseCode.HELLO_EXPECTED


def test_a_hello_with_a_mistake_is_told_what_it_is() -> None:
    """A hello that does not decode is answered like any other frame."""
    assert decode_hello(b'{"type":"broker.hello"}') == Hello()
    for data, code in (
        (b'{"type":"broker.hello","options":{"effort":"ultra"}}', ErrorCode.BAD_OPTIONS),
        (b'{"type":"broker.hello","options":{"temperature":1}}', ErrorCode.BAD_OPTIONS),
        (b'{"type":"broker.hello","nonsense":1}', ErrorCode.BAD_FRAME),
        (b'{"type":"keep_alive","type":"broker.hello"}', ErrorCode.BAD_FRAME),
    ):
        with pytest.raises(ClientError) as caught:
            decode_hello(data)
        assert caught.value.code is code


# -- encoding --------------------------------------------------------------------------------------------------------


@given(st.none() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=size(20, 60), deadline=None)
def test_a_ping_comes_back_as_it_was(t: float | None) -> None:
    """``t`` is the client's own: any number that decodes is sent back unchanged."""
    frame = decode_client(json.dumps({"type": "broker.ping", "t": t}).encode())
    assert isinstance(frame, Ping)
    assert json.loads(encode_server(Pong(frame.t))) == {"type": "broker.pong", "t": t}


# -- the number ------------------------------------------------------------------------------------------------------

LINES = OBJECTS.filter(bool)


def spliced(line: bytes, seq: int) -> bytes:
    """As the session does it."""
    found = peek(line)
    assert isinstance(found, Peek)
    return splice_seq(line if isinstance(found.seq, msgspec.UnsetType) else without_seq(line), seq)


@given(LINES, st.integers(1, 2**53), st.booleans(), st.sampled_from(["", " ", "\t", " \r\t "]))
@settings(max_examples=size(100, 400), deadline=None)
@example({"": ""}, 1, False, "")
@example({"seq": 3}, 9, False, " ")
@example({"a": {"seq": 3, "b": [{}, "}", '"}']}, "z": "}"}, 2, True, "\r")
def test_a_number_changes_nothing_else(fields: dict[str, Any], seq: int, is_ascii: bool, space: str) -> None:
    """The numbered line is the same object with ``seq`` as its last key, whatever it holds and however it is spaced."""
    separators = (f",{space}", f":{space}")
    line = f"{space}{json.dumps(fields, ensure_ascii=is_ascii, separators=separators)}{space}".encode()
    found = json.loads(spliced(line, seq))
    assert list(found)[-1] == "seq"
    assert found.pop("seq") == seq
    rest = {key: value for key, value in fields.items() if key != "seq"} or {"type": ""}
    assert found == rest
    assert list(found) == list(rest)


@given(LINES.filter(lambda fields: "seq" not in fields), st.integers(1, 2**40))
@settings(max_examples=size(25, 100), deadline=None)
def test_the_line_is_not_encoded_again(fields: dict[str, Any], seq: int) -> None:
    """Byte for byte the CLI's own text stands before the number."""
    line = json.dumps(fields).encode()
    assert spliced(line, seq) == line[:-1] + b',"seq":%d}' % seq


def test_a_line_with_a_number_of_its_own_loses_only_that() -> None:
    """Other values stay as they are written, also those that Python could not hold; nested numbers stay too."""
    line = b'{"type":"x", "seq": 3 ,"n":1.0,"big":1e400,"digits":' + b"1" * 5000 + b',"deep":{"seq":4},"u":"\\u00e9"}'
    expected = b'{"type":"x","n":1.0,"big":1e400,"digits":' + b"1" * 5000 + b',"deep":{"seq":4},"u":"\\u00e9","seq":7}'
    assert spliced(line, 7) == expected
    assert spliced(b'{"seq":3}', 7) == b'{"type":"","seq":7}'
    assert spliced(b'{"seq":3,"type":"x","seq":[4]}', 7) == b'{"type":"x","seq":7}'
    assert spliced(b'{"type":7,"seq":3}', 8) == b'{"type":7,"seq":8}'


@given(JSON)
@settings(max_examples=size(20, 60), deadline=None)
def test_a_frame_of_the_broker_can_be_numbered(content: Any) -> None:
    """What ``encode_server`` gives is an object that takes a number."""
    line = splice_seq(encode_server(Pong(1)), 4)
    assert json.loads(line) == {"type": "broker.pong", "t": 1, "seq": 4}
    assert json.loads(spliced(json.dumps({"type": "x", "v": content}).encode(), 1))["v"] == content
