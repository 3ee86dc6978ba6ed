"""Where the pinned real Claude Code CLIs are, and how they are launched: ``available()``, ``require()``, ``launch``.

``make real-cli`` (the script ``install`` beside this file) puts them into the git-ignored ``.real-cli/`` at the project
root.  Callers: the conformance test and every test that needs the real thing.
"""

import os
from pathlib import Path
from typing import Final

import pytest

VERSIONS: Final = ("2.1.197", "2.1.329")
ROOT: Final = Path(__file__).resolve().parent.parent.parent
FOLDER: Final = ROOT / ".real-cli"


def available() -> dict[str, Path]:
    """Version -> binary, of the pinned versions that are installed; oldest first."""
    places = {version: FOLDER / version / "claude" for version in VERSIONS}
    return {version: path for version, path in places.items() if os.access(path, os.X_OK)}


def require(*versions: str) -> dict[str, Path]:
    """Version -> binary for ``versions`` (all pinned ones by default), or end the test that asks.

    A missing version skips the test and says why; with ``CI=true`` in the environment it fails it, so that a run
    which is meant to prove something cannot pass by leaving the proof out.
    """
    present = available()
    missing = [version for version in versions or VERSIONS if version not in present]
    if missing:
        reason = f"real CLI {', '.join(missing)} is not installed in .real-cli/ (make real-cli)"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}; with CI=true that is a failure", pytrace=False)
        pytest.skip(reason)
    return {version: present[version] for version in versions or VERSIONS}
