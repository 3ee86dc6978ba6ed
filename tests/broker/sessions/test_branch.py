"""What a fork copies, where it puts it, and where it stops."""

import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from broker.errors import BrokerError
from broker.processes.session_directory import SessionDirectory, Transcript
from broker.sessions import branch
from broker.sessions.branch import MAX_DEPTH, PIECE_BYTES, Budget, copy_conversation

PARENT, CHILD = "8b589134-346d", "3b103e19-aaf7"
NAME = "8b589134-346d-47b2-8261-cf8c183e682c.jsonl"


def made(tmp_path: Path, lines: bytes = b'{"a":1}\n{"b":2}\n') -> tuple[SessionDirectory, Path, SessionDirectory]:
    """A parent with a transcript, that transcript, and an empty child."""
    parent, child = SessionDirectory(tmp_path / PARENT), SessionDirectory(tmp_path / CHILD)
    parent.create()
    child.create()
    folder = parent.config / "projects" / f"-var-sessions-{PARENT}-work"
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(lines)
    return parent, folder / NAME, child


def found(parent: SessionDirectory) -> Transcript:
    """The parent's transcript, as the broker finds it."""
    there = parent.transcript(NAME.removesuffix(".jsonl"))
    assert there is not None
    return there


def budget(limit_mb: int = 1, max_files: int = 100) -> Budget:
    """Enough, unless the test says otherwise."""
    return Budget(limit_mb, max_files)


def copied(child: SessionDirectory) -> Path:
    """The child's copy of the transcript."""
    return child.config / "projects" / f"-var-sessions-{CHILD}-work" / NAME


def test_the_transcript_lies_where_the_cli_of_the_child_looks(tmp_path: Path) -> None:
    """In the folder that is named after the child's working directory; the parent's file is not touched."""
    parent, transcript, child = made(tmp_path)
    before = transcript.read_bytes(), transcript.stat().st_mtime_ns
    copy_conversation(found(parent), child, budget())
    assert copied(child).read_bytes() == before[0]
    assert (transcript.read_bytes(), transcript.stat().st_mtime_ns) == before
    assert found(child).folder == copied(child).parent.name


@pytest.mark.parametrize("torn", [b'{"c":', b'{"c":3}', b"\xff"])
def test_a_line_that_is_being_written_is_cut(tmp_path: Path, torn: bytes) -> None:
    """The copy ends at the last whole line."""
    parent, _, child = made(tmp_path, b'{"a":1}\n' + torn)
    copy_conversation(found(parent), child, budget())
    assert copied(child).read_bytes() == b'{"a":1}\n'


def test_the_parents_costs_stay_with_the_parent(tmp_path: Path) -> None:
    """The line from which a resumed CLI counts on is left out."""
    parent, _, child = made(tmp_path, b'{"a":1}\n{"type":"cost-state","totalCostUSD":1}\n{"b":"cost-state"}\n')
    copy_conversation(found(parent), child, budget())
    assert b"totalCostUSD" not in copied(child).read_bytes()


