"""Which mode is chosen, what it is tried with, and the command line that it makes; the effect is shown end to end."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from broker.config.tree import Pool
from broker.errors import ConfigError, ProcessError
from broker.processes.isolation import GO_ON, Isolation, choose
from broker.processes.user_ids import UserIds

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def never(isolation: Isolation) -> str:
    """Nothing works."""
    return f"{isolation.mode} is forbidden"


def always(isolation: Isolation) -> str:
    """Everything works."""
    return ""


def state(tmp_path: Path) -> Path:
    """A state directory with its ``sessions``."""
    (tmp_path / "sessions").mkdir(mode=0o700)
    return tmp_path


def test_none_is_not_tried(tmp_path: Path) -> None:
    """Nothing is needed for it, and PDEATHSIG is all that it sets."""
    chosen = choose(Pool(), tmp_path, (), never)
    assert chosen.prefix(tmp_path / "s", chosen.settle(tmp_path)) == ("setpriv", "--pdeathsig", "KILL", "--")
    assert (chosen.wrappers, chosen.hides) == (0, False)


@ROOT_ONLY
def test_uid_hides_what_it_can(tmp_path: Path) -> None:
    """In a mount namespace where that works, else without one and with folders that can be passed through."""
    folder = state(tmp_path)
    pool = Pool(isolation="uid")
    assert choose(pool, folder, (), always).hides
    assert folder.joinpath("sessions").stat().st_mode & 0o777 == 0o700
    plain = choose(pool, folder, (), lambda isolation: "no mounts" if isolation.hides else "")
    assert not plain.hides
    assert folder.joinpath("sessions").stat().st_mode & 0o777 == 0o711
    with pytest.raises(ConfigError, match="uid does not work here: uid is forbidden"):
        choose(pool, folder, (), never)


@ROOT_ONLY
@pytest.mark.parametrize(("needed", "own_tmp"), [("/opt/claude", True), ("/tmp/claude", False), ("/var/tmp/x", False)])
def test_tmp_is_covered_only_where_nothing_needed_lies_in_it(needed: str, own_tmp: bool) -> None:
    """A CLI or a state directory in /tmp must stay visible."""
    tried: list[Isolation] = []
    folder = state(Path(tempfile.mkdtemp(dir="/run")))

    def attempt(isolation: Isolation) -> str:
        tried.append(isolation)
        return "stop"

    with pytest.raises(ConfigError, match="stop"):
        choose(Pool(isolation="uid"), folder, (Path(needed),), attempt)
    assert tried[0].own_tmp is own_tmp
    shutil.rmtree(folder)


@ROOT_ONLY
def test_the_change_of_user_comes_last_and_sets_pdeathsig_again(tmp_path: Path) -> None:
    """A change of user clears PDEATHSIG, so the words that change it must set it too."""
    isolation = Isolation("uid", tmp_path, UserIds(range(700, 701)), hides=True, own_tmp=True)
    words = isolation.prefix(tmp_path / "s", 700)
    assert words[:4] == ("setpriv", "--pdeathsig", "KILL", "--")
    assert words[-8:] == (
        "setpriv", "--pdeathsig", "KILL", "--reuid=700", "--regid=700", "--clear-groups", "--no-new-privs", "--"
    )  # fmt: skip


@pytest.mark.parametrize("name", ["tmp", "work"])
def test_a_link_in_the_place_of_a_folder_is_not_mounted(tmp_path: Path, name: str) -> None:
    """What a link leads to would be mounted, or entered, with the rights of the wrapper: it gives up before."""
    root = tmp_path / "s"
    root.mkdir()
    for folder in ("tmp", "work"):
        (root / folder).mkdir()
    (root / name).rmdir()
    (root / name).symlink_to(tmp_path)
    mount = tmp_path / "mount"
    mount.write_text("#!/bin/sh\nexit 3\n")  # were the check lost, this test must not mount over the machine's /tmp
    mount.chmod(0o755)
    words = ("/bin/sh", "-c", GO_ON, "sh", str(tmp_path), str(root), "own", "", "true")
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(words, env=path, capture_output=True, text=True, check=False, timeout=10)
    assert (done.returncode, done.stderr) == (1, f"{name} is a link\n")


@ROOT_ONLY
def test_a_directory_is_given_to_its_user_once(tmp_path: Path) -> None:
    """With all that is in it, links themselves and not what they lead to; later launches find the owner there."""
    isolation = Isolation("uid", tmp_path, UserIds(range(700, 702)))
    one, other = tmp_path / "one", tmp_path / "other"
    (one / "home").mkdir(parents=True)
    other.mkdir()
    outside = tmp_path / "outside"
    outside.touch()
    (one / "home" / "link").symlink_to(outside)
    assert isolation.settle(one) == isolation.settle(one) == 700
    assert isolation.settle(other) == 701
    assert (one / "home" / "link").lstat().st_uid == 700
    assert outside.stat().st_uid == 0
    third = tmp_path / "third"
    third.mkdir()
    with pytest.raises(ProcessError, match=r"pool\.uid_range"):
        isolation.settle(third)
    other.rmdir()
    assert isolation.settle(third) == 701


@ROOT_ONLY
def test_directories_that_a_user_cannot_enter_leave_its_path(tmp_path: Path) -> None:
    """The broker's own PATH may name folders of root's home."""
    closed, absent = tmp_path / "bin", tmp_path / "absent"
    closed.mkdir()
    tmp_path.chmod(0o700)
    path = f"/usr/bin:{closed}:{absent}:/bin"
    assert Isolation("uid", tmp_path, UserIds(range(700, 702))).search_path(path) == "/usr/bin:/bin"
    assert Isolation("none", tmp_path).search_path(path) == f"/usr/bin:{closed}:/bin"


LOOKS = """import os, sys
from pathlib import Path
from broker.processes.isolation import Isolation
if os.geteuid() == 0:
    os.setgid(700)
    os.setuid(700)
print(Isolation("none", Path("/")).search_path(sys.argv[1]))"""


def test_a_folder_that_the_broker_may_not_look_into_leaves_its_path() -> None:
    """A broker that is not root, and a PATH with folders below another user's home."""
    folder = Path(tempfile.mkdtemp(dir="/run" if os.geteuid() == 0 else None))
    (folder / "bin").mkdir()
    folder.chmod(0)
    try:
        words = (sys.executable, "-c", LOOKS, f"/usr/bin:{folder}/bin:{folder}:/bin")
        assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "/usr/bin:/bin\n"
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)
