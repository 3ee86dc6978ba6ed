"""Where the real CLIs are found, and what happens where they are not."""

import re
from pathlib import Path

import pytest

import tests.real_cli
from tests.real_cli import VERSIONS, available, require

HERE = Path(tests.real_cli.__file__).parent


def test_what_is_available_can_be_executed() -> None:
    """Only versions that are pinned and whose binary is there and executable are listed."""
    found = available()
    assert found.keys() <= set(VERSIONS)
    assert all(path.is_file() for path in found.values())


def test_a_missing_version_skips_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outside CI a test that needs a missing version is skipped, with the command that installs it."""
    monkeypatch.setattr("tests.real_cli.FOLDER", tmp_path)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"2\.1\.329.*make real-cli"):
        require("2.1.329")


def test_a_missing_version_fails_in_ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With CI=true a missing version is a failure: a proof cannot be left out unnoticed."""
    monkeypatch.setattr("tests.real_cli.FOLDER", tmp_path)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"2\.1\.197.*2\.1\.329"):
        require()


def test_the_pins_hold_hashes_and_no_addresses() -> None:
    """Every pinned package has a hash, and no file says where it is to be downloaded from."""
    lock = (HERE / "package-lock.json").read_text()
    assert lock.count('"integrity": "sha512-') == lock.count('"node_modules/')
    requirements = (HERE / "requirements.txt").read_text()
    assert re.search(r"--hash=sha256:[0-9a-f]{64}", requirements)
    assert "://" not in lock + requirements
