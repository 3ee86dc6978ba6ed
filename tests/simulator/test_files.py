"""The tools for files: what they do and what they answer."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import files
from simulator.files import Refused, problem, run

LINES = st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=12)


def test_a_file_is_written_and_read(tmp_path: Path) -> None:
    """Folders are made, lines are numbered, a part can be asked for."""
    path = str(tmp_path / "new" / "a.txt")
    made = run("Write", {"file_path": path, "content": "one\ntwo\n"})
    assert (made.shown["type"], made.shown["originalFile"]) == ("create", None)
    assert run("Read", {"file_path": path}).content == "1\tone\n2\ttwo\n3\t"
    part = run("Read", {"file_path": path, "offset": 2, "limit": 1})
    assert (part.content, part.shown["file"]["totalLines"]) == ("2\ttwo", 3)
    assert run("Write", {"file_path": path, "content": ""}).shown["originalFile"] == "one\ntwo\n"


def test_a_text_is_replaced_once_or_everywhere(tmp_path: Path) -> None:
    """The first occurrence, or with ``replace_all`` each of them."""
    path = tmp_path / "a.txt"
    path.write_text("x x x")
    edit = {"file_path": str(path), "old_string": "x", "new_string": "y"}
    run("Edit", edit)
    assert path.read_text() == "y x x"
    run("Edit", {**edit, "replace_all": True})
    assert path.read_text() == "y y y"


@pytest.mark.parametrize(
    ("tool", "given_", "told"),
    [
        ("Read", {}, "`file_path` is missing"),
        ("Write", {"file_path": "x"}, "`content` is missing"),
        ("Edit", {"file_path": "/no/such/file", "old_string": "a", "new_string": "b"}, "File does not exist"),
        ("Edit", {"file_path": "/", "old_string": "a", "new_string": "b"}, "EISDIR"),
        ("Bash", {}, None),
    ],
)
def test_calls_that_cannot_be_done_are_told(tool: str, given_: dict[str, Any], told: str | None) -> None:
    """Before anybody is asked whether they may run."""
    found = problem(tool, given_)
    assert found is None if told is None else told in str(found)


def test_what_the_disk_refuses_is_told(tmp_path: Path) -> None:
    """A missing file, a folder where a file should be."""
    for tool, path in (("Read", tmp_path / "missing"), ("Read", tmp_path), ("Write", tmp_path)):
        with pytest.raises(Refused):
            run(tool, {"file_path": str(path), "content": "x"})


@given(before=LINES, after=LINES)
def test_a_patch_tells_the_whole_difference(before: list[str], after: list[str]) -> None:
    """The lines of the hunk, put where it says, turn one text into the other."""
    old, new = "\n".join(before), "\n".join(after)
    lines = old.removesuffix("\n").split("\n")
    for hunk in files._patch(old, new):
        start = hunk["oldStart"] - 1
        assert [line[1:] for line in hunk["lines"] if line[0] in " -"] == lines[start : start + hunk["oldLines"]]
        come = [line[1:] for line in hunk["lines"] if line[0] in " +"]
        assert len(come) == hunk["newLines"]
        lines[start : start + hunk["oldLines"]] = come
    assert lines == new.removesuffix("\n").split("\n")
