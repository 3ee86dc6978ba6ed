"""What a simulated process costs.  The figures are printed (``pytest -s``); the limits are generous."""

import os
import time
from pathlib import Path

from tests.simulator.cli_child import Child, is_delta, is_result

STARTS = 5
BURST = 100_000


def private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def test_a_process_is_cheap_to_start_and_to_keep(tmp_path: Path) -> None:
    """Exec to the answered probe, first delta of a turn, private memory; the goals are 60 ms and 12 MB."""
    starts, first, memory = [], 0.0, 0
    for _ in range(STARTS):
        with Child(tmp_path) as child:
            child.ask("get_binary_version")
            starts.append((time.perf_counter() - child.started) * 1000)
            began = time.perf_counter()
            child.say("hello")
            child.until(is_delta)
            first = (time.perf_counter() - began) * 1000
            child.until(is_result)
            memory = private_kib(child.process.pid)
    print(f"\nstart {min(starts):.0f} ms (worst {max(starts):.0f}), first delta {first:.1f} ms, private {memory} KiB")
    assert min(starts) < 1000
    assert memory < 12_000


def test_a_burst_is_fast(tmp_path: Path) -> None:
    """Prepared buffers: hundreds of thousands of lines of some 300 bytes per second."""
    with Child(tmp_path) as child:
        child.say(f"hello [[sim tokens={BURST} burst]]")
        assert child.process.stdout is not None
        stdout = child.process.stdout.fileno()
        lines, bytes_read, tail, began = 0, 0, b"", time.perf_counter()
        while b'"type":"result"' not in tail:
            chunk = os.read(stdout, 1 << 20)
            lines += chunk.count(b"\n")
            bytes_read += len(chunk)
            tail = (tail + chunk)[-5000:]
        took = time.perf_counter() - began
    print(f"\nburst: {lines / took:,.0f} lines/s of {bytes_read / lines:.0f} bytes")
    assert lines > BURST
    assert 250 < (bytes_read - 2 * BURST * 8) / lines < 350
    assert lines / took > 20_000


def test_a_burst_says_the_same_text(tmp_path: Path) -> None:
    """A burst differs from ordinary deltas in speed only."""
    with Child(tmp_path) as child:
        texts = [child.result(f"hello [[sim tokens=600 {word}]]")["result"] for word in ("burst", "")]
        deltas = [frame["event"]["delta"]["text"] for frame in child.frames if is_delta(frame)]
        uuids = {frame["uuid"] for frame in child.frames if frame["type"] == "stream_event"}
    assert texts[0] == texts[1] == "".join(deltas[:600]) == "".join(deltas[600:])
    assert len(uuids) == len([frame for frame in child.frames if frame["type"] == "stream_event"])
