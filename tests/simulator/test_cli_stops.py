"""Interrupts, queued messages, end of input and signals: how a turn and a process can end."""

import signal
from pathlib import Path

import pytest

from tests.processes import process_table
from tests.simulator.cli_child import (
    Child,
    control,
    deltas,
    is_answer,
    is_delta,
    is_init,
    is_prompt,
    is_result,
    kind,
    permit,
    tool_results,
    user,
)  # fmt: skip
from tests.waiting import eventually_sync

SLOW = "[[sim tokens=500 itl_ms=20]]"


def test_interrupt_between_deltas(tmp_path: Path) -> None:
    """Receipt, the aborted part, "[Request interrupted by user]", the stream's end, an error result; life goes on."""
    with Child(tmp_path) as child:
        child.say(f"hello {SLOW}")
        child.until(is_delta)
        child.until(is_delta)
        seen = len(child.frames)
        assert child.ask("interrupt")["response"] == {"still_queued": []}
        result = child.until(is_result)
        after = [frame for frame in child.frames[seen:] if not is_delta(frame)]
        assert [kind(frame) for frame in after] == [
            "control_response", "assistant", "user", "stream_event/content_block_stop", "stream_event/message_delta",
            "stream_event/message_stop", "result/error_during_execution",
        ]  # fmt: skip
        assert after[1]["aborted"] is True
        assert after[1]["message"]["content"][0]["text"] == deltas(child.frames)
        assert after[2]["message"]["content"][0]["text"] == "[Request interrupted by user]"
        assert (result["is_error"], result["terminal_reason"]) == (True, "aborted_streaming")
        assert result["errors"][0].startswith("[ede_diagnostic]")
        assert child.result("next [[sim tokens=1]]")["result"] == "next0 "


def test_interrupt_in_a_burst(tmp_path: Path) -> None:
    """Even at full speed an interrupt is seen, within a few hundred lines, and every line stays whole."""
    with Child(tmp_path) as child:
        child.say("hello [[sim tokens=5000000 burst]]")
        child.until(is_delta)
        child.send(control("interrupt"))
        assert child.until(is_result)["terminal_reason"] == "aborted_streaming"
        aborted = next(frame for frame in child.frames if frame.get("aborted"))
        assert aborted["message"]["content"][0]["text"] == deltas(child.frames)


def test_interrupt_at_init(tmp_path: Path) -> None:
    """Before the first token there is nothing to keep: no assistant line."""
    with Child(tmp_path) as child:
        child.say("hello [[sim ttft_ms=60000]]")
        child.until(is_init)
        child.ask("interrupt")
        assert child.until(is_result)["terminal_reason"] == "aborted_streaming"
        assert "assistant" not in [frame["type"] for frame in child.frames]
        assert not child.result("next")["is_error"]


def test_interrupt_with_the_first_message_stops_it(tmp_path: Path) -> None:
    """In one write with the process's first message, it is answered while that waits, and then stops its turn."""
    with Child(tmp_path) as child:
        line = control("interrupt")
        child.send(user(f"hello {SLOW}", uuid="m-1"), line)
        answer = child.until(lambda frame: is_answer(frame, line["request_id"]))["response"]
        assert answer["response"] == {"still_queued": ["m-1"]}
        assert child.until(is_result)["terminal_reason"] == "aborted_streaming"


def test_interrupt_with_a_later_message_is_lost(tmp_path: Path) -> None:
    """In one write with any later message, it is answered with success and has no effect."""
    with Child(tmp_path) as child:
        child.turn("warm [[sim tokens=1]]")
        line = control("interrupt")
        child.send(user("hello [[sim tokens=3 itl_ms=20]]"), line)
        result = child.until(is_result)
        assert any(is_answer(frame, line["request_id"]) for frame in child.frames)
        assert (result["subtype"], result["result"]) == ("success", "hello0 hello1 hello2 ")


def test_interrupt_when_idle(tmp_path: Path) -> None:
    """It is answered and changes nothing."""
    with Child(tmp_path) as child:
        assert child.ask("interrupt")["subtype"] == "success"
        assert not child.result("hello")["is_error"]


