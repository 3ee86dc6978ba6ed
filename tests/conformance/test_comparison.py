"""The comparison itself, on made-up words: what it lets pass and what it does not.  No process is started here."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.comparison import Words, asides, compare, incoherent, main_line, pool, required_keys
from tests.conformance.driver import Frame
from tests.conformance.recording import Run, Spoken
from tests.conformance.shapes import HOOK_INPUT, kind, shape

Change = Callable[[list[Frame]], object]
ID = "5d6c0f5e-8a3f-4b57-9a0c-0d8f6b8a3f11"


def said(tokens: int = 3) -> list[Frame]:
    """A plain turn."""
    text = "".join(f"w{number} " for number in range(tokens))
    deltas = [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"w{n} "}}
              for n in range(tokens)]  # fmt: skip
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    message = {"id": ID, "role": "assistant", "model": "m", "content": [{"type": "text", "text": text}]}
    return [
        {"type": "system", "subtype": "init", "session_id": ID, "tools": ["Bash"], "permissionMode": "default"},
        {"type": "system", "subtype": "status", "status": "requesting", "session_id": ID},
        *({"type": "stream_event", "event": event, "parent_tool_use_id": None} for event in [block, *deltas]),
        {"type": "assistant", "message": message, "parent_tool_use_id": None},
        {
            "type": "result",
            "subtype": "success",
            "is_error": False,
            "num_turns": 1,
            "modelUsage": {"m": {"costUSD": 1}},
        },
    ]


def complaints(ours: list[Frame], older: list[Frame], newer: list[Frame], code: int = 0) -> list[str]:
    runs = [Run("x", "x", [Spoken(frames, 0)], {}, [], None, 0.0) for frames in (older, newer)]
    return compare(Words(Spoken(ours, code)), Words(Spoken(older, 0)), Words(Spoken(newer, 0)), pool(runs))


def test_the_same_words_pass() -> None:
    """A run that says what the real one says draws no complaint, whatever its ids, times, counts and texts are."""
    ours = said()
    ours[0]["session_id"] = "another"
    ours[-1]["modelUsage"] = {"another-model": {"costUSD": 7}}
    assert complaints(ours, said(), said()) == []


@given(tokens=st.integers(1, 30))
def test_the_number_of_deltas_does_not_matter(tokens: int) -> None:
    """A reply of any length passes beside a real one of another length."""
    assert complaints(said(tokens), said(), said()) == []


CHANGES: dict[str, Change] = {
    "no init": lambda frames: frames.pop(0),
    "no status": lambda frames: frames.pop(1),
    "no delta": lambda frames: frames.pop(4),
    "no result": lambda frames: frames.pop(),
    "two results": lambda frames: frames.append(frames[-1]),
    "result before assistant": lambda frames: frames.insert(-2, frames.pop()),
    "status before init": lambda frames: frames.insert(0, frames.pop(1)),
    "no session_id": lambda frames: frames[0].pop("session_id"),
    "no inner key": lambda frames: frames[-2]["message"].pop("role"),
    "no key in an open map": lambda frames: frames[-1]["modelUsage"]["m"].pop("costUSD"),
    "an emptied open map": lambda frames: frames[-1]["modelUsage"].clear(),
    "no content": lambda frames: frames[-2]["message"].pop("content"),
    "an unknown key": lambda frames: frames[-1].update(extra=1),
    "another type": lambda frames: frames[0].update(session_id=1),
    "null in place of a string": lambda frames: frames[0].update(session_id=None),
    "an unknown frame": lambda frames: frames.append({"type": "extra"}),
    "another value": lambda frames: frames[0].update(permissionMode="plan"),
    "another end": lambda frames: frames[-1].update(is_error=True),
    "another number of turns": lambda frames: frames[-1].update(num_turns=2),
    "another text than was streamed": lambda frames: frames[-2]["message"]["content"][0].update(text="w0 "),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_noticed(name: str) -> None:
    """A missing, moved, doubled or invented frame, key, type or value draws a complaint."""
    ours = said()
    CHANGES[name](ours)
    assert complaints(ours, said(), said())


def test_another_exit_code_is_noticed() -> None:
    """The exit code is the real one's."""
    assert complaints(said(), said(), said(), code=1)


