"""The end of a program that cannot end by itself."""

import fcntl
import os
import subprocess
import sys

import pytest

from broker.last_resort import LAST_WORDS
from tests.kit.broker import ROOT
from tests.waiting import eventually_sync

HANGS = "import threading; from broker.last_resort import LastResort; it = LastResort(); {}; threading.Event().wait()"


@pytest.mark.parametrize("arm", ["it.arm(0.1)", "it.arm(3600); it.arm(0.1)", "it.arm(-1)"])
def test_a_program_that_hangs_ends(arm: str) -> None:
    """Exit 0 at the time that was given last, and one line says so."""
    end = subprocess.run(
        [sys.executable, "-c", HANGS.format(arm)], cwd=ROOT, capture_output=True, timeout=30, check=False
    )
    assert (end.returncode, end.stdout, end.stderr) == (0, b"", LAST_WORDS)


def test_a_log_that_nobody_reads_does_not_matter() -> None:
    """The pipe behind stderr is full: the line is lost, the end is the same."""
    read, write = os.pipe()
    size = fcntl.fcntl(write, fcntl.F_GETPIPE_SZ)
    assert os.write(write, b"x" * size) == size
    popen = subprocess.Popen([sys.executable, "-c", HANGS.format("it.arm(0.1)")], cwd=ROOT, stderr=write)
    os.close(write)
    try:
        eventually_sync(lambda: popen.poll() is not None, 30)
        assert popen.returncode == 0
    finally:
        popen.kill()
        popen.wait()
        os.close(read)


def test_a_program_that_ends_by_itself_does_not_notice() -> None:
    """It does not wait for the time either."""
    code = "from broker.last_resort import LastResort; LastResort().arm(3600); raise SystemExit(3)"
    end = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=30, check=False)
    assert (end.returncode, end.stderr) == (3, b"")
