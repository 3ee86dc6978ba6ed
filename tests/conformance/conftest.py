"""One recording of everything, made once by whoever asks first, whichever of pytest's workers that is."""

import fcntl
import os
from pathlib import Path

import msgspec
import pytest

from tests.conformance.recording import Recordings, Run, record
from tests.conftest import interfaces_up
from tests.real_cli import require


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    """Every situation with the simulator and with both real versions; skips (CI: fails) where those are missing."""
    require()
    assert interfaces_up() == ["lo"], "the real CLI is started only where nothing but loopback is up: use tests/run"
    own = tmp_path_factory.getbasetemp()
    # A worker's folder stands beside those of the others, in one that this session has to itself.
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    return _recorded_once(shared / "conformance.json")


def _recorded_once(kept: Path) -> Recordings:
    """The recordings in ``kept``; made there by the first caller, while the others wait, at most as long as a test."""
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            made = record()
            kept.write_bytes(msgspec.json.encode((list(made.runs.values()), made.seconds)))
        runs, seconds = msgspec.json.decode(kept.read_bytes(), type=tuple[list[Run], float])
    return Recordings({(run.situation, run.subject): run for run in runs}, seconds)
