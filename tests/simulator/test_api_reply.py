"""What the stand-in for the Messages API answers, asked for over real sockets."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from simulator.messages_api import MessagesApi
from tests.simulator.api_client import Client, body


@pytest.fixture
def api() -> Iterator[MessagesApi]:
    with MessagesApi() as api:
        yield api


@pytest.fixture
def client(api: MessagesApi) -> Iterator[Client]:
    client = Client(api)
    yield client
    client.http.close()


def test_a_stream_is_the_events_of_one_message(client: Client) -> None:
    """A streamed reply has the Messages API's events in order, one text delta per token, and a final usage."""
    answer = client.stream("hello [[sim tokens=3]]")
    kinds = [event["type"] for event in answer.events]
    deltas = ["content_block_delta"] * 3
    assert kinds == [
        "message_start", "content_block_start", *deltas, "content_block_stop", "message_delta", "message_stop"
    ]  # fmt: skip
    assert answer.text == "hello0 hello1 hello2 "
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.events[-2]["delta"]["stop_reason"] == "end_turn"
    assert answer.events[-2]["usage"]["output_tokens"] == 3


def test_without_stream_the_same_message_comes_as_json(client: Client) -> None:
    """Without ``stream`` the reply is one JSON message."""
    message = client.post(body("hello [[sim tokens=2 thinking]]")).json
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    assert message["content"][1]["text"] == "hello0 hello1 "
    assert (message["role"], message["model"], message["stop_reason"]) == ("assistant", "claude-sonnet-5-5", "end_turn")


def test_every_message_has_an_id_of_its_own(client: Client) -> None:
    """No two replies share an id: the CLI would merge them into one message."""
    ids = {client.stream("x [[sim tokens=1]]").events[0]["message"]["id"] for _ in range(20)}
    assert len(ids) == 20


def test_the_directive_is_found_before_attachments_and_system_messages(client: Client) -> None:
    """The user's text need not be last: attachments and system-role messages may follow it."""
    reminder = {"type": "text", "text": "<system-reminder>be [careful]</system-reminder>"}
    content = [reminder, {"type": "text", "text": "hello [[sim tokens=2]]"}, reminder]
    messages = [{"role": "user", "content": content}, {"role": "system", "content": "the date"}]
    assert client.post(body("", stream=True, messages=messages)).text == "hello0 hello1 "


def test_only_the_latest_text_gives_directives(client: Client) -> None:
    """A directive of an earlier, interrupted message without an answer does not leak into the next message's turn."""
    content = ["old [[sim error=500]]", "[Request interrupted by user]", "new [[sim tokens=1]]"]
    messages = [{"role": "user", "content": [{"type": "text", "text": text} for text in content]}]
    assert client.post(body("", stream=True, messages=messages)).text == "new0 "


def test_a_reply_without_a_directive_proves_memory(client: Client) -> None:
    """Without a directive the reply repeats the text and counts the earlier messages of the user."""
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": [{"type": "text", "text": "1"}]},
        {"role": "user", "content": "two"},
    ]
    assert client.post(body("", stream=True, messages=messages)).text == "You said: two\nEarlier messages of yours: 1."


def test_a_tool_is_called_once_and_then_the_text_follows(client: Client) -> None:
    """``tool=`` answers a tool_use block; once its tool_result is there, the final text."""
    text = '[[sim tokens=2 tool="Bash:echo hi"]] go'
    events = client.stream(text).events
    start = events[1]["content_block"]
    parts = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert (start["type"], start["name"], start["input"]) == ("tool_use", "Bash", {})
    assert json.loads("".join(parts)) == {"command": "echo hi", "description": "Run a command"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    call = {"type": "tool_use", "id": start["id"], "name": "Bash", "input": {}}
    result = {"type": "tool_result", "tool_use_id": start["id"], "content": "hi"}
    messages = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result, {"type": "text", "text": "<system-reminder>x</system-reminder>"}]},
    ]
    assert client.post(body("", stream=True, messages=messages)).text == "go0 go1 "


