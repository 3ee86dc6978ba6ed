"""A conversation's directory: found transcripts are its own plain files, and wiping leaves nothing."""

import os
import shutil
from pathlib import Path

import pytest

from broker.processes.session_directory import SessionDirectory, Transcript

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
    assert directory.transcript(ID) == Transcript(directory, "-work", ID)


def test_a_planted_link_is_no_transcript(directory: SessionDirectory, tmp_path: Path) -> None:
    """Neither a file that links elsewhere nor a folder that does."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / f"{ID}.jsonl").write_text("{}\n")
    (project(directory) / f"{ID}.jsonl").symlink_to(outside / f"{ID}.jsonl")
    (directory.config / "projects" / "planted").symlink_to(outside)
    assert directory.transcript(ID) is None


@pytest.mark.parametrize("name", ["home", "home/.claude", "home/.claude/projects"])
def test_no_transcript_is_found_through_a_link(directory: SessionDirectory, tmp_path: Path, name: str) -> None:
    """Not even where the same folder stands elsewhere."""
    (project(directory) / f"{ID}.jsonl").write_text("{}\n")
    (directory.root / name).rename(tmp_path / "elsewhere")
    (directory.root / name).symlink_to(tmp_path / "elsewhere")
    assert directory.transcript(ID) is None


@pytest.mark.parametrize("name", ["home", "work", "tmp", "home/.claude"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_what_stands_in_the_place_of_a_folder_is_replaced(
    directory: SessionDirectory, tmp_path: Path, name: str, kind: str
) -> None:
    """Made again, the folders are folders, and nothing appears where a link led to."""
    outside = tmp_path / "outside"
    outside.mkdir()
    place = directory.root / name
    shutil.rmtree(place)
    if kind == "file":
        place.touch()
    else:
        place.symlink_to(outside if kind == "link" else tmp_path / "absent")
    directory.create()
    assert not place.is_symlink()
    assert place.is_dir()
    assert place.stat().st_mode & 0o777 == 0o700
    assert not list(outside.iterdir())
    assert not (tmp_path / "absent").exists()


def test_a_link_in_the_place_of_the_whole_is_refused(directory: SessionDirectory, tmp_path: Path) -> None:
    """Nothing is made where it leads to."""
    (tmp_path / "outside").mkdir()
    directory.wipe()
    directory.root.symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="session"):
        directory.create()
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_is_made_again_belongs_to_the_sessions_user(directory: SessionDirectory) -> None:
    """Whoever owns the directory can go on in it."""
    for folder in (directory.root, directory.home):
        os.chown(folder, 700, 700)
    directory.tmp.rmdir()
    directory.config.rmdir()
    directory.create()
    assert (directory.tmp.stat().st_uid, directory.config.stat().st_gid) == (700, 700)


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
