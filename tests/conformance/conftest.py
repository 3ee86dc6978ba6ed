"""One recording of everything, made once for the session by whoever asks first."""

import pytest

from tests.conformance.recording import Recordings, record
from tests.conftest import interfaces_up
from tests.real_cli import require


@pytest.fixture(scope="session")
def recordings() -> Recordings:
    """Every situation with the simulator and with both real versions; skips (CI: fails) where those are missing."""
    require()
    assert interfaces_up() == ["lo"], "the real CLI is started only where nothing but loopback is up: use tests/run"
    return record()