def test_interrupt_at_a_prompt_withdraws_it(tmp_path: Path) -> None:
    """The prompt is cancelled, the call counts as rejected, and the turn ends with ``aborted_tools``."""
    with Child(tmp_path) as child:
        child.say('work [[sim tool="Bash:touch made"]]')
        prompt = child.until(is_prompt)
        child.ask("interrupt")
        result = child.until(is_result)
        kinds = [kind(frame) for frame in child.frames]
        assert kinds.index("control_cancel_request") < kinds.index("control_response")
        assert (result["terminal_reason"], len(result["permission_denials"])) == ("aborted_tools", 1)
        child.send(permit(prompt, behavior="allow", updatedInput=prompt["request"]["input"]))
        assert not child.result("next")["is_error"]
        assert not (child.work / "made").exists()


def test_interrupt_kills_the_running_tool(tmp_path: Path) -> None:
    """The command dies with all its descendants, and the turn ends at once."""
    with Child(tmp_path) as child:
        child.ask("apply_flag_settings", settings={"permissions": {"allow": ["Bash"]}})
        child.say('work [[sim tool="Bash:echo $$ > pid; (sleep 4711 & wait); true"]]')
        eventually_sync((child.work / "pid").exists)
        eventually_sync(lambda: sleepers("4711"))
        child.ask("interrupt")
        assert child.until(is_result)["terminal_reason"] == "aborted_tools"
        eventually_sync(lambda: not sleepers("4711"))
        assert "[Request interrupted by user for tool use]" in str(child.frames)


def test_a_second_message_has_its_own_turn(tmp_path: Path) -> None:
    """Written in mid-turn, it is queued and runs after the result; ``idle`` comes once, at the end."""
    with Child(tmp_path, CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS="1") as child:
        child.say("first [[sim tokens=5 itl_ms=20]]")
        child.until(is_delta)
        child.say("second [[sim tokens=1]]", uuid="m-2")
        assert child.until(is_result)["queued_turn_count"] == 1
        assert child.until(is_result)["result"] == "second0 "
        child.until(lambda frame: frame.get("state") == "idle")
    assert [frame["state"] for frame in child.frames if kind(frame).endswith("state_changed")] == ["running", "idle"]


def test_messages_that_queue_up_share_a_turn(tmp_path: Path) -> None:
    """Two that wait behind a running turn run as one: fewer results than messages."""
    with Child(tmp_path) as child:
        child.say("first [[sim tokens=5 itl_ms=20]]")
        child.until(is_delta)
        child.send(user("second [[sim tokens=1]]", uuid="m-2"), user("third", uuid="m-3"))
        child.until(is_result)
        result = child.until(is_result)
        assert result["user_message_uuids"] == ["m-2", "m-3"]
        assert result["queued_turn_count"] == 0


def test_two_messages_in_one_write_have_two_turns(tmp_path: Path) -> None:
    """The first one of an idle process starts alone."""
    with Child(tmp_path) as child:
        child.send(user("one [[sim tokens=1]]"), user("two [[sim tokens=1]]"))
        assert [child.until(is_result)["result"], child.until(is_result)["result"]] == ["one0 ", "two0 "]


def test_a_message_during_a_tool_joins_the_turn(tmp_path: Path) -> None:
    """It is folded in behind the tool result: one result for both, and its text is the one that is answered."""
    with Child(tmp_path) as child:
        child.say('work [[sim tool="Bash:touch made"]]', uuid="m-1")
        prompt = child.until(is_prompt)
        child.say("second [[sim tokens=2]]", uuid="m-2")
        child.send(permit(prompt, behavior="allow", updatedInput=prompt["request"]["input"]))
        result = child.until(is_result)
        assert (result["result"], result["user_message_uuids"]) == ("second0 second1 ", ["m-1", "m-2"])
        child.finish()
    assert [kind(frame) for frame in child.frames].count("result/success") == 1


def test_interrupt_leaves_or_empties_the_queue(tmp_path: Path) -> None:
    """A plain interrupt keeps what waits and names it; ``cancel_queued`` drops it and names that."""
    with Child(tmp_path) as child:
        child.say(f"one {SLOW}")
        child.until(is_delta)
        child.say("two [[sim tokens=500 itl_ms=20]]", uuid="m-2")
        assert child.ask("interrupt")["response"] == {"still_queued": ["m-2"]}
        child.until(lambda frame: is_delta(frame) and frame["event"]["delta"]["text"] == "two3 ")
        child.say("three", uuid="m-3")
        answer = child.ask("interrupt", cancel_queued=True)["response"]
        assert answer == {"still_queued": [], "cancelled": ["m-3"]}
        child.until(is_result)
        assert child.result("four [[sim tokens=1]]")["result"] == "four0 "


