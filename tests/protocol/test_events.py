"""A run of stream events: the frames that the slow way makes, up to the first line that is something else."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from protocol import cli, codec
from protocol.codes import DropReason
from protocol.events import event_frames
from protocol.lines import Line, Oversized
from protocol.wire import text_frame
from tests.soak import size

EVENT = b'{"type":"stream_event","event":{"type":"content_block_delta"}}'
OTHERS: list[Line] = [
    b'{"type":"result"}',
    b'{"type":"stream_event","seq":1}',
    b'{"type":"stream_event","type":"result"}',
    b'{"type":"stream_event"} ',
    b'{"type":"stream_event"}\r',
    b'{"type":"stream_event"',
    b'{"type":"stream_event"}{}',
    b'{"type":"stream_event","a":}',
    b'{"type":"stream_event","a":"\xff"}',
    b'{"type":"stream_event","a":"\\ud83d"}',
    b'{"type":["stream_event"]}',
    b'["stream_event"}',
    b'"stream_event"',
    b"}",
    b"{}",
    b"",
    b"[" * 5000 + b"}",
    Oversized(17),
]
"""Lines that are left to the caller; not all of them are bad."""


def slowly(lines: list[Line], seq: int) -> list[bytes]:
    """The same by the functions that every other line goes through."""
    frames = []
    for number, line in enumerate(lines, seq):
        found = DropReason.TOO_LARGE if isinstance(line, Oversized) else cli.peek(line)
        if isinstance(found, DropReason) or found.type != "stream_event" or found.seq is not UNSET:
            break
        assert isinstance(line, bytes)
        frames.append(text_frame(codec.splice_seq(line, number)))
    return frames


def event(text: str, *, is_ascii: bool) -> bytes:
    """A stream event with ``text`` in it."""
    return json.dumps({"type": "stream_event", "event": {"text": text}}, ensure_ascii=is_ascii).encode()


class Looked(list[Line]):
    """Lines that count how many of them are looked at, or copied."""

    looks = 0

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        self.looks += len(found) if isinstance(at, slice) else 1
        return found


events = st.builds(event, st.text(st.characters(exclude_categories=["Cs"]), max_size=200), is_ascii=st.booleans())


@given(st.lists(events | st.sampled_from(OTHERS), max_size=8), st.integers(0, 8), st.integers(1, 10**6))
@settings(max_examples=size(50, 1000), deadline=None)
def test_what_it_makes_is_what_the_slow_way_makes(lines: list[Line], start: int, seq: int) -> None:
    """Never more than that; less only where the caller can go on."""
    if start < len(lines):
        made = event_frames(lines, start, seq)
        assert made == slowly(lines[start:], seq)[: len(made)]


@given(st.lists(events, min_size=1, max_size=30), st.integers(1, 2000))
@settings(max_examples=size(20, 200), deadline=None)
def test_a_run_of_events_is_taken_whole(lines: list[Line], seq: int) -> None:
    """In two calls at most: the second where a number has one digit more."""
    made = event_frames(lines, 0, seq)
    if len(made) < len(lines):
        made += event_frames(lines, len(made), seq + len(made))
    assert made == slowly(lines, seq)


@pytest.mark.parametrize("other", OTHERS, ids=range(len(OTHERS)))
def test_every_other_line_ends_the_run(other: Line) -> None:
    """Where it stands, and nothing behind it is taken."""
    assert event_frames([other, EVENT], 0, 7) == []
    assert len(event_frames([EVENT, EVENT, other, EVENT], 0, 7)) == 2
    assert len(event_frames([EVENT, other, EVENT], 2, 7)) == 1


@pytest.mark.parametrize("seq", [1, 10_000])
def test_a_line_that_is_no_event_costs_no_look_at_the_others(seq: int) -> None:
    """A dead child may leave 65,536 blank ones behind, and the caller asks for each of them."""
    lines = Looked([b""] * 1000)
    for at in range(len(lines)):
        assert event_frames(lines, at, seq) == []
    assert lines.looks == len(lines)


@pytest.mark.parametrize("length", [60, 125, 126, 4000, 4095, 4096, 4097, 65535, 65536, 70_000])
def test_any_length(length: int) -> None:
    """A head that is made in advance, or for this frame."""
    for near in range(length - 30, length + 2):
        line = b'{"type":"stream_event","a":"%b"}' % (b"x" * (near - 30))
        assert event_frames([line], 0, 9) == slowly([line], 9)
