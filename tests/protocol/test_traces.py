"""Which frames only ``verbose`` shows."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from protocol.cli import Peek, peek
from protocol.cli_frames import FRAME_TYPES, SYSTEM_SUBTYPES
from protocol.traces import LIFECYCLE, REPLAY, STATUS, TRACE_TYPES, TRACES, Lifecycle, lifecycle, replayed, trace_name
from tests.protocol.strategies import OBJECTS
from tests.soak import size


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def name(**fields: Any) -> str | None:
    found = peek(line(**fields))
    assert isinstance(found, Peek)
    return trace_name(found, line(**fields))


def test_the_table_names_frames_of_the_cli() -> None:
    """Each entry is a type or a subtype that the CLI is known to send, and says why it is left out."""
    for entry, reason in TRACES.items():
        kind, _, subtype = entry.partition("/")
        assert kind in FRAME_TYPES
        assert kind != "system" or subtype in SYSTEM_SUBTYPES
        assert len(reason) > 10
    assert {LIFECYCLE, "autocompact_state"} == TRACE_TYPES


@pytest.mark.parametrize("entry", [entry for entry in sorted(TRACES) if entry not in (REPLAY, STATUS)])
def test_a_trace_is_known_by_its_name(entry: str) -> None:
    """Type and subtype decide, whatever else the frame holds."""
    kind, _, subtype = entry.partition("/")
    assert name(type=kind, subtype=subtype, uuid="u", more={"state": 1}) == entry


KEPT = [
    *({"type": "system", "subtype": each} for each in sorted(SYSTEM_SUBTYPES) if f"system/{each}" not in TRACES),
    {"type": "system", "subtype": "something_new"},
    {"type": "something_new"},
    {"type": "assistant"},
    {"type": "result"},
    {"type": "tool_progress"},
    {"type": "rate_limit_event"},
    {"type": "user", "message": {"role": "user", "content": []}, "uuid": "u"},
    {"type": "user", "tool_use_result": {"isReplay": True}, "uuid": "u"},
    {"type": "user", "isReplay": False},
    {"type": "user", "isReplay": "yes"},
    *({"type": "system", "subtype": "status", "status": state} for state in ("compacting", None, 7)),
    {"type": "system", "subtype": "status", "status": "requesting", "permissionMode": "plan"},
    {"type": "system", "subtype": "status", "status": None, "compact_result": "success"},
]


@pytest.mark.parametrize("frame", KEPT, ids=str)
def test_what_a_person_may_need_is_kept(frame: dict[str, Any]) -> None:
    """Progress of tools and tasks, retries, denials, compaction, limits, states, and everything that nobody knows."""
    assert name(**frame) is None


def test_a_request_on_its_way_is_a_trace() -> None:
    """A status that says nothing else."""
    assert name(type="system", subtype="status", status="requesting", uuid="u") == STATUS


def test_a_message_that_comes_back_names_itself() -> None:
    """By its own id, wherever the keys stand; not a line that only speaks of it."""
    assert replayed(line(type="user", message={"content": "x"}, uuid="m-1", isReplay=True)) == "m-1"
    assert replayed(line(isReplay=True, type="user", uuid="m-1")) == "m-1"
    assert replayed(line(type="user", isReplay=True)) == ""
    assert replayed(line(type="user", message={"content": '"isReplay":true'}, uuid="m-1")) is None
    assert replayed(line(type="user", isReplay=True, uuid=7)) is None


def test_a_lifecycle_says_what_became_of_a_message() -> None:
    """Queued is nothing, started is taken, the others are the end; of an odd line nothing is believed."""
    states = ["queued", "started", "completed", "cancelled", "discarded", "refused", "new"]
    found = [lifecycle(line(type="command_lifecycle", command_uuid="m-1", state=state)) for state in states]
    assert {each.command_uuid for each in found} == {"m-1"}
    assert [state for state, each in zip(states, found, strict=True) if each.is_taken] == ["started"]
    assert [state for state, each in zip(states, found, strict=True) if each.is_unread] == states[3:6]
    assert [state for state, each in zip(states, found, strict=True) if each.is_over] == states[2:6]
    assert lifecycle(line(type="command_lifecycle", command_uuid=7, state=[])) == Lifecycle()


@given(OBJECTS)
@settings(max_examples=size(50, 200), deadline=None)
def test_nothing_is_raised(fields: dict[str, Any]) -> None:
    """Whatever a line holds, it has a name of the table or none."""
    for kind in ("user", "system", "command_lifecycle"):
        text = line(**{"isReplay": True, **fields, "type": kind, "subtype": "status"})
        found = peek(text)
        assert isinstance(found, Peek)
        assert trace_name(found, text) in {None, *TRACES}
        assert isinstance(lifecycle(text), Lifecycle)
