"""The view ``messages``: events of the main thread stand alone, byte for byte; all other frames stay as they are."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.turns.view import as_messages
from protocol.codec import splice_seq
from protocol.wire import text_frame, text_of
from tests.protocol.strategies import OBJECTS, TEXT
from tests.soak import size

DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 'Hällo \u2028 \\ "'}}
SPACES = st.sampled_from(["", " ", "\t ", " \r"])


def logged(line: bytes, seq: int = 7) -> bytes:
    """A frame as the session puts it into the log."""
    return text_frame(splice_seq(line, seq))


def stream_event(event: Any, **fields: Any) -> bytes:
    whole = {"type": "stream_event", "event": event, "parent_tool_use_id": None, "uuid": "u", "session_id": "s"}
    return logged(json.dumps(whole | fields).encode())


def shown(frame: bytes) -> Any:
    return json.loads(text_of(as_messages(frame)))


def test_an_event_of_the_main_thread_stands_alone() -> None:
    """It is the Messages API's event with the frame's number as its last key."""
    assert shown(stream_event(DELTA)) == {**DELTA, "seq": 7}
    assert list(shown(stream_event(DELTA)))[-1] == "seq"
    without = logged(json.dumps({"type": "stream_event", "event": DELTA}).encode())
    assert shown(without) == {**DELTA, "seq": 7}, "no parent at all is no parent"


@given(OBJECTS.filter(bool), st.integers(1, 2**53), st.booleans(), SPACES)
@settings(max_examples=size(75, 300), deadline=None)
@example({"seq": 3, "type": "ping"}, 9, True, "")
@example({"seq": 3}, 9, True, " ")
@example({"a": {"seq": 3}}, 9, True, "")
@example({"type": "stream_event", "event": {"type": "x"}}, 1, True, "")
def test_an_event_keeps_its_bytes(event: dict[str, Any], seq: int, is_ascii: bool, space: str) -> None:
    """However the CLI wrote the event, so it is shown; only a number of its own gives way to the frame's."""
    separators = (f",{space}", f":{space}")
    written = json.dumps(event, ensure_ascii=is_ascii, separators=separators)
    head = '{"session_id":"s","type":"stream_event"'
    line = f'{head},{space}"event"{space}:{space}{written}{space},"parent_tool_use_id":{space}null}}'.encode()
    found = text_of(as_messages(logged(line, seq)))
    rest = {key: value for key, value in event.items() if key != "seq"} or {"type": ""}
    assert json.loads(found) == {**rest, "seq": seq}
    if "seq" not in event:
        assert found == written.encode()[:-1] + b',"seq":%d}' % seq


@given(OBJECTS.filter(bool), TEXT)
@settings(max_examples=size(50, 200), deadline=None)
@example({"type": "assistant", "message": '"stream_event"'}, "")
@example({"type": "stream_event"}, "")
def test_every_other_frame_is_as_it_is(fields: dict[str, Any], text: str) -> None:
    """The very bytes of the log, also where the words of a frame look like an event."""
    fields = {"type": "assistant", **fields, "more": '{"type":"stream_event"}' + text}
    frame = logged(json.dumps({key: value for key, value in fields.items() if key != "seq"}).encode())
    assert as_messages(frame) is frame


@pytest.mark.parametrize(
    "frame",
    [
        stream_event(DELTA, parent_tool_use_id="toolu_1"),
        stream_event(DELTA, parent_tool_use_id=0),
        stream_event({}),
        stream_event([]),
        stream_event("ping"),
        stream_event(None),
        logged(b'{"type":"stream_event"}'),
        logged(b'{"type":"stream_event","event":{ }}'),
        logged(b'{"type":7,"event":{"a":"stream_event"}}'),
        text_frame(b'{"type":"stream_event","event":{"a":1}}'),
        text_frame(b'{"type":"stream_event","event":' + b"[" * 5000),
    ],
)
def test_what_is_no_event_of_the_main_thread_is_as_it_is(frame: bytes) -> None:
    """A subagent's event keeps its frame, which says whose it is; an odd one is shown as the CLI says it."""
    assert as_messages(frame) is frame


def test_long_events_are_framed_by_their_own_length() -> None:
    """Each of the three forms of a length, before and after."""
    for length in (1, 100, 1000, 70_000):
        event = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x" * length}}
        frame = as_messages(stream_event(event))
        assert frame == text_frame(text_of(frame))
        assert json.loads(text_of(frame)) == {**event, "seq": 7}
