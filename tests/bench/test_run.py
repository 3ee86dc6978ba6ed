"""``bench run``, open and closed, against a broker of its own; what a result file must not hold."""

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from bench.__main__ import EXIT_ASSERTION, EXIT_INTERRUPTED, main
from bench.secrets import HIDDEN, without_secrets
from tests.processes import process_table
from tests.waiting import eventually_sync

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--tokens=3", "--itl=1", "--progress=0.2")
TOKEN = "t0ken-of-this-test"


def test_an_open_run_keeps_its_plan(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """20 arrivals a second for half a second are 10 sessions; each figure is there, and a timeline."""
    file = tmp_path / "open.json"
    arguments = ["run", "--rate=20", "--duration=0.5", "--max-sessions=10", "--label=<b>", f"--token={TOKEN}", *SHORT]
    assert main([*arguments, "--output", str(file)]) == 0
    document = json.loads(file.read_text())
    (subject,) = document["subjects"]
    counts = {name: series["n"] for name, series in subject["series"].items()}
    once = ("connect", "queue", "welcome", "ttft", "ttft_service", "server_ttft", "worst_gap", "turn", "slip")
    assert {name: counts[name] for name in once} == dict.fromkeys(once, 10)
    assert counts["gap"] == 20
    series = subject["series"]
    assert series["ttft"]["p50"] > series["ttft_service"]["p50"]
    assert sum(line["turns"] for line in subject["intervals"]) == 10
    assert (document["schema"], document["label"], document["interrupted"]) == (1, "<b>", False)
    assert subject["facts"]["sessions arrived"] == 10
    assert TOKEN not in file.read_text()
    told = capfd.readouterr().out
    assert "p99.9" in told
    assert "loop lag p99" in told
    assert "open" in told.partition("run (<b>)")[0]


def test_a_closed_run_of_a_duration(tmp_path: Path) -> None:
    """Two sessions talk for half a second; what they say after their first message has a moment at which it was due."""
    file = tmp_path / "closed.json"
    arguments = ["run", "--sessions=2", "--duration=0.5", "--ramp=0", "--think-time=0.05", *SHORT]
    assert main([*arguments, "--output", str(file), "--assert=turn_max<30s"]) == 0
    (subject,) = json.loads(file.read_text())["subjects"]
    assert subject["series"]["connect"]["n"] == 2
    assert subject["series"]["ttft"]["n"] == subject["facts"]["turns completed"] >= 2
    assert subject["series"]["slip"]["n"] >= 1


def test_failures_are_counted_by_their_reason(tmp_path: Path) -> None:
    """Nobody listens: each arrival is a failure with a name, the figures are missing, and an assertion says so."""
    file = tmp_path / "refused.json"
    arguments = ["run", "--url=ws://user:pass@127.0.0.1:1/v1/chat/ws", "--rate=50", "--duration=0.1"]
    assert main([*arguments, "--assert=ttft_p95<1s", "--output", str(file)]) == EXIT_ASSERTION
    (subject,) = json.loads(file.read_text())["subjects"]
    assert subject["facts"]["failures"] == {"connect_connectionrefused": 5}
    assert "pass" not in file.read_text()


def test_ctrl_c_prints_what_was_measured_so_far(tmp_path: Path) -> None:
    """In the middle of a load: the table, the result file, exit code 130."""
    file = tmp_path / "result.json"
    argv = [sys.executable, "-m", "bench", "run", "--sessions=1", "--duration=60", "--ramp=0", *SHORT]
    popen = subprocess.Popen([*argv, "--output", str(file)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert popen.stdout is not None
        lines = iter(popen.stdout.readline, "")
        eventually_sync(lambda: " 0 turns" not in next(lines), 30)
        popen.send_signal(signal.SIGINT)
        rest = popen.communicate(timeout=30)[0]
    finally:
        popen.kill()
        popen.communicate()
    assert popen.returncode == EXIT_INTERRUPTED
    assert "INTERRUPTED" in rest
    assert "turns completed" in rest
    document = json.loads(file.read_text())
    assert document["interrupted"] is True
    assert document["subjects"][0]["series"]["ttft"]["n"] > 0


@pytest.mark.full
def test_a_broker_of_its_own_that_ends_is_a_violation() -> None:
    """Killed in the middle: what was measured is printed, the failures have their reasons, the run exits 1."""
    argv = [sys.executable, "-m", "bench", "run", "--sessions=1", "--duration=2", "--ramp=0", *SHORT]
    popen = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert popen.stdout is not None
        lines = iter(popen.stdout.readline, "")
        eventually_sync(lambda: " 0 turns" not in next(lines), 30)
        (broker,) = [process.pid for process in process_table().values() if process.parent == popen.pid]
        os.kill(broker, signal.SIGKILL)
        rest = popen.communicate(timeout=30)[0]
    finally:
        popen.kill()
        popen.communicate()
    assert popen.returncode == 1
    assert "VIOLATION the broker ended with -9" in rest
    assert "connect_connectionrefused" in rest


@pytest.mark.full
def test_a_terminal_gets_a_line_that_renews_itself() -> None:
    """With the extra `bench` and a terminal: the cursor is hidden while it runs and there again at its end."""
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "bench", "run", "--sessions=1", "--duration=1.2", "--ramp=0", *SHORT]
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        popen = subprocess.Popen(argv, cwd=ROOT, stdout=theirs, env={**os.environ, "TERM": "xterm"})
        os.close(theirs)
        told = b""
        # EIO is how a terminal tells that nobody has its other end any more.
        with suppress(OSError):
            while piece := terminal.read(1 << 16):
                told += piece
    assert popen.wait(20) == 0
    assert told.index(b"\x1b[?25l") < told.index(b" turns ") < told.rindex(b"\x1b[?25h") < told.index(b"p99.9")


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["run", "--token", "a", "--tokens", "5"], ["run", "--token", HIDDEN, "--tokens", "5"]),
        (["--token=a", "--to", "5", "--tokens=3"], [f"--token={HIDDEN}", "--to", "5", "--tokens=3"]),
        (["--token", "--token", "x"], ["--token", HIDDEN, "x"]),
        (["--url", "wss://u:p@h/x"], ["--url", "wss://h/x"]),
    ],
)
def test_a_command_line_is_shown_without_its_secrets(argv: list[str], shown: list[str]) -> None:
    """Whether the token stands beside its flag or behind it."""
    assert without_secrets(argv) == shown


def test_a_flag_cannot_be_shortened() -> None:
    """Else a token behind a shortened flag would be written down."""
    with pytest.raises(SystemExit) as mistake:
        main(["connect", "--toke=secret", "--connections=1"])
    assert mistake.value.code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url=http://x"],
        ["--sessions=0"],
        ["--rate=nan"],
        ["--rate=-1"],
        ["--sessions=2", "--rate=1"],
        ["--arrival=gamma"],
    ],
)
def test_a_mistaken_load_is_refused(arguments: list[str]) -> None:
    """Before anything is started."""
    with pytest.raises(SystemExit) as mistake:
        main(["run", *arguments])
    assert mistake.value.code == 2
