"""A conversation's directory: found transcripts are its own plain files, and wiping leaves nothing."""

import os
from pathlib import Path

import pytest

from broker.session_directory import SessionDirectory

ID = "8b589134-346d-47b2-8261-cf8c183e682c"


@pytest.fixture
def directory(tmp_path: Path) -> SessionDirectory:
    """An empty one."""
    made = SessionDirectory(tmp_path / "session")
    made.create()
    return made


def project(directory: SessionDirectory) -> Path:
    """A folder for transcripts."""
    folder = directory.config / "projects" / "-work"
    folder.mkdir(parents=True)
    return folder


def test_a_transcript_is_found_once_something_is_in_it(directory: SessionDirectory) -> None:
    """No file and an empty file are none."""
    assert directory.transcript(ID) is None
    file = project(directory) / f"{ID}.jsonl"
    file.touch()
    assert not directory.has_transcript(ID)
    file.write_text("{}\n")
    assert directory.transcript(ID) == file


def test_a_planted_link_is_no_transcript(directory: SessionDirectory, tmp_path: Path) -> None:
    """Neither a file that links elsewhere nor a folder that does."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / f"{ID}.jsonl").write_text("{}\n")
    (project(directory) / f"{ID}.jsonl").symlink_to(outside / f"{ID}.jsonl")
    (directory.config / "projects" / "planted").symlink_to(outside)
    assert directory.transcript(ID) is None


def test_wiping_leaves_nothing_and_follows_nothing(directory: SessionDirectory, tmp_path: Path) -> None:
    """Closed folders, links and pipes go; what a link points to stays as it was."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "kept").touch()
    closed = directory.work / "closed" / "inner"
    closed.mkdir(parents=True)
    (closed / "file").touch()
    (directory.work / "link").symlink_to(outside)
    os.mkfifo(directory.work / "pipe")
    closed.chmod(0)
    closed.parent.chmod(0)
    assert directory.wipe()
    assert not directory.root.exists()
    assert (outside / "kept").exists()
    assert outside.stat().st_mode & 0o777 == 0o755
    assert directory.wipe()
