"""What a launch that cannot be made leaves behind."""

from pathlib import Path

import pytest

from broker.config.launch_profile import LaunchProfile
from broker.errors import ProcessError
from broker.processes.isolation import Isolation
from broker.processes.launcher import Launcher
from broker.processes.program import Cli
from broker.processes.user_ids import UserIds


def made(state: Path) -> Launcher:
    """A launcher of nothing in particular."""
    return Launcher(Cli(("true",), "2.1.329", simulated=False), state, {})


def test_a_launch_without_an_id_leaves_no_directory(tmp_path: Path) -> None:
    """The session's directory is made first; where no user is left for it, it goes again."""
    launcher = made(tmp_path)
    launcher.isolation = Isolation("uid", tmp_path, UserIds(range(0)))
    with pytest.raises(ProcessError, match="uid_range"):
        launcher.fresh(LaunchProfile("sonnet"))
    assert list((tmp_path / "sessions").iterdir()) == []


def test_a_directory_that_cannot_be_made_leaves_no_half(tmp_path: Path) -> None:
    """A file stands where the sessions should be: an error, and nothing else."""
    (tmp_path / "sessions").write_text("")
    with pytest.raises(OSError, match="sessions"):
        made(tmp_path).fresh(LaunchProfile("sonnet"))
    assert [path.name for path in tmp_path.iterdir()] == ["sessions"]
