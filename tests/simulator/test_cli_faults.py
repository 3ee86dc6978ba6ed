"""The fault menu: each fault does what it says, and the parent can tell."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from simulator.faults import NEW_SUBTYPE, NEW_TYPE
from simulator.floods import GARBAGE
from tests.processes import process_table
from tests.simulator.cli_child import Child, deltas, is_delta, is_init, is_result, kind
from tests.waiting import eventually_sync


def holders(child: Child) -> list[int]:
    """Other processes of the child's session or that hold its stdout."""
    assert child.process.stdout is not None
    pipe = os.readlink(f"/proc/self/fd/{child.process.stdout.fileno()}")
    found = []
    for pid in set(process_table()) - {os.getpid(), child.process.pid}:
        try:
            if os.readlink(f"/proc/{pid}/fd/1") == pipe:
                found.append(pid)
        except OSError:
            continue
    return found


def test_die_after_counts_deltas(tmp_path: Path) -> None:
    """The process is killed after exactly N text deltas, without a result."""
    with Child(tmp_path) as child:
        child.say("hello [[sim tokens=9 die_after=3]]")
        assert child.wait() == -signal.SIGKILL
    assert deltas(child.frames) == "hello0 hello1 hello2 "
    assert not any(map(is_result, child.frames))


def test_die_after_0_is_before_init(tmp_path: Path) -> None:
    """Not one frame of the turn is seen."""
    with Child(tmp_path) as child:
        child.say("hello [[sim die_after]]")
        assert child.wait() == -signal.SIGKILL
    assert not any(map(is_init, child.frames))


def test_hang_neither_speaks_nor_hears(tmp_path: Path) -> None:
    """After N deltas controls stay unanswered and the end of input is not noticed; SIGTERM still works."""
    with Child(tmp_path) as child:
        child.say("hello [[sim tokens=9 hang=2]]")
        child.until(lambda frame: is_delta(frame) and frame["event"]["delta"]["text"] == "hello1 ")
        child.send({"type": "control_request", "request_id": "x", "request": {"subtype": "interrupt"}})
        child.close_stdin()
        with pytest.raises(AssertionError):
            child.until(lambda _frame: True, within_s=0.3)
        child.process.send_signal(signal.SIGTERM)
        assert child.wait() == 143


def test_exit_code_ends_the_turn(tmp_path: Path) -> None:
    """The process leaves by itself, in place of the first delta."""
    with Child(tmp_path) as child:
        child.say("hello [[sim exit_code=7]]")
        assert child.wait() == 7
    assert any(map(is_init, child.frames))
    assert not any(map(is_delta, child.frames))


def test_ignore_term_needs_a_kill(tmp_path: Path) -> None:
    """SIGTERM changes nothing from that turn on."""
    with Child(tmp_path) as child:
        child.turn("hello [[sim ignore_term]]")
        child.process.send_signal(signal.SIGTERM)
        assert not child.result("again")["is_error"]


def test_ignore_eof_needs_a_signal(tmp_path: Path) -> None:
    """The process stays when stdin ends."""
    with Child(tmp_path) as child:
        child.turn("hello [[sim ignore_eof]]")
        child.close_stdin()
        with pytest.raises(AssertionError):
            child.until(lambda _frame: False, within_s=0.3)
        assert child.process.poll() is None
        child.process.send_signal(signal.SIGTERM)
        assert child.wait() == 143


def test_a_grandchild_holds_the_pipe(tmp_path: Path) -> None:
    """The process exits, but stdout does not end; the grandchild is in its group."""
    with Child(tmp_path) as child:
        child.turn("hello [[sim grandchild=30]]")
        child.close_stdin()
        assert child.process.wait(10) == 0
        (pid,) = holders(child)
        assert os.getpgid(pid) == child.process.pid
        with pytest.raises(AssertionError):
            child.until(lambda _frame: False, within_s=0.2)
        os.killpg(child.process.pid, signal.SIGKILL)
        child.drain()


def test_a_detached_grandchild_escapes_the_group(tmp_path: Path) -> None:
    """It leads its own session: only a search of the whole tree finds it."""
    with Child(tmp_path) as child:
        child.turn("hello [[sim grandchild=30 detached]]")
        (pid,) = holders(child)
        assert os.getsid(pid) != child.process.pid
        os.kill(pid, signal.SIGKILL)
        assert child.finish() == 0


def test_lines_that_are_no_json_appear(tmp_path: Path) -> None:
    """``garbage_line`` and ``bad_utf8`` put one bad line each into the turn, which goes on."""
    with Child(tmp_path) as child:
        result = child.result("hello [[sim tokens=2 garbage_line bad_utf8]]")
        assert child.finish() == 0
    assert result["result"] == "hello0 hello1 "
    bad = [line for line in child.raw if not is_json(line)]
    assert bad[0] == b"[SandboxDebug] this line is not JSON"
    assert b"\xff\xfe" in bad[1]
    assert len(bad) == 2


