"""A conversation's words, out of the frames of either view, whatever a connection misses."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.text import BREAK, Part, TextAssembler, TextDelta, TurnText
from tests.protocol.strategies import OBJECTS
from tests.soak import size

Frame = dict[str, Any]


def streamed(message_id: str, *blocks: str | None) -> list[Frame]:
    """A message of the CLI: for each text its deltas and its whole, for None a tool's."""
    frames: list[Frame] = [event("message_start", message={"id": message_id, "content": [], "usage": {}})]
    for index, text in enumerate(blocks):
        kind = {"type": "tool_use", "id": "t", "name": "Bash", "input": {}} if text is None else {
            "type": "text", "text": ""
        }  # fmt: skip
        frames.append(event("content_block_start", index=index, content_block=kind))
        for word in (text or "").split(" "):
            delta = {"type": "input_json_delta", "partial_json": "{}"} if text is None else {
                "type": "text_delta", "text": f"{word} "
            }  # fmt: skip
            frames.append(event("content_block_delta", index=index, delta=delta))
        frames.append(whole(message_id, kind if text is None else {"type": "text", "text": f"{text} "}))
        frames.append(event("content_block_stop", index=index))
    return [*frames, event("message_delta", delta={"stop_reason": "end_turn"}), event("message_stop")]


def event(kind: str, **fields: Any) -> Frame:
    return {"type": "stream_event", "event": {"type": kind, **fields}, "parent_tool_use_id": None}


def whole(message_id: str, block: Frame, parent: str | None = None) -> Frame:
    message = {"id": message_id, "role": "assistant", "content": [block]}
    return {"type": "assistant", "message": message, "parent_tool_use_id": parent}


def started(message_id: str) -> Frame:
    return {"type": "broker.message", "id": message_id, "state": "started", "by": "tab", "content": "hello"}


def completed(message_id: str | None, **fields: Any) -> Frame:
    return {
        "type": "broker.turn_completed",
        "id": message_id,
        "is_error": False,
        "stopped": False,
        "error": None,
        **fields,
    }


CONVERSATION = [
    {"type": "broker.message", "id": "m-1", "state": "queued", "by": "tab", "content": "hello"},
    started("m-1"),
    {"type": "system", "subtype": "init", "session_id": "s"},
    *streamed("msg_1", "Let me look", None),
    {"type": "user", "message": {"role": "user", "content": [{"type": "tool_result"}]}, "parent_tool_use_id": None},
    whole("msg_sub", {"type": "text", "text": "of a subagent"}, parent="toolu_1"),
    {"type": "system", "subtype": "api_retry", "error": {"odd": 1}},
    *streamed("msg_2", "It is there", "and also here"),
    {"type": "result", "subtype": "success", "result": "and also here"},
    completed("m-1"),
    started("m-2"),
    whole("msg_3", {"type": "text", "text": "Not streamed at all"}),
    completed("m-2"),
]
FIRST = f"Let me look {BREAK}It is there {BREAK}and also here "
TURNS = [TurnText("m-1", FIRST), TurnText("m-2", "Not streamed at all")]


def numbered(frames: list[Frame], first: int = 1) -> list[Frame]:
    return [{**frame, "seq": seq} for seq, frame in enumerate(frames, first)]


def as_messages(frame: Frame) -> Frame:
    return {**frame["event"], "seq": frame["seq"]} if frame["type"] == "stream_event" else frame


def fed(frames: list[Frame], words: TextAssembler | None = None) -> list[Part]:
    words = words or TextAssembler()
    return [part for frame in frames for part in words.feed(json.dumps(frame))]


def said(parts: list[Part]) -> list[tuple[str, str]]:
    """What was shown piece by piece, and what was given as the whole, turn by turn."""
    turns, shown = [], ""
    for part in parts:
        if isinstance(part, TextDelta):
            shown += part.text
        else:
            turns.append((shown, part.text))
            shown = ""
    return turns


def test_both_views_say_the_same() -> None:
    """Every word once, in the order in which it came, and at the end of a turn all of it."""
    frames = numbered(CONVERSATION)
    parts = fed(frames)
    assert [part for part in parts if isinstance(part, TurnText)] == TURNS
    assert said(parts) == [(turn.text, turn.text) for turn in TURNS]
    assert len(parts) > 10, "the words came one by one"
    assert fed([as_messages(frame) for frame in frames]) == parts


@given(st.sets(st.integers(0, len(CONVERSATION) - 1)), st.booleans())
@settings(max_examples=size(50, 200), deadline=None)
def test_what_a_stream_lacks_comes_with_the_whole(lost: set[int], is_messages: bool) -> None:
    """Whichever stream events are missing: no word is lost, and none comes twice."""
    frames = [frame for index, frame in enumerate(numbered(CONVERSATION)) if index not in lost or "event" not in frame]
    shown = [as_messages(frame) for frame in frames] if is_messages else frames
    assert [text for pair in said(fed(shown)) for text in pair] == [text for turn in TURNS for text in (turn.text,) * 2]


@given(st.lists(st.integers(0, len(CONVERSATION)), max_size=6), st.integers(0, 5))
@settings(max_examples=size(25, 100), deadline=None)
def test_a_connection_may_end_anywhere(cuts: list[int], again: int) -> None:
    """The next one goes on from ``last_seq``, or a little before it: the words are the same."""
    words, parts, frames = TextAssembler(), [], numbered(CONVERSATION)
    for cut in [*sorted(cuts), len(frames)]:
        parts += fed([{"type": "broker.welcome", "epoch": "k3f9", "turn": None}], words)
        first = max(0, words.last_seq - again)
        parts += fed(frames[first:cut], words)
        assert words.epoch == "k3f9"
    assert parts == fed(frames)
    assert words.last_seq == len(frames)


