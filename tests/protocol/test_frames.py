"""Every frame of the language: out and in again, and what its fields refuse."""

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw, Struct

from protocol import frames
from protocol.codec import decode_client, encode_server
from protocol.errors import ClientError
from protocol.frames import ClientFrame, Hello, Message, ServerFrame, User, UserMessage
from protocol.options import SessionOptions
from tests.protocol.strategies import instances
from tests.soak import size

CLIENT: tuple[type[Struct], ...] = get_args(ClientFrame)
SERVER: tuple[type[Struct], ...] = get_args(ServerFrame)
CANARY = "sk-canary-000000000000"


def encode(value: object) -> bytes:
    return msgspec.json.encode(value)


def tag(kind: type[Struct]) -> str:
    return str(kind.__struct_config__.tag)


@pytest.mark.parametrize("kind", CLIENT, ids=tag)
@given(data=st.data())
@settings(max_examples=size(20, 40), deadline=None)
def test_a_client_frame_comes_back(kind: type[Struct], data: st.DataObject) -> None:
    """Whatever a client frame's struct allows is decoded to the same struct."""
    frame = data.draw(instances(kind))
    assert decode_client(encode(frame)) == frame


@pytest.mark.parametrize("kind", SERVER, ids=tag)
@given(data=st.data())
@settings(max_examples=size(20, 40), deadline=None)
def test_a_frame_of_the_broker_comes_back(kind: type[Struct], data: st.DataObject) -> None:
    """A client with the same structs reads what the broker wrote, and would write the same bytes."""
    frame = data.draw(instances(kind))
    line = encode_server(frame)
    found = msgspec.json.decode(line, type=kind)
    assert encode(found) == line
    assert found == frame or kind is Message  # its blocks come back as plain objects
    assert b"\n" not in line


def test_the_two_vocabularies_are_told_apart_by_their_type() -> None:
    """Each tag is used once; what is not in the SDK's shape begins with ``broker.`` or is the short user message."""
    for kinds in (CLIENT, SERVER):
        assert len({tag(kind) for kind in kinds}) == len(kinds)
    both = {tag(kind) for kind in CLIENT} & {tag(kind) for kind in SERVER}
    assert both == {"control_response", "broker.history"}  # a question and its answer share a name
    sdk = {"user", "control_request", "control_response", "keep_alive", "user_message"}
    assert {tag(kind) for kind in (*CLIENT, *SERVER) if not tag(kind).startswith("broker.")} == sdk


def test_a_hello_of_defaults() -> None:
    """Everything in hello may be left out: a new session, as controller, of the CLI's own frames."""
    hello = decode_client(b'{"type":"broker.hello"}')
    assert hello == Hello()
    assert isinstance(hello, Hello)
    assert (hello.protocol, hello.session.mode, hello.role, hello.view) == (1, "new", "controller", "cli")
    assert hello.options == SessionOptions()
    assert hello.options.given() == {}


ID = ["a", "a" * 64, "!~{}", "0b4e2f6a-0000-4000-8000-000000000000"]
BAD_ID = ["", "a" * 65, "a b", "a\n", "\na", "a\x00", "a\x7f", "é", " "]
SESSION_ID = ["a", "A" * 128, "user1-conv-123", "0.:_-"]
BAD_SESSION_ID = ["", "a" * 129, "-a", ".a", "../x", "a/b", "a\n", "a b", "é", "a\x00", "--resume=x"]
REQUEST_ID = ["r", "r" * 128]
BAD_REQUEST_ID = ["", "r" * 129, "r\n", "r\t"]
TEXT = ["", "é" * 128, "tab-7f3a"]
BAD_TEXT = ["a" * 129, "a\n", "\x00", "\x7f", "\x1b[0m"]
TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def hello(**fields: Any) -> dict[str, Any]:
    return {"type": "broker.hello", **fields}


