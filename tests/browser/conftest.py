"""What the tests of this folder share: the worker's Chromium, and the stage that stands on it."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import running_chromium
from tests.browser.stage import Staging, stage_at
from tests.oracle import Oracle


@pytest.fixture(scope="session")
def devtools(tmp_path_factory: pytest.TempPathFactory, oracle: Oracle) -> Iterator[str]:
    """The DevTools address of a Chromium that outlives the tests."""
    with running_chromium(tmp_path_factory.mktemp("chromium")) as (pid, address):
        oracle.allow(pid=pid)
        yield address


@pytest.fixture
def staged(tmp_path: Path, devtools: str) -> Staging:
    """Start a stage: ``async with staged() as stage``, or ``staged({...})`` with a configuration."""
    return functools.partial(stage_at, tmp_path, devtools)