def test_a_new_log_begins_again() -> None:
    """Another epoch counts from 1; what was being read is over."""
    words = TextAssembler()
    fed([{"type": "broker.welcome", "epoch": "a"}, *numbered(CONVERSATION[:6])], words)
    parts = fed([{"type": "broker.welcome", "epoch": "b"}, *numbered(CONVERSATION[-3:])], words)
    assert parts[-1] == TurnText("m-2", f"Let {BREAK}Not streamed at all")
    assert (words.epoch, words.last_seq) == ("b", 3)


def test_who_comes_in_the_middle_gets_what_is_left() -> None:
    """Live from mid-turn: whole blocks from there on, and the end of the turn that ``welcome`` told of."""
    frames = numbered(CONVERSATION)
    welcome = {"type": "broker.welcome", "epoch": "k3f9", "turn": {"id": "m-1", "state": "running", "first_seq": 1}}
    parts = fed([welcome, *frames[6:]])
    assert [part for part in parts if isinstance(part, TurnText)] == TURNS


def test_the_end_of_another_message_does_not_end_the_text() -> None:
    """A queued one that is withdrawn, and one that was folded into the turn, have no text of their own."""
    frames = numbered([
        started("m-1"), *streamed("msg_1", "One"),
        {"type": "broker.turn_failed", "id": "m-9", "reason": "cancelled", "applied": "no"},
        started("m-2"), *streamed("msg_2", "Two"), completed("m-1"), completed("m-2", folded_into="m-1"),
        started("m-3"), *streamed("msg_3", "Three"), completed("m-3"),
    ])  # fmt: skip
    assert [part for part in fed(frames) if isinstance(part, TurnText)] == [
        TurnText("m-9", "", "cancelled"), TurnText("m-1", f"One {BREAK}Two "), TurnText("m-2", ""),
        TurnText("m-3", "Three "),
    ]  # fmt: skip


def test_a_folded_message_is_known_from_welcome_too() -> None:
    """Who connects later is told what was steered into the turn."""
    welcome = {"type": "broker.welcome", "epoch": "k", "turn": {"id": "m-1", "steered": ["m-2"]}}
    frames = numbered([*streamed("msg_1", "One"), completed("m-1"), completed("m-2")], 50)
    assert [part for part in fed([welcome, *frames]) if isinstance(part, TurnText)] == [
        TurnText("m-1", "One "), TurnText("m-2", "")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("terminal", "error"),
    [
        (completed("m-1"), None),
        (completed("m-1", is_error=True, error="upstream_overloaded"), "upstream_overloaded"),
        (completed("m-1", is_error=True, stopped=True), "interrupted"),
        (completed("m-1", is_error=True), "error"),
        ({"type": "broker.turn_failed", "id": "m-1", "reason": "cli_exited", "applied": "unknown"}, "cli_exited"),
    ],
)
def test_a_turn_that_went_wrong_says_so(terminal: Frame, error: str | None) -> None:
    """With the words that were said before; the name is the broker's."""
    assert fed(numbered([started("m-1"), *streamed("msg_1", "One"), terminal]))[-1] == TurnText("m-1", "One ", error)


def test_a_turn_of_the_cli_is_nobodys() -> None:
    """Its text comes with the id None."""
    assert fed(numbered([*streamed("msg_1", "Done"), completed(None, origin="cli")]))[-1] == TurnText(None, "Done ")


@given(
    st.lists(OBJECTS, max_size=5), st.sampled_from(["stream_event", "assistant", "broker.welcome", "broker.message"])
)
@settings(max_examples=size(50, 200), deadline=None)
def test_nothing_is_raised(frames: list[Frame], kind: str) -> None:
    """Frames of any form, and text that is no frame, add nothing and break nothing."""
    words = TextAssembler()
    for frame in frames:
        words.feed(json.dumps({**frame, "type": kind}))
    for odd in (b"", b"\xff", "[]", '{"type":7}', '{"type":"assistant","message":' + "[" * 5000):
        assert words.feed(odd) == []
    words = TextAssembler()
    assert said(fed(numbered(CONVERSATION), words)) == [(turn.text, turn.text) for turn in TURNS]


@pytest.mark.parametrize("turn", [None, {"id": "m-2"}])
def test_a_turn_whose_end_is_lost_is_forgotten(turn: Frame | None) -> None:
    """What was said of it belongs to no later one."""
    words = TextAssembler()
    first = [{"type": "broker.welcome", "epoch": "k"}, *numbered([started("m-1"), *streamed("msg_1", "One")])]
    fed(first, words)
    lost = {"type": "broker.welcome", "epoch": "k", "turn": turn, "lost": {"from": 9, "to": 40, "reason": "expired"}}
    begun = [] if turn else [started("m-2")]
    parts = fed([lost, *numbered([*begun, *streamed("msg_2", "Two"), completed("m-2")], 41)], words)
    assert [part for part in parts if isinstance(part, TurnText)] == [TurnText("m-2", "Two ")]


def test_a_turn_that_goes_on_over_what_is_lost_keeps_its_words() -> None:
    """Its end is still to come."""
    words = TextAssembler()
    first = [{"type": "broker.welcome", "epoch": "k"}, *numbered([started("m-1"), *streamed("msg_1", "One")])]
    fed(first, words)
    lost = {"type": "broker.welcome", "epoch": "k", "turn": {"id": "m-1"}, "lost": {"from": 9, "to": 40}}
    parts = fed([lost, *numbered([*streamed("msg_2", "Two"), completed("m-1")], 41)], words)
    assert parts[-1] == TurnText("m-1", f"One {BREAK}Two ")