def test_files_come_along_with_their_modes_and_links_as_links(tmp_path: Path) -> None:
    """work/ and what lies beside the transcript; other conversations, pipes and what links point to do not."""
    parent, transcript, child = made(tmp_path)
    (tmp_path / "secret").write_text("secret")
    (parent.work / "src").mkdir()
    (parent.work / "src" / "run.sh").write_text("echo")
    (parent.work / "src" / "run.sh").chmod(0o755)
    (parent.work / "link").symlink_to(tmp_path / "secret")
    (parent.work / "folder-link").symlink_to(tmp_path)
    os.mkfifo(parent.work / "pipe")
    (transcript.parent / "memory").mkdir()
    (transcript.parent / "memory" / "m.md").write_text("remember")
    (transcript.parent / "other.jsonl").write_text("another conversation\n")
    copy_conversation(found(parent), child, budget())
    assert (child.work / "src" / "run.sh").read_text() == "echo"
    assert (child.work / "src" / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (child.work / "link").readlink() == tmp_path / "secret"
    assert (child.work / "folder-link").is_symlink()
    assert not os.path.lexists(child.work / "pipe")
    assert (copied(child).parent / "memory" / "m.md").read_text() == "remember"
    assert not (copied(child).parent / "other.jsonl").exists()


@pytest.mark.parametrize(
    ("limits", "setting"), [((1, 100), "session.fork_max_mb = 1"), ((8, 3), "session.fork_max_files = 3")]
)
def test_what_is_too_much_is_refused_by_name(tmp_path: Path, limits: tuple[int, int], setting: str) -> None:
    """Above a bound nothing is forked, and the refusal names the setting."""
    parent, _, child = made(tmp_path)
    for number in range(5):
        (parent.work / f"f{number}").write_bytes(bytes(300_000))
    with pytest.raises(BrokerError, match=setting):
        copy_conversation(found(parent), child, budget(*limits))


def test_folders_are_followed_only_so_deep(tmp_path: Path) -> None:
    """A tree without end ends the copy, not the broker."""
    parent, _, child = made(tmp_path)
    (parent.work / "/".join("d" * (MAX_DEPTH + 1))).mkdir(parents=True)
    with pytest.raises(BrokerError, match="folders in each other"):
        copy_conversation(found(parent), child, budget())


def test_a_link_in_the_place_of_a_folder_is_not_entered(tmp_path: Path) -> None:
    """An agent that turns its working directory into a link shows its fork nothing from elsewhere."""
    parent, _, child = made(tmp_path)
    parent.work.rmdir()
    parent.work.symlink_to(tmp_path)
    with pytest.raises(OSError, match="work"):
        copy_conversation(found(parent), child, budget())


@pytest.mark.parametrize("swapped", ["home", "home/.claude", "home/.claude/projects", "folder"])
def test_a_link_that_comes_after_the_look_is_not_followed(tmp_path: Path, swapped: str) -> None:
    """Found, then exchanged for a link to a folder with everything that was there: nothing is copied."""
    parent, transcript, child = made(tmp_path)
    there = found(parent)
    place = transcript.parent if swapped == "folder" else parent.root / swapped
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=place.name):
        copy_conversation(there, child, budget())
    assert not copied(child).exists()


def test_what_is_held_open_is_copied_whatever_becomes_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that swaps ``projects`` for a link while its transcript is copied shows its fork nothing more."""
    parent, transcript, child = made(tmp_path)
    (transcript.parent / "own.md").write_text("own")
    outside = tmp_path / "outside" / transcript.parent.name
    outside.mkdir(parents=True)
    (outside / "secret").write_text("secret")
    copy_lines = branch._copy_lines

    def swap(*given: Any) -> None:
        copy_lines(*given)
        projects = parent.config / "projects"
        projects.rename(parent.config / "moved")
        projects.symlink_to(outside.parent)

    monkeypatch.setattr(branch, "_copy_lines", swap)
    copy_conversation(found(parent), child, budget())
    assert {path.name for path in copied(child).parent.iterdir()} == {NAME, "own.md"}


def test_a_transcript_above_the_budget_is_not_read(tmp_path: Path) -> None:
    """Its size alone is judged: one line of 8 GiB, that lies nowhere, costs neither memory nor time."""
    parent, transcript, child = made(tmp_path)
    os.truncate(transcript, 8 * 2**30)
    tracemalloc.start()
    try:
        with pytest.raises(BrokerError, match=r"session\.fork_max_mb = 1"):
            copy_conversation(found(parent), child, budget())
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_long_line_is_copied_in_pieces(tmp_path: Path) -> None:
    """Lines longer than a piece come whole, or not at all; in memory there is never more than a few pieces."""
    long = b"x" * (8 * PIECE_BYTES) + b"\n"
    cost = b'{"type":"cost-state"' + b"y" * PIECE_BYTES + b"}\n"
    parent, _, child = made(tmp_path, b"first\n" + long + cost + b"last\n" + long[:-1])
    tracemalloc.start()
    try:
        copy_conversation(found(parent), child, budget(64))
        assert tracemalloc.get_traced_memory()[1] < 4 * PIECE_BYTES
    finally:
        tracemalloc.stop()
    assert copied(child).read_bytes() == b"first\n" + long + b"last\n"
