"""One headless Chromium for all tests of a worker: each test talks to it by DevTools, in profiles of its own.

Caller: ``tests/browser/conftest.py``.  Starting one takes about a second of processor time, an own one for each test
made the browser tests a fifth of the whole suite.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.waiting import eventually_sync

NAME: Final = "broker.test"
"""A name for 127.0.0.1 that makes no secure origin."""
START_DEADLINE_S: Final = 60.0
END_DEADLINE_S: Final = 10.0
_FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # the tests may run as root, and the namespace is the fence
    "--remote-debugging-port=0",
    f"--host-resolver-rules=MAP {NAME} 127.0.0.1",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",  # /dev/shm is 64 MB in many containers
    "--disable-domain-reliability",
    "--disable-renderer-backgrounding",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
    "--no-pings",
)


@contextmanager
def running_chromium(folder: Path) -> Iterator[tuple[int, str]]:
    """Start one; yields its process id and its DevTools address.  Skips where there is no Chromium."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("Chromium is missing (Debian: apt-get install chromium)")
    profile, log = folder / "profile", folder / "chromium.log"
    port = profile / "DevToolsActivePort"
    with log.open("wb") as sink:
        popen = subprocess.Popen(
            [executable, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
            start_new_session=True,
        )

    def is_listening() -> bool:
        assert popen.poll() is None, f"{executable} does not start: {log.read_text(errors='replace')[-2000:]}"
        return port.exists() and port.read_text().count("\n") > 0

    try:
        eventually_sync(is_listening, START_DEADLINE_S)
        yield popen.pid, f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
    finally:
        popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            popen.wait(END_DEADLINE_S)
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