GOOD: list[dict[str, Any]] = [
    *({"type": "user_message", "id": value, "content": ""} for value in ID),
    *({"type": "user", "uuid": value, "message": {"content": ""}} for value in ID),
    *({"type": "broker.cancel", "id": value} for value in ID),
    *(hello(session={"id": value}) for value in SESSION_ID),
    *({"type": "control_request", "request_id": value, "request": {}} for value in REQUEST_ID),
    *(hello(client={name: value}) for name in ("name", "version", "instance") for value in TEXT),
    *(hello(session={"epoch": value}) for value in TEXT),
    *(hello(session={"last_seq": value}) for value in (0, 2**53)),
    *(hello(auth={"token": value}) for value in ("t", "t" * 4096)),
    *(hello(auth={"subject": value}) for value in ("alice@example.com", "a" * 128)),
    hello(traceparent=TRACE),
    {"type": "user_message", "content": [{"type": "text", "text": ""}] * 256},
    *({"type": "user_message", "content": "", "steer": value} for value in (True, False)),
    {"type": "user", "message": {"content": ""}, "steer": True},
    {"type": "broker.delete"},
    {"type": "broker.history"},
    *({"type": "broker.history", "before": value} for value in (None, *ID)),
    *({"type": "broker.history", "limit": value} for value in (1, 200)),
    *(hello(role=value) for value in ("controller", "observer")),
    *(hello(view=value) for value in ("cli", "messages")),
    *(hello(session={"mode": value}) for value in ("new", "resume", "open", "continue", "fork")),
    {"type": "broker.ping"},
    *({"type": "broker.ping", "t": value} for value in (None, 0, -1.5, 2**70)),
    {"type": "control_response", "response": {"subtype": "error", "request_id": "r", "error": "e" * 4096}},
]
BAD: list[dict[str, Any]] = [
    *({"type": "user_message", "id": value, "content": ""} for value in BAD_ID),
    *({"type": "user", "uuid": value, "message": {"content": ""}} for value in BAD_ID),
    *({"type": "broker.cancel", "id": value} for value in BAD_ID),
    *(hello(session={"id": value}) for value in BAD_SESSION_ID),
    *({"type": "control_request", "request_id": value, "request": {}} for value in BAD_REQUEST_ID),
    *(hello(client={name: value}) for name in ("name", "version", "instance") for value in BAD_TEXT),
    *(hello(session={"epoch": value}) for value in BAD_TEXT),
    *(hello(session={"last_seq": value}) for value in (-1, 2**53 + 1, 0.5, "1", True)),
    *(hello(auth={"token": value}) for value in ("", "t" * 4097, 7)),
    *(hello(auth={"subject": value}) for value in ("", "a" * 129, "-a", "a\n", "a b")),
    *(hello(traceparent=value) for value in ("", TRACE + "\n", TRACE.upper(), "00-abc")),
    *(hello(**{name: "x"}) for name in ("protocol", "session", "role", "view", "client", "auth", "options", "more")),
    {"type": "user_message", "content": []},
    {"type": "user_message", "content": [{"type": "text", "text": ""}] * 257},
    {"type": "user_message", "content": None},
    {"type": "user_message", "content": [{"type": "tool_result", "content": "x"}]},
    {"type": "user_message", "content": [{"type": "image", "source": {"type": "url", "url": "http://a/"}}]},
    {"type": "user_message"},
    {"type": "user", "message": {"role": "assistant", "content": "x"}},
    {"type": "user", "message": "x"},
    {"type": "broker.ping", "t": "1"},
    {"type": "broker.ping", "t": 1, "more": 1},
    {"type": "broker.end", "more": 1},
    *({"type": "user_message", "content": "", "steer": value} for value in (1, "now", None)),
    *({"type": "user", "message": {"content": ""}, "steer": value} for value in (0, "true", None)),
    {"type": "broker.delete", "id": "conv-1"},
    *(
        {"type": "broker.history", "before": value}
        for value in (*(bad for bad in BAD_ID if len(bad) < 65), "a" * 97, 7)
    ),
    *({"type": "broker.history", "limit": value} for value in (0, 201, -1, 1.5, "50", None, True)),
    {"type": "broker.history", "after": "m-9"},
    {"type": "broker.cancel"},
    {"type": "control_request", "request_id": "r"},
    {"type": "control_response", "response": {"subtype": "maybe", "request_id": "r"}},
    {"type": "control_response", "response": {"subtype": "error", "request_id": "r", "error": "e" * 4097}},
    {"type": "assistant"},
    {"type": "broker.welcome"},
    {"type": 1},
    {"type": None},
    {},
]


def is_accepted(frame: dict[str, Any]) -> bool:
    try:
        return tag(type(decode_client(encode(frame)))) == str(frame["type"])
    except ClientError:
        return False


def test_a_value_at_its_bound_is_accepted() -> None:
    """The longest, shortest and oddest values that the protocol allows are decoded."""
    assert [frame for frame in GOOD if not is_accepted(frame)] == []


def test_a_value_beyond_its_bound_is_refused() -> None:
    """One more, a control character, a newline at the end, a wrong type: a ``ClientError`` and nothing else."""
    assert [frame for frame in BAD if is_accepted(frame)] == []


def test_the_two_user_frames_mean_the_same() -> None:
    """The SDK's shape and the short form carry the same content; without an id the field stays unset."""
    blocks = [{"type": "text", "text": "look"}, {"type": "image", "source": {
        "type": "base64", "media_type": "image/png", "data": "aGk="}}]  # fmt: skip
    long = decode_client(encode({"type": "user", "message": {"role": "user", "content": blocks}, "uuid": "m-9"}))
    short = decode_client(encode({"type": "user_message", "content": blocks, "id": "m-9"}))
    assert isinstance(long, User)
    assert isinstance(short, UserMessage)
    assert (long.message.content, long.uuid) == (short.content, short.id)
    unnamed = decode_client(b'{"type":"user_message","content":"x"}')
    assert isinstance(unnamed, UserMessage)
    assert unnamed.id is UNSET


def test_the_text_form_of_a_hello_shows_no_secret() -> None:
    """Whoever logs a hello shows neither the token nor a credential nor an MCP server's headers."""
    hello = decode_client(encode({
        "type": "broker.hello", "auth": {"token": CANARY, "subject": "alice"},
        "options": {"credentials": {"oauth_token": CANARY}, "mcp_servers": {
            "acme": {"type": "http", "url": "https://mcp.example.com/", "headers": {"Authorization": CANARY}}}},
    }))  # fmt: skip
    for text in (repr(hello), str(hello), f"{hello}"):
        assert CANARY not in text
        assert "alice" in text
        assert "oauth_token" in text


def test_a_pending_request_is_embedded_as_it_stands() -> None:
    """``welcome.pending`` holds the very bytes that the clients got."""
    line = b'{"type":"control_request" , "x":1.0,"seq":7}'
    info = frames.CliInfo("2.1.329", False, "s")
    limits = frames.Limits(1, 2, 3.0, 4, 5, 6, 7, 8.0)
    welcome = frames.Welcome(
        "s", "e", 7, False, frames.Replay(1, 7), None, None, None, 0.0, "controller", "cli", info, [], None, [],
        [Raw(line)], limits,
    )  # fmt: skip
    encoded = encode_server(welcome)
    assert b'"pending":[' + line + b"]" in encoded
    assert b'"replay":{"from":1,"to":7}' in encoded
