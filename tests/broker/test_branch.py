"""What a fork copies, where it puts it, and where it stops."""

import os
from pathlib import Path

import pytest

from broker.branch import MAX_DEPTH, Budget, copy_conversation
from broker.errors import BrokerError
from broker.session_directory import SessionDirectory

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
    copy_conversation(parent, transcript, child, budget())
    assert copied(child).read_bytes() == before[0]
    assert (transcript.read_bytes(), transcript.stat().st_mtime_ns) == before
    assert child.transcript(NAME.removesuffix(".jsonl")) == copied(child)


@pytest.mark.parametrize("torn", [b'{"c":', b'{"c":3}', b"\xff"])
def test_a_line_that_is_being_written_is_cut(tmp_path: Path, torn: bytes) -> None:
    """The copy ends at the last whole line."""
    parent, transcript, child = made(tmp_path, b'{"a":1}\n' + torn)
    copy_conversation(parent, transcript, child, budget())
    assert copied(child).read_bytes() == b'{"a":1}\n'


def test_the_parents_costs_stay_with_the_parent(tmp_path: Path) -> None:
    """The line from which a resumed CLI counts on is left out."""
    parent, transcript, child = made(tmp_path, b'{"a":1}\n{"type":"cost-state","totalCostUSD":1}\n{"b":"cost-state"}\n')
    copy_conversation(parent, transcript, child, budget())
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
    copy_conversation(parent, transcript, child, budget())
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
    parent, transcript, child = made(tmp_path)
    for number in range(5):
        (parent.work / f"f{number}").write_bytes(bytes(300_000))
    with pytest.raises(BrokerError, match=setting):
        copy_conversation(parent, transcript, child, budget(*limits))


def test_folders_are_followed_only_so_deep(tmp_path: Path) -> None:
    """A tree without end ends the copy, not the broker."""
    parent, transcript, child = made(tmp_path)
    (parent.work / "/".join("d" * (MAX_DEPTH + 1))).mkdir(parents=True)
    with pytest.raises(BrokerError, match="folders in each other"):
        copy_conversation(parent, transcript, child, budget())


def test_a_link_in_the_place_of_a_folder_is_not_entered(tmp_path: Path) -> None:
    """An agent that turns its working directory into a link shows its fork nothing from elsewhere."""
    parent, transcript, child = made(tmp_path)
    parent.work.rmdir()
    parent.work.symlink_to(tmp_path)
    with pytest.raises(OSError, match="work"):
        copy_conversation(parent, transcript, child, budget())
