"""One recording of every situation that is to be judged, made once by whoever asks first, whichever of pytest's workers
that is."""

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import pytest

from tests.conformance.recording import Recordings, Run, record
from tests.conformance.situations import SITUATIONS
from tests.conftest import interfaces_up
from tests.real_cli import require

ALWAYS: Final = ("late_bind", "second_initialize", "thinking", "unauthorized")
"""What single tests look into."""


@pytest.fixture(scope="session")
def recordings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    """The situations that chosen tests name, all of them for a test that names none and is about all (``full``), with
    the simulator and with both real versions; skips (CI: fails) where those are missing."""
    require()
    assert interfaces_up() == ["lo"], "the real CLI is started only where nothing but loopback is up: use tests/run"
    own = tmp_path_factory.getbasetemp()
    # A worker's folder stands beside those of the others, in one that this session has to itself.
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    return _recorded_once(shared / "conformance.json", _wanted(request.session.items))


def _wanted(items: Sequence[pytest.Item]) -> list[str]:
    users = [item for item in items if isinstance(item, pytest.Function) and "recordings" in item.fixturenames]
    if any(item.get_closest_marker("full") for item in users):
        return list(SITUATIONS)
    named = {item.callspec.params.get("situation") for item in users if hasattr(item, "callspec")}
    return [name for name in SITUATIONS if name in named or name in ALWAYS]


def _recorded_once(kept: Path, names: Sequence[str]) -> Recordings:
    """The recordings in ``kept``; made there by the first caller, while the others wait, at most as long as a test."""
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            made = record(names=names)
            kept.write_bytes(msgspec.json.encode((list(made.runs.values()), made.seconds)))
        runs, seconds = msgspec.json.decode(kept.read_bytes(), type=tuple[list[Run], float])
    return Recordings({(run.situation, run.subject): run for run in runs}, seconds)
