"""What a directory takes on disk, in the hands of an agent that may put anything there."""

import os
import time
from pathlib import Path

from broker.processes.folder_size import ASK_EVERY, UNCOUNTABLE, measure
from tests.kit.deep import dig

MIB = 2**20


def size(root: Path, *, deadline: float | None = None) -> int:
    count = measure(root, time.monotonic() + 60 if deadline is None else deadline, lambda: False)
    assert count.is_whole is (deadline is None)
    return count.bytes


def test_every_file_counts_with_its_blocks(tmp_path: Path) -> None:
    """In every folder; a hole takes nothing, what is not there any more neither."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("one", "a/two", "a/b/three"):
        (tmp_path / name).write_bytes(os.urandom(MIB))
    with (tmp_path / "hole").open("wb") as hole:
        hole.truncate(2**40)
    assert 3 * MIB <= size(tmp_path) < 3 * MIB + 100_000
    assert size(tmp_path / "nowhere") == 0


def test_no_link_is_followed(tmp_path: Path) -> None:
    """Neither out of the directory nor round and round; a pipe holds nobody up."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "big").write_bytes(os.urandom(MIB))
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "file").symlink_to(outside / "big")
    (inside / "folder").symlink_to(outside)
    (inside / "self").symlink_to(inside)
    os.mkfifo(inside / "pipe")
    assert size(inside) < 100_000


def test_what_is_too_deep_to_be_looked_at_is_above_every_limit(tmp_path: Path) -> None:
    """Else it would be the place to hide things in."""
    with dig(tmp_path, depth=40):
        assert size(tmp_path) == UNCOUNTABLE


def test_a_look_ends_at_its_deadline_or_when_it_is_stopped(tmp_path: Path) -> None:
    """With what was counted until then, and it says so."""
    for number in range(3 * ASK_EVERY):
        (tmp_path / f"{number}").write_bytes(b"x" * 4096)
    whole = size(tmp_path)
    assert 0 < size(tmp_path, deadline=0) < whole / 2
    stopped = measure(tmp_path, time.monotonic() + 60, lambda: True)
    assert 0 < stopped.bytes < whole / 2
    assert not stopped.is_whole