def test_a_key_is_required_only_if_both_versions_have_it() -> None:
    """What only one version sends may be left out, and may be sent."""
    newer = said()
    newer[0]["new_key"] = "x"
    assert complaints(said(), said(), newer) == []
    assert complaints(copy.deepcopy(newer), said(), newer) == []


def test_a_kind_of_the_newer_version_alone_is_required_with_all_its_keys() -> None:
    """Where only the newer version sends a kind of frame, the simulator has to, with every key of it."""
    newer = [*said(), {"type": "command_lifecycle", "state": "completed", "command_uuid": ID}]
    assert complaints(said(), said(), newer)
    assert complaints([*newer[:-1], {"type": "command_lifecycle", "state": "completed"}], said(), newer)
    assert complaints(newer, said(), newer) == []


def test_values_that_the_versions_do_not_share_are_free_unless_they_tell_an_end() -> None:
    """A value that differs between the versions is nobody's business, except one that says how something ended."""
    newer = said()
    newer[0]["permissionMode"] = "plan"
    newer[-1]["terminal_reason"] = "api_error"
    older = said()
    older[-1]["terminal_reason"] = "completed"
    ours = copy.deepcopy(newer)
    ours[0]["permissionMode"] = "acceptEdits"
    assert complaints(ours, older, newer) == []
    ours[-1]["terminal_reason"] = "completed"
    assert complaints(ours, older, newer)


@given(index=st.integers(0, 8))
def test_a_gap_in_counted_tokens_is_seen_without_an_assistant_frame(index: int) -> None:
    """In a stream that breaks off, a lost delta shows by the number that is missing."""
    frames = said(10)[:-2]
    assert list(incoherent(frames)) == []
    del frames[3 + index]
    assert list(incoherent(frames))


def test_asides_are_placed_by_turn() -> None:
    """A frame beside the main line carries the number of turns begun and ended before it."""
    shapes = [shape(frame) for frame in [*said(), {"type": "rate_limit_event"}]]
    assert asides(shapes) == ["system/status/requesting @1.0", "rate_limit_event @1.1"]
    assert main_line(shapes)[0] == "system/init"


KINDS: list[tuple[Frame, str]] = [
    ({"type": "result", "subtype": "success", "is_error": True}, "result/success/is_error"),
    ({"type": "assistant", "message": {"content": [{"type": "text"}]}, "error": "unknown"}, "assistant/text/unknown"),
    ({"type": "user", "message": {"content": "hi"}}, "user/string"),
    ({"type": "user", "message": {"content": [{"type": "tool_result"}]}}, "user/tool_result"),
    ({"type": "user"}, "user/null"),
    ({"type": "control_response", "response": {"subtype": "error", "request_id": "set_model-3"}},
     "control_response/set_model/error"),
    ({"type": "control_request", "request": {"subtype": "can_use_tool"}}, "control_request/can_use_tool"),
    ({"type": "command_lifecycle", "state": "queued"}, "command_lifecycle/queued"),
    ({"type": "stream_event", "event": {"type": "message_stop"}}, "stream_event/message_stop"),
    ({}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("frame", "name"), KINDS)
def test_kinds(frame: Frame, name: str) -> None:
    """A frame's kind is its type and what else makes it mean something of its own; a broken frame has one, too."""
    assert kind(frame) == name


def test_the_input_of_a_hook_is_read_and_that_of_a_tool_is_data() -> None:
    """The keys of what a hook is asked stand for themselves, those of a tool's arguments do not."""

    def keys(subtype: str) -> frozenset[str]:
        return shape({"type": "control_request", "request": {"subtype": subtype, "input": {"cwd": "/"}}}).keys

    assert f"{HOOK_INPUT}.cwd" in keys("hook_callback")
    assert "request.input.*" in keys("can_use_tool")


def test_keys_inside_a_list_are_those_of_all_elements() -> None:
    """A key counts as there only if every element of the list has it; an empty list promises nothing."""

    def keys(value: Any) -> frozenset[str]:
        return shape({"type": "x", "list": value}).keys

    assert keys([{"a": 1, "b": 1}, {"a": 2}]) == {"type", "list", "list[].a"}
    assert keys([]) == {"type", "list"}


def test_required_keys_of_a_kind_nobody_sends_are_none() -> None:
    """Nothing is required of a kind that the real versions do not send."""
    empty = Words(Spoken([], 0))
    assert required_keys("x", empty, empty) == frozenset()