def test_a_queued_message_can_be_withdrawn(tmp_path: Path) -> None:
    """``cancel_async_message`` takes it out while it waits, and says so."""
    with Child(tmp_path) as child:
        child.say("one [[sim tokens=20 itl_ms=20]]")
        child.until(is_delta)
        child.say("two", uuid="m-2")
        assert child.ask("cancel_async_message", message_uuid="m-2")["response"] == {"cancelled": True}
        assert child.ask("cancel_async_message", message_uuid="m-2")["response"] == {"cancelled": False}
        assert child.finish() == 0
    assert [kind(frame) for frame in child.frames].count("result/success") == 1


def test_end_of_input_finishes_turn_and_queue(tmp_path: Path) -> None:
    """stdin closed in mid-turn: everything that was sent is answered, then exit code 0."""
    with Child(tmp_path) as child:
        child.say("one [[sim tokens=5 itl_ms=20]]")
        child.until(is_delta)
        child.say("two [[sim tokens=1]]")
        assert child.finish() == 0
    assert [frame["result"] for frame in child.frames if is_result(frame)][1] == "two0 "


def test_a_last_line_without_line_end_counts(tmp_path: Path) -> None:
    """End of input ends the last line, too."""
    with Child(tmp_path) as child:
        assert child.process.stdin is not None
        child.process.stdin.write(b'{"type":"user","message":{"role":"user","content":"x [[sim tokens=1]]"}}')
        assert child.finish() == 0
    assert child.frames[-1]["result"] == "x0 "


def test_end_of_input_after_a_failed_turn_is_code_1(tmp_path: Path) -> None:
    """The exit code tells how the last turn ended."""
    with Child(tmp_path) as child:
        child.turn("hello [[sim error=529]]")
        assert child.finish() == 1


@pytest.mark.parametrize("text", [None, f"hello {SLOW}"])
def test_sigterm_is_143_at_once(tmp_path: Path, text: str | None) -> None:
    """Idle or in mid-turn: no result, exit code 143."""
    with Child(tmp_path) as child:
        child.ask("get_binary_version")
        if text:
            child.say(text)
            child.until(is_delta)
        child.process.send_signal(signal.SIGTERM)
        assert child.wait() == 143
        assert not any(map(is_result, child.frames))


def test_sigterm_kills_the_tool(tmp_path: Path) -> None:
    """A running command does not outlive the process."""
    with Child(tmp_path) as child:
        child.say('work [[sim tool="Bash:sleep 4712"]]')
        eventually_sync(lambda: sleepers("4712"))
        child.process.send_signal(signal.SIGTERM)
        assert child.wait() == 143
        eventually_sync(lambda: not sleepers("4712"))


def test_sigint_ends_the_turn_and_then_the_process(tmp_path: Path) -> None:
    """In mid-turn it records an interrupted result, then exit code 0; idle it just leaves."""
    with Child(tmp_path) as child:
        child.say(f"hello {SLOW}")
        child.until(is_delta)
        child.process.send_signal(signal.SIGINT)
        assert child.until(is_result)["terminal_reason"] == "aborted_streaming"
        assert child.wait() == 0
    with Child(tmp_path) as child:
        child.ask("get_binary_version")
        child.process.send_signal(signal.SIGINT)
        assert child.wait() == 0


def test_a_lost_reader_ends_the_process(tmp_path: Path) -> None:
    """When nobody reads stdout any more, the process leaves quietly with 1."""
    with Child(tmp_path) as child:
        child.ask("get_binary_version")
        assert child.process.stdout is not None
        child.process.stdout.close()
        child.say("hello")
        assert child.process.wait(10) == 1
        assert child.stderr == b""


def test_tool_results_are_told_once(tmp_path: Path) -> None:
    """A tool that was interrupted has exactly one result, an error."""
    with Child(tmp_path) as child:
        child.say('work [[sim tool="Bash:sleep 4713"]]')
        eventually_sync(lambda: sleepers("4713"))
        child.ask("interrupt")
        child.until(is_result)
    assert [block["is_error"] for block in tool_results(child.frames)] == [True]


def sleepers(seconds: str) -> list[int]:
    """Pids of ``sleep SECONDS``."""
    found = []
    for row in process_table().values():
        try:
            command = Path(f"/proc/{row.pid}/cmdline").read_bytes()
        except OSError:
            continue
        if command == f"sleep\0{seconds}\0".encode() and row.state != "Z":
            found.append(row.pid)
    return found
