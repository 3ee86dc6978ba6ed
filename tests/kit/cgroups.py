"""The cgroups that a broker has made for its processes.

Callers: ``tests.kit.broker`` when a broker has ended; the tests of trees and their ends.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

from broker.processes.cgroup import Cgroups
from tests.waiting import POLL_S

DYING_S = 1.0
"""For the processes of a broker that was killed: they die right after it."""


def folder_of(state: Path) -> Path | None:
    """Where the broker of the state directory ``state`` makes them; None where nobody can."""
    return Cgroups.of(state).folder if state.is_dir() else None


def cgroups_of(state: Path) -> list[Path]:
    """Those that are there."""
    folder = folder_of(state)
    return [Path(path) for path, _, _ in os.walk(folder)][1:] if folder is not None else []


def can_have_cgroups(state: Path) -> str:
    """Why a broker with that state directory makes none here; empty when it does."""
    found = Cgroups.of(state)
    found.open()
    return found.obstacle


def check_cgroups(state: Path, *, is_clean: bool) -> None:
    """After a broker's end: none is left.  One that was killed leaves some to the next, or to nobody: empty ones go."""
    folder = folder_of(state)
    if folder is None:
        return
    assert not (is_clean and folder.exists()), f"cgroups are left: {sorted(folder.rglob('cgroup.procs'))}"
    deadline = time.monotonic() + DYING_S
    while folder.exists() and time.monotonic() < deadline:
        for path, _, _ in os.walk(folder, topdown=False):
            with suppress(OSError):  # somebody is in it: the house oracle tells, unless it is meant to be
                os.rmdir(path)
        time.sleep(POLL_S)
