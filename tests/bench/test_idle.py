"""``bench idle``: the figures are the kernel's own."""

import json
import os
import time
from pathlib import Path

from bench.__main__ import main
from bench.idle import Snapshot, cost, look


def test_the_simulator_is_watched(tmp_path: Path) -> None:
    """As a spare and after a turn, with all figures of both."""
    file = tmp_path / "result.json"
    assert main(["idle", "--cli=simulated", "--seconds=0.2", "--settle=0", "--output", str(file)]) == 0
    (subject,) = json.loads(file.read_text())["subjects"]
    assert set(subject["facts"]) == {"as a spare", "after a turn"}
    for figures in subject["facts"].values():
        assert figures["threads"] >= 1
        assert figures["resident MB"] >= figures["private MB"] > 0


def test_a_look_sees_what_this_process_does() -> None:
    """Wakes grow with each sleep, time with work."""
    before = look(os.getpid())
    for _ in range(50):
        time.sleep(0)
        os.sched_yield()
    deadline = time.process_time() + 0.05
    while time.process_time() < deadline:
        pass
    after = look(os.getpid())
    assert after.cpu_s > before.cpu_s
    assert after.wakes >= before.wakes
    assert after.at > before.at


def test_costs_are_per_second() -> None:
    """Differences over the time between the looks; sizes are those of the later one."""
    before = Snapshot(at=10.0, wakes=100, cpu_s=1.0, threads=3, resident_bytes=0, private_bytes=0)
    after = Snapshot(at=12.0, wakes=150, cpu_s=1.02, threads=4, resident_bytes=5 * 2**20, private_bytes=3 * 2**20)
    assert cost(before, after) == {
        "wakes/s": 25.0, "% of a core": 1.0, "threads": 4, "resident MB": 5, "private MB": 3,
    }  # fmt: skip
