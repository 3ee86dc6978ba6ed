"""``bench peers``: once over everything with tiny counts, and what it does when something fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.__main__ import EXIT_ASSERTION, EXIT_FAILED, main
from bench.peers.process_clock import cpu_of, cpu_s, resident_bytes, spent
from tests.processes import process_table, tree
from tests.waiting import eventually_sync

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--quick", "--lines=500", "--sessions=2", "--seconds=0.2", "--connects=2", "--held=2", "--sockets=5",
        "--spread=2,3", "--handshakes=20")  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("websocketd") is None, reason="websocketd is not installed: make system")
def test_all_four_are_measured_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every frame is counted behind each of them, ratios and targets are told, and the file holds what they are of."""
    file = tmp_path / "result.json"
    wanted = ("--assert=burst_vs_websocketd<=1000", "--assert=burst_rate_vs_plain>1000", "--output", str(file))
    code = main(["peers", *TINY, "--scenario=burst,connect", "--peer=direct,websocketd,plain,broker", *wanted])
    assert code == EXIT_ASSERTION
    out, err = capsys.readouterr()
    assert "target " in out
    assert "burst_vs_websocketd <= 0.3" in out
    assert "assertion: MISSED burst_rate_vs_plain > 1000" in err
    document = json.loads(file.read_text())
    burst, connect = document["figures"]["burst"], document["figures"]["connect"]
    assert burst.keys() == connect.keys() == {"direct", "websocketd", "plain", "broker"}
    for name, found in burst.items():
        (measured,) = found["measured"]
        assert 500 <= measured["frames"] < 540, name
        assert (measured["server_cpu_s"] is None) == (name == "direct")
    for found in connect.values():
        assert found["median"]["first_delta_p50_ms"] >= found["median"]["connect_p50_ms"] > 0
    assert {"burst_vs_websocketd", "burst_vs_plain", "connect_vs_direct"} <= document["ratios"].keys()
    assert {target["bound"] for target in document["targets"]} == {
        "burst_vs_websocketd <= 0.3", "connect_vs_websocketd <= 0.1",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.full
def test_the_brokers_own_scenarios_are_measured(tmp_path: Path) -> None:
    """Paced streams with their delays, and handshakes."""
    file = tmp_path / "result.json"
    own = ["--scenario=spread,handshakes", "--spread=2", "--peer=broker", "--output", str(file)]
    assert main(["peers", *TINY, *own]) == 0
    figures = json.loads(file.read_text())["figures"]
    assert figures.keys() == {"spread_2", "handshakes"}
    (measured,) = figures["spread_2"]["broker"]["measured"]
    assert measured["frames"] > 10
    assert 0 < measured["latency_ms"]["p50"] <= measured["latency_ms"]["p99"] <= measured["latency_ms"]["max"]
    assert figures["handshakes"]["broker"]["measured"][0]["connections"] == 20


@pytest.mark.full
@pytest.mark.slow
def test_growth_is_measured(tmp_path: Path) -> None:
    """Memory per connection and per idle socket, and what more sessions add to a frame's cost."""
    file = tmp_path / "result.json"
    assert main(["peers", *TINY, "--scenario=memory,spread", "--peer=broker", "--output", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["figures"].keys() == {"memory", "idle", "spread_2", "spread_3"}
    assert {"idle_kib", "spread_cpu", "spread_p99"} <= document["ratios"].keys()


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_limit_delivers_every_frame(tmp_path: Path) -> None:
    """The program in C is compiled, and keeps the pace of two sessions."""
    file = tmp_path / "result.json"
    assert main(["peers", *TINY, "--scenario=paced", "--peer=limit", "--output", str(file)]) == 0
    (measured,) = json.loads(file.read_text())["figures"]["paced"]["limit"]["measured"]
    assert measured["frames"] > 10
    assert measured["server_cpu_s"] > 0


def test_what_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without websocketd the run goes on and says so; its ratio is then a missed one."""
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    code = main(["peers", *TINY, "--scenario=burst", "--peer=websocketd,direct", "--assert=burst_vs_websocketd<=1"])
    assert code == EXIT_ASSERTION
    out, err = capsys.readouterr()
    assert "note: websocketd is left out: websocketd is not installed" in out
    assert "MISSED burst_vs_websocketd <= 1: not measured" in err


def test_what_fails_is_told_beside_what_did_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A CLI that ends where it should answer: exit 1, what was waited for, and the figures of the other scenario."""
    monkeypatch.setattr("bench.peers.scenario.FIRST", "Hello [[sim exit_code=3]]")
    file = tmp_path / "result.json"
    assert main(["peers", *TINY, "--scenario=burst,latency", "--peer=direct", "--output", str(file)]) == EXIT_FAILED
    document = json.loads(file.read_text())
    assert "before the end of the turn: lost" in document["violations"][0]
    assert document["figures"].keys() == {"latency"}


@pytest.mark.slow
def test_an_interrupt_ends_everything_that_was_started() -> None:
    """SIGTERM in the middle of a window: no server, no receiver and no CLI is left."""
    argv = [sys.executable, "-m", "bench", "peers", "--quick", "--scenario=paced", "--peer=plain", "--seconds=60"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        # The script, the receiver and a CLI for each of the ten sessions.
        eventually_sync(lambda: len(tree({running.pid}, process_table())) >= 13, within_s=20)
        table = process_table()
        started = {table[pid] for pid in tree({running.pid}, table)}
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 130
    marks = {(one.pid, one.started) for one in started}
    eventually_sync(lambda: not marks & {(one.pid, one.started) for one in process_table().values()}, within_s=20)


def test_the_clock_is_the_kernels() -> None:
    """As much as utime and stime say, within their 10 ms each, of this process alone; gone processes are left out."""
    deadline = time.process_time() + 0.05
    before = cpu_of([os.getpid(), 2**22 + 1])
    while time.process_time() < deadline:
        pass
    assert 0.01 < spent(before, cpu_of([os.getpid()])) < 5
    times = os.times()
    assert cpu_s(os.getpid()) == pytest.approx(times.user + times.system, abs=0.2)
    assert resident_bytes(os.getpid()) > 2**20
    with pytest.raises(OSError, match="Invalid"):
        cpu_s(2**22 + 1)
