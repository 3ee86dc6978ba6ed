"""Conversations of the simulated CLI across processes: resumed, forked, continued, or lost."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.simulator.cli_child import BASE_FLAGS, Child, is_delta, is_init, is_result

ID = "0b4e0b4e-aaaa-4bbb-8ccc-0b4e0b4e0b4e"
OTHER = "0b4e0b4e-aaaa-4bbb-8ccc-000000000000"


def transcripts(child: Child) -> list[Path]:
    return sorted(child.config.glob("projects/*/*.jsonl"))


def tell(home: Path, *texts: str, session_id: str = ID) -> Child:
    """A first process that is told something and leaves."""
    with Child(home, f"--session-id={session_id}") as child:
        for text in texts:
            assert child.result(text)["session_id"] == session_id
        assert child.finish() == 0
    return child


def test_resume_remembers_under_the_same_id(tmp_path: Path) -> None:
    """The conversation goes on, costs included, in the same file; history is not repeated on stdout."""
    tell(tmp_path, "one", "two")
    with Child(tmp_path, f"--resume={ID}") as child:
        result = child.result("three")
        assert not [frame for frame in child.frames if frame["type"] == "user"]
    assert "Earlier messages of yours: 2." in result["result"]
    assert result["session_id"] == ID
    spent = sum(row["costUSD"] for row in result["model_usage_since_last_result"].values())
    assert result["total_cost_usd"] > 2 * spent
    assert result["total_cost_usd"] == pytest.approx(sum(row["costUSD"] for row in result["modelUsage"].values()))
    assert len(transcripts(child)) == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_only_an_orderly_end_keeps_the_costs(tmp_path: Path, how: signal.Signals) -> None:
    """What was spent is written at SIGTERM as it is at the end of input; a killed process takes it along."""
    with Child(tmp_path, f"--session-id={ID}") as child:
        spent = child.result("one")["total_cost_usd"]
        child.process.send_signal(how)
        child.wait()
    with Child(tmp_path, f"--resume={ID}") as child:
        continued = child.result("two")["total_cost_usd"]
    assert (continued > 1.5 * spent) == (how == signal.SIGTERM)


def test_fork_forgets_what_came_behind_a_message(tmp_path: Path) -> None:
    """``--resume-session-at`` names the last message that the branch keeps."""
    child = tell(tmp_path, "one", "two")
    entries = [json.loads(line) for line in transcripts(child)[0].read_text().splitlines()]
    first = next(entry["uuid"] for entry in entries if entry["type"] == "assistant")
    with Child(tmp_path, f"--resume={ID}", "--fork-session", f"--resume-session-at={first}") as child:
        assert "Earlier messages of yours: 1." in child.result("three")["result"]


def test_fork_remembers_under_a_new_id(tmp_path: Path) -> None:
    """The branch has its own id and file, and the original does not know of it."""
    tell(tmp_path, "one")
    with Child(tmp_path, "--resume", ID, "--fork-session", f"--session-id={OTHER}") as child:
        result = child.result("two")
    assert (result["session_id"], "Earlier messages of yours: 1." in result["result"]) == (OTHER, True)
    with Child(tmp_path, f"--resume={ID}") as child:
        assert "Earlier messages of yours: 1." in child.result("two")["result"]
    assert [path.stem for path in transcripts(child)] == sorted([ID, OTHER])
    entries = [json.loads(line) for line in transcripts(child)[0].read_text().splitlines()]
    assert {entry["sessionId"] for entry in entries} == {OTHER}


def test_fork_without_an_id_gets_one(tmp_path: Path) -> None:
    """``--fork-session`` alone makes a fresh id."""
    tell(tmp_path, "one")
    with Child(tmp_path, f"--resume={ID}", "--fork-session") as child:
        assert child.result("two")["session_id"] != ID


def test_continue_takes_the_latest_of_the_directory(tmp_path: Path) -> None:
    """``--continue`` needs no id, and without any conversation starts a new one."""
    with Child(tmp_path, "--continue") as child:
        first = child.result("one")
        assert "Earlier messages of yours: 0." in first["result"]
    with Child(tmp_path, "-c") as child:
        result = child.result("two")
    assert (result["session_id"], "Earlier messages of yours: 1." in result["result"]) == (first["session_id"], True)


def test_an_unknown_conversation_ends_the_start(tmp_path: Path) -> None:
    """``--resume`` of an id that was never written: a zeroed result, a text on stderr, exit code 1."""
    with Child(tmp_path, f"--resume={ID}") as child:
        assert child.wait() == 1
        assert child.stderr == f"No conversation found with session ID: {ID}\n".encode()
    (result,) = child.frames
    assert (result["type"], result["session_id"], result["num_turns"]) == ("result", ID, 0)
    assert result["errors"] == [f"No conversation found with session ID: {ID}"]


def test_bad_ids_are_refused(tmp_path: Path) -> None:
    """No id, one that is no UUID, one that would leave the folder, one beside ``--resume`` without fork."""
    for flags, text in [
        (("--resume",), b"requires a valid session ID"),
        (("--resume=../../x",), b"No conversation found"),
        (("--session-id=m-9",), b"Must be a valid UUID"),
        ((f"--session-id={ID}", f"--resume={ID}"), b"also needs --fork-session"),
    ]:
        with Child(tmp_path, *flags) as child:
            assert child.wait() == 1
            assert text in child.stderr


def test_a_written_id_is_in_use_and_an_unwritten_one_is_not(tmp_path: Path) -> None:
    """``--session-id`` can be used again until its transcript exists."""
    for _ in range(2):
        with Child(tmp_path, f"--session-id={ID}") as child:
            child.ask("initialize")
            assert child.finish() == 0
        assert transcripts(child) == []
    tell(tmp_path, "one")
    with Child(tmp_path, f"--session-id={ID}") as child:
        assert child.wait() == 1
        assert child.stderr == f"Error: Session ID {ID} is already in use.\n".encode()


def test_the_transcript_of_a_first_turn_is_late(tmp_path: Path) -> None:
    """It appears 0.2 s after the user line, in the middle of the turn, not before."""
    with Child(tmp_path, f"--session-id={ID}") as child:
        child.say("one [[sim tokens=500 itl_ms=10]]")
        child.until(is_init)
        began = time.monotonic()
        while not transcripts(child):
            child.until(is_delta)
            assert time.monotonic() - began < 2
        assert time.monotonic() - began > 0.1


def test_the_transcript_is_there_at_the_result(tmp_path: Path) -> None:
    """A turn that is faster than that writes it at its result."""
    with Child(tmp_path, f"--session-id={ID}") as child:
        child.turn("one [[sim tokens=1]]")
        (path,) = transcripts(child)
        kinds = [json.loads(line)["type"] for line in path.read_text().splitlines()]
    assert (path.stem, kinds) == (ID, ["user", "assistant"])
    assert path.parent.name == "".join(char if char.isalnum() else "-" for char in str(child.work))


def test_a_kill_in_the_first_turn_leaves_nothing(tmp_path: Path) -> None:
    """``kill -9`` at the first delta of the first turn: nothing to resume, and the id is free."""
    with Child(tmp_path, f"--session-id={ID}") as child:
        child.say("one [[sim tokens=500 itl_ms=10]]")
        child.until(is_delta)
        child.process.send_signal(signal.SIGKILL)
        assert child.wait() == -9
    assert transcripts(child) == []
    tell(tmp_path, "again")


def test_a_kill_in_a_later_turn_can_be_resumed(tmp_path: Path) -> None:
    """From the second turn on the user's message is on disk at once; a torn last line is skipped."""
    with Child(tmp_path, f"--session-id={ID}") as child:
        child.turn("one [[sim tokens=1]]")
        child.say("two [[sim tokens=500 itl_ms=10]]")
        child.until(is_delta)
        child.process.send_signal(signal.SIGKILL)
        assert child.wait() == -9
    with transcripts(child)[0].open("a") as file:
        file.write('{"type":"assistant","message":{"con')
    with Child(tmp_path, f"--resume={ID}") as child:
        assert "Earlier messages of yours: 2." in child.result("three")["result"]
        assert child.finish() == 0


