"""``pour``: a source of lines for measurements, with sizes, a pace and the moment of each."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from simulator.directives import DirectiveError, parse
from simulator.pour import MARK, PREPARED, Pour, prepared
from tests.simulator.cli_child import Child, control


def poured(child: Child) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines that were poured, as they came and decoded."""
    return [(line, json.loads(line)) for line in child.raw if f'"text":"{MARK}'.encode() in line]


def test_lines_come_from_buffers_in_their_number_and_sizes(tmp_path: Path) -> None:
    """As many text deltas as asked for, of the sizes asked for, before the reply's own text and no part of it."""
    with Child(tmp_path) as child:
        result = child.result("hello [[sim pour=1000:270-350 tokens=2]]")
        lines = poured(child)
    assert result["result"] == "hello0 hello1 "
    assert len(lines) == 1000
    sizes = {len(line) + 1 for line, _ in lines}
    assert min(sizes) == 270
    assert max(sizes) == 350
    assert all(frame["event"]["delta"]["type"] == "text_delta" for _, frame in lines)
    assert len({frame["uuid"] for _, frame in lines}) == PREPARED


def test_a_pace_is_kept_and_each_line_tells_its_moment(tmp_path: Path) -> None:
    """100 lines at 500 a second take no less than their time, and say in order when they were written."""
    with Child(tmp_path) as child:
        began = time.monotonic_ns()
        child.result("hello [[sim pour=100:250-350:500 tokens=0]]")
        ended = time.monotonic_ns()
        texts = [frame["event"]["delta"]["text"] for _, frame in poured(child)]
    moments = [int(text[1:20]) for text in texts]
    assert len(moments) == 100
    assert began < moments[0]
    assert moments[-1] < ended
    assert moments == sorted(moments)
    assert moments[-1] - moments[0] >= 99 / 500 * 1e9 - 5e6


@pytest.mark.parametrize("pace", ["", ":250-350:50"])
def test_an_interrupt_ends_them(tmp_path: Path, pace: str) -> None:
    """Paced or not, stdin is looked at while they run."""
    with Child(tmp_path) as child:
        child.say(f"hello [[sim pour=1000000000{pace}]]")
        child.until(lambda frame: frame["type"] == "stream_event")
        child.send(control("interrupt"))
        child.until(lambda frame: frame["type"] == "result")


def test_the_end_of_stdin_ends_them(tmp_path: Path) -> None:
    """A process whose reader has gone does not write on by itself for hours."""
    with Child(tmp_path) as child:
        child.say("hello [[sim pour=1000000:250-350:50 tokens=0]]")
        child.until(lambda frame: frame["type"] == "stream_event")
        child.close_stdin()
        child.until(lambda frame: frame["type"] == "result")
        assert child.wait() == 0


def test_a_size_below_the_envelope_is_the_envelopes() -> None:
    """The line stays whole JSON."""
    (before, after), *_ = prepared(Pour(1, 1, 2, 0.0), ('{"text":"', '","uuid":"'))
    assert json.loads(before + b"0" * 19 + after)["text"] == MARK + "0" * 19 + " "


@pytest.mark.parametrize("wrong", ["pour", "pour=0", "pour=1:350-250", "pour=1:0", "pour=1:2-3:x", "pour=x"])
def test_what_cannot_be_poured_is_refused(wrong: str) -> None:
    """Each part has its bounds."""
    assert parse("[[sim pour=5]]").pour == (5, 250, 350, 0.0)
    assert parse("[[sim pour=5:300:0.5]]").pour == (5, 300, 300, 0.5)
    with pytest.raises(DirectiveError, match="pour"):
        parse(f"[[sim {wrong}]]")