def test_a_new_message_behind_a_tool_result_is_a_new_request(client: Client) -> None:
    """A message that follows a tool_result (a denial, an interrupt) has its own directive obeyed, a tool included."""
    result = {"type": "tool_result", "tool_use_id": "t", "content": "denied", "is_error": True}
    messages = [{"role": "user", "content": [result, {"type": "text", "text": "[[sim tool=Bash:ls]]"}]}]
    assert client.post(body("", stream=True, messages=messages)).events[1]["content_block"]["type"] == "tool_use"


def test_a_message_sent_in_mid_turn_is_found(client: Client) -> None:
    """The CLI folds a message that comes in mid-turn into one with the system role: it is read as the user's."""
    result = {"type": "tool_result", "tool_use_id": "t", "content": "done"}
    folded = "The user sent a new message while you were working:\nnew [[sim tokens=2]]\n\nThis is how it comes."
    messages = [{"role": "user", "content": [result]}, {"role": "system", "content": folded}]
    assert client.post(body("", stream=True, messages=messages)).text == "new0 new1 "


def test_thinking_comes_first_and_is_signed(client: Client) -> None:
    """A thinking block precedes the text, with thinking deltas and one signature delta."""
    events = client.stream("[[sim tokens=1 thinking]]").events
    kinds = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert kinds == ["thinking_delta"] * 3 + ["signature_delta", "text_delta"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (529, "overloaded_error"),
    ],
)
def test_errors_have_the_shape_of_the_api(client: Client, status: int, kind: str) -> None:
    """``error=N`` answers that status with the API's error object, streaming or not."""
    for stream in (True, False):
        answer = client.post(body(f"[[sim error={status}]]", stream=stream))
        assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (status, "error", kind)
        assert answer.json["request_id"] == answer.headers["request-id"]


@pytest.mark.parametrize("model", ["gpt", "claude-unknown-9", "", None, 7])
def test_an_unknown_model_is_404(client: Client, model: object) -> None:
    """A model name that does not exist is 404 not_found_error, for a message and for a count."""
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        answer = client.call("POST", path, body("x", model=model))
        assert (answer.status, answer.json["error"]["type"]) == (404, "not_found_error")


@pytest.mark.parametrize("model", ["sonnet", "opus", "haiku", "claude-anything-1"])
def test_aliases_and_claude_names_are_known(client: Client, model: str) -> None:
    """An alias and any name that begins with ``claude-`` is served."""
    assert client.post(body("[[sim tokens=1]]", model=model)).status == 200


@pytest.mark.parametrize(
    "data",
    [b"{", b"[1]", b"\xff", b"[" * 100_000, {"model": "sonnet"}, body("x", max_tokens=0), body("[[sim nonsense=1]]")],
)
def test_a_body_that_cannot_be_served_is_400(client: Client, data: Any) -> None:
    """A body that is no JSON object, lacks a field or holds a bad directive is 400; the connection goes on."""
    assert client.post(data).status == 400
    assert client.stream("[[sim tokens=1]]").status == 200


def test_an_error_can_be_one_models_alone(client: Client) -> None:
    """``error_model`` names a part of the models that are refused, and whose streams are cut."""
    text = "hello [[sim tokens=2 error=529 error_model=sonnet]]"
    statuses = [client.post(body(text, model=model)).status for model in ("claude-sonnet-5-5", "claude-haiku-5-5")]
    assert statuses == [529, 200]


def test_a_tool_can_be_called_several_times(client: Client) -> None:
    """``tool_times`` calls it once for each result that is missing, and then the text comes."""
    asked = {"role": "user", "content": 'work [[sim tool="Bash:ls" tool_times=2 tokens=2]]'}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]}
    answers = [client.post(body("", messages=[asked, *[result] * count])).json for count in range(3)]
    assert [answer["stop_reason"] for answer in answers] == ["tool_use", "tool_use", "end_turn"]