def test_a_transcript_is_found_in_another_project(tmp_path: Path) -> None:
    """Copied below another working directory's project, it can be resumed by id."""
    (path,) = transcripts(tell(tmp_path / "a", "one"))
    with Child(tmp_path / "b", "--version") as other:
        other.wait()
    target = tmp_path / "b" / "config" / "projects" / path.parent.name
    target.mkdir(parents=True)
    (target / path.name).write_bytes(path.read_bytes())
    with Child(tmp_path / "b", f"--resume={ID}") as child:
        assert "Earlier messages of yours: 1." in child.result("two")["result"]


def test_interruptions_and_tool_results_are_no_messages_of_the_user(tmp_path: Path) -> None:
    """Memory counts what the user said, nothing else."""
    with Child(tmp_path, f"--session-id={ID}", "--allowedTools=Bash") as child:
        child.turn('one [[sim tool="Bash:ls"]]')
        child.say("two [[sim tokens=500 itl_ms=20]]")
        child.until(is_delta)
        child.ask("interrupt")
        child.until(is_result)
        assert "Earlier messages of yours: 2." in child.result("three")["result"]
    with Child(tmp_path, f"--resume={ID}") as child:
        assert "Earlier messages of yours: 3." in child.result("four")["result"]


def test_persistence_can_be_switched_off(tmp_path: Path) -> None:
    """``--no-session-persistence`` writes nothing."""
    with Child(tmp_path, "--no-session-persistence") as child:
        child.turn("one")
        child.turn("two")
        assert child.finish() == 0
    assert transcripts(child) == []


def test_root_may_not_bypass_permissions(tmp_path: Path) -> None:
    """Refused outside a sandbox, with its reason in the zeroed result where the environment asks for one."""
    is_refused = os.geteuid() == 0
    with Child(tmp_path, "--dangerously-skip-permissions", CLAUDE_CODE_STARTUP_FAILURE_RESULTS="1") as child:
        assert child.finish() == is_refused
    assert [frame["startup_failure_reason"] for frame in child.frames] == ["bypass_root"] * is_refused
    with Child(tmp_path, "--dangerously-skip-permissions") as child:
        assert child.finish() == is_refused
        assert (b"root" in child.stderr) == is_refused
    assert child.frames == []


def test_a_wrong_command_line_is_refused(tmp_path: Path) -> None:
    """Unknown options and bad values: a text on stderr, exit code 1, nothing on stdout."""
    for flags, text in [
        (("--bogus",), b"error: unknown option '--bogus'"),
        (("--permission-mode=zz",), b"argument 'zz' is invalid"),
        (("--settings={",), b"Error processing settings"),
    ]:
        with Child(tmp_path, *flags) as child:
            assert child.wait() == 1
            assert text in child.stderr
            assert child.raw == []
    with Child(tmp_path, base=BASE_FLAGS[:1]) as child:
        assert child.wait() == 1