def test_frames_of_a_later_version_appear(tmp_path: Path) -> None:
    """``unknown_frame`` puts a frame of a new type and one of a new subtype into the turn, which goes on."""
    with Child(tmp_path) as child:
        result = child.result("hello [[sim tokens=2 unknown_frame]]")
    assert result["result"] == "hello0 hello1 "
    assert [line for line in child.raw if line in (NEW_TYPE, NEW_SUBTYPE)] == [NEW_TYPE, NEW_SUBTYPE]
    assert all(map(is_json, child.raw))


def test_a_huge_line_has_its_size(tmp_path: Path) -> None:
    """``huge_line=N`` is one valid line of exactly N bytes, 12 MB by default."""
    with Child(tmp_path) as child:
        child.turn("hello [[sim huge_line=2000000]]")
        child.turn("hello [[sim huge_line]]")
    assert sorted(map(len, child.raw))[-2:] == [2_000_000, 12_000_000]
    assert "tool_use_summary" in map(kind, child.frames)


def test_split_writes_change_nothing_but_the_pieces(tmp_path: Path) -> None:
    """Lines written a few bytes at a time are the same lines."""
    with Child(tmp_path) as child:
        result = child.result("hello [[sim tokens=20 split_writes=3]]")
    assert result["result"] == "".join(f"hello{index} " for index in range(20))
    assert all(map(is_json, child.raw))


def test_stderr_can_be_flooded(tmp_path: Path) -> None:
    """Exactly as many bytes as were asked for, before the turn goes on."""
    with Child(tmp_path) as child:
        child.turn("hello [[sim stderr_flood=300000]]")
        assert len(child.stderr) == 300_000


def test_floods_have_their_size_and_their_lines(tmp_path: Path) -> None:
    """``flood`` is whole lines of one size, paced where that is asked for; ``blank`` and ``garbage`` say nothing."""
    with Child(tmp_path) as child:
        began = time.monotonic()
        result = child.result("hello [[sim tokens=2 flood=200000:500:2 blank=6000 garbage=4]]")
        assert time.monotonic() - began >= 0.08
    assert result["result"] == "hello0 hello1 "
    flood = [line for line in child.raw if len(line) == 499]
    assert 200_000 <= 500 * len(flood) < 250_000
    assert all(map(is_json, flood))
    for line in GARBAGE[:4]:
        assert line in child.raw


def test_an_endless_line_ends_in_silence(tmp_path: Path) -> None:
    """So many bytes without a line end, and then nothing more is said or heard."""
    with Child(tmp_path) as child:
        child.say("hello [[sim endless=300000]]")
        child.until(is_init)
        with pytest.raises(AssertionError):
            child.until(is_result, within_s=0.5)
        child.process.send_signal(signal.SIGTERM)
        assert child.wait() == 143


def test_faults_at_the_start(tmp_path: Path) -> None:
    """``SIMULATOR_FAULTS``: an exit code, a version, a pace for every turn; a mistake in it ends the start."""
    with Child(tmp_path, SIMULATOR_FAULTS="exit_code=9") as child:
        assert child.wait() == 9
    with Child(tmp_path, SIMULATOR_FAULTS="version=2.1.197 ttft_ms=50") as child:
        assert child.ask("get_binary_version")["response"]["version"] == "2.1.197"
        frames = child.turn("hello")
        assert next(frame for frame in frames if is_init(frame))["claude_code_version"] == "2.1.197"
        assert frames[-1]["ttft_ms"] >= 50
        assert "You said: hello" in frames[-1]["result"]
    with Child(tmp_path, SIMULATOR_FAULTS="nonsense") as child:
        assert child.wait() == 1
        assert b"nonsense: unknown key" in child.stderr
    with Child(tmp_path, "--version", SIMULATOR_FAULTS="version=9.9.9 never_ready") as child:
        assert child.wait() == 0
        assert child.raw == [b"9.9.9 (Claude Code)"]


def test_a_slow_start_answers_late(tmp_path: Path) -> None:
    """``slow_start=S``: the probe is answered after S seconds."""
    with Child(tmp_path, SIMULATOR_FAULTS="slow_start=0.3") as child:
        began = time.monotonic()
        child.ask("get_binary_version")
        assert time.monotonic() - began >= 0.25


def test_never_ready_answers_nobody(tmp_path: Path) -> None:
    """The process lives and says nothing; with ``ignore_term`` it does not even leave."""
    with Child(tmp_path, SIMULATOR_FAULTS="never_ready ignore_term stderr_flood=5") as child:
        child.send({"type": "control_request", "request_id": "x", "request": {"subtype": "get_binary_version"}})
        eventually_sync(lambda: len(child.stderr) == 5)
        child.process.send_signal(signal.SIGTERM)
        with pytest.raises(AssertionError):
            child.until(lambda _frame: True, within_s=0.3)
        assert child.process.poll() is None


def is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
