"""The program: each sub-command once, small, with real sockets and real children; and its exit codes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import cold_vs_warm, connect, ramp, run, soak, sweep
from bench.__main__ import EXIT_ASSERTION, EXIT_INTERRUPTED, EXIT_UNAVAILABLE, main
from tests.processes import process_table, tree
from tests.real_cli import require
from tests.waiting import eventually_sync

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 55
TINY = ("--n=3", "--tenants=3", "--rounds=1", "--cold=1", "--quiet=0")


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the program as a user does."""
    environ = {name: value for name, value in os.environ.items() if name != "BENCH_LOOPBACK_ONLY"}
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, env=environ, capture_output=True, text=True,
        timeout=DEADLINE_S, check=False,
    )  # fmt: skip


def result(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The result file, and how many samples each series of its one subject has."""
    document: dict[str, Any] = json.loads(path.read_text())
    (subject,) = document["subjects"]
    return document, {name: series["n"] for name, series in subject["series"].items()}


@pytest.mark.slow
def test_cold_vs_warm_measures_every_series_of_the_simulator(tmp_path: Path) -> None:
    """A tiny run fills every series, prints its targets, and writes them with host, versions, flags and seed."""
    file = tmp_path / "result.json"
    done = bench("cold-vs-warm", *TINY, "--interval=0.05", "--seed=7", "--output", str(file))
    assert done.returncode == 0, done.stderr
    document, counts = result(file)
    assert all(counts.values()), counts
    assert (counts["welcome"], counts["together_welcome"], counts["floor_together_welcome"]) == (3, 3, 3)
    assert (document["schema"], document["seed"], document["flags"]["quiet"]) == (1, 7, 0.0)
    assert document["host"]["cores"] >= 1
    assert {"broker", "websockets"} <= set(document["versions"])
    assert "welcome_p50 <= 5 ms" in done.stdout
    assert "together_welcome_p99 <= 60 ms" in done.stdout


def test_run_keeps_the_load_that_was_asked_for(tmp_path: Path) -> None:
    """Two sessions of two turns of five tokens give two welcomes, four turns, and four gaps within each answer."""
    file = tmp_path / "result.json"
    done = bench("run", "--sessions=2", "--turns=2", "--tokens=5", "--itl=1", "--ramp=0.1", "--output", str(file))
    assert done.returncode == 0, done.stderr
    _, counts = result(file)
    wanted = {"connect": 2, "welcome": 2, "ttft": 4, "turn": 4, "gap": 16}
    assert {name: counts[name] for name in wanted} == wanted
    assert "failures: none" in done.stdout


def test_an_assertion_that_does_not_hold_exits_99() -> None:
    """The table is printed all the same, and the assertion is named with the figure."""
    done = bench(
        "run", "--sessions=1", "--turns=1", "--tokens=2", "--ramp=0", "--assert=turn_p50<1us", "--assert=turn_max<60s"
    )
    assert done.returncode == EXIT_ASSERTION
    assert "turn_p50 < 0.001 ms" in done.stderr
    assert "turn_max" not in done.stderr
    assert "message sent -> turn completed" in done.stdout


def test_a_broker_that_is_not_there_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """With --url nothing is started; a refused connection is a failure of its session, and fails an assertion."""
    arguments = ["run", "--url=ws://127.0.0.1:1/v1/chat/ws", "--sessions=2", "--ramp=0", "--assert=welcome_p50<1s"]
    assert main(arguments) == EXIT_ASSERTION
    told = capsys.readouterr()
    assert "turns completed: 0 of 10" in told.out
    assert "not measured" in told.err


@pytest.mark.parametrize("bound", ["welcome_p50", "nonsense_p50<1ms", "floor_welcome_p50<1ms"])
def test_a_mistaken_assertion_is_refused_before_anything_runs(bound: str) -> None:
    """Its form, and whether the sub-command has such a series, are judged with the arguments."""
    with pytest.raises(SystemExit) as mistake:
        main(["run", "--assert", bound])
    assert mistake.value.code == 2


@pytest.mark.parametrize("command", [cold_vs_warm, run, sweep, ramp, soak, connect])
def test_help_names_every_series(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever writes an assertion finds the names in the help."""
    with pytest.raises(SystemExit) as ended:
        main([command.NAME, "--help"])
    assert ended.value.code == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(words) >= command.SERIES


def test_without_the_cli_that_was_asked_for_it_exits_69() -> None:
    """It says what to do and starts nothing."""
    done = bench("cold-vs-warm", "--cli=/nonexistent/claude", *TINY)
    assert done.returncode == EXIT_UNAVAILABLE
    assert "bench:" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("born", [(), ("env", "--ignore-signal=INT")], ids=["in front", "in the background"])
def test_a_signal_ends_what_was_started(number: signal.Signals, born: tuple[str, ...]) -> None:
    """Interrupted in the middle of a load, the program ends its broker and the broker's children, and exits 130."""
    argv = [*born, sys.executable, "-m", "bench", "run", "--sessions=2", "--turns=9", "--tokens=5000", "--ramp=0"]
    popen = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        eventually_sync(lambda: len(_below(popen.pid)) >= 3, 15)
        popen.send_signal(number)
        assert popen.wait(40) == EXIT_INTERRUPTED
        assert popen.stderr is not None
        assert popen.stderr.read() == b""
    finally:
        popen.kill()
        popen.communicate()


def _below(pid: int) -> set[int]:
    return tree({pid}, process_table()) - {pid}


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.real_cli
def test_cold_vs_warm_measures_the_real_cli(tmp_path: Path) -> None:
    """Warm, cold and without a broker, against the stand-in for the API, in a namespace of its own."""
    require("2.1.329")
    file = tmp_path / "result.json"
    tiny = ("--n=1", "--interval=0", "--tenants=1", "--rounds=1", "--cold=1", "--quiet=0")
    done = bench("cold-vs-warm", "--cli=real", "--cli-version=2.1.329", *tiny, "--output", str(file))
    assert done.returncode == 0, done.stderr
    _, counts = result(file)
    assert all(counts.values()), counts
    assert "first_delta_p50 <= 200 ms" in done.stdout
