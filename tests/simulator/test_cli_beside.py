"""What the simulated CLI does beside its turns: steering, background commands, subagents, rewinding, dialogs."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.simulator.cli_child import Child, Frame, is_delta, is_prompt, is_result, permit, tool_results
from tests.waiting import eventually_sync

STATES: Any = {"CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS": "1"}


def call(tool: str, **given: Any) -> str:
    """A text that makes the model call ``tool``."""
    inside = json.dumps(given).replace("\\", "\\\\").replace('"', '\\"')
    return f'work [[sim tool="{tool}:{inside}" tokens=2]]'


def systems(frames: list[Frame], subtype: str) -> list[Frame]:
    return [frame for frame in frames if frame.get("subtype") == subtype]


@pytest.mark.parametrize(("priority", "results"), [("now", 2), ("next", 1), (None, 1), ("later", 2)])
def test_a_message_in_mid_turn_joins_waits_or_cuts_in(tmp_path: Path, priority: str | None, results: int) -> None:
    """``next`` joins the turn behind the tool call, ``later`` never does, ``now`` ends the turn behind the call."""
    fields = {"priority": priority} if priority else {}
    with Child(tmp_path, **STATES) as child:
        child.say('work [[sim tool="Bash:sleep 0.4" tokens=2]]', uuid="A")
        child.until(lambda frame: frame["type"] == "assistant")
        child.say("second [[sim tokens=2]]", uuid="B", **fields)
        child.until(lambda frame: frame.get("state") == "idle")
        ends = [frame for frame in child.frames if is_result(frame)]
    assert len(ends) == results
    assert ends[-1]["result"] == "second0 second1 "
    covered = [end["user_message_uuids"] for end in ends]
    assert covered == ([["A", "B"]] if results == 1 else [["A"], ["B"]])
    if priority == "now":
        assert (ends[0]["subtype"], ends[0]["terminal_reason"]) == ("success", "aborted_tools")


def test_an_urgent_message_cuts_a_reply_short(tmp_path: Path) -> None:
    """What was said counts as the result; before the first delta it is an error."""
    with Child(tmp_path) as child:
        child.say("first [[sim tokens=500 itl_ms=5]]", uuid="A")
        for _ in range(3):
            child.until(is_delta)
        child.say("second [[sim tokens=2]]", uuid="B", priority="now")
        cut, whole = child.until(is_result), child.until(is_result)
        child.say("third [[sim ttft_ms=5000]]")
        child.until(lambda frame: frame.get("status") == "requesting")
        child.say("fourth [[sim tokens=2]]", priority="now")
        empty = child.until(is_result)
        lifecycle = [(f["command_uuid"], f["state"]) for f in child.frames if f["type"] == "command_lifecycle"]
    assert (cut["subtype"], cut["is_error"], cut["terminal_reason"]) == ("success", False, "aborted_streaming")
    assert cut["result"].startswith("first0 first1 ")
    assert whole["result"] == "second0 second1 "
    assert (empty["subtype"], empty["is_error"]) == ("error_during_execution", True)
    assert ("A", "cancelled") in lifecycle


def test_messages_of_one_priority_share_a_turn(tmp_path: Path) -> None:
    """Urgent ones go first, late ones last, each with those of their kind."""
    with Child(tmp_path, **STATES) as child:
        child.say("first [[sim tokens=20 itl_ms=20]]", uuid="A")
        child.until(is_delta)
        for name, priority in (("B", "later"), ("C", "next"), ("D", "later"), ("E", "next")):
            child.say(f"{name} [[sim tokens=1]]", uuid=name, priority=priority)
        child.until(lambda frame: frame.get("state") == "idle")
        ends = [frame["user_message_uuids"] for frame in child.frames if is_result(frame)]
    assert ends == [["A"], ["C", "E"], ["B", "D"]]


def test_what_is_taken_up_is_repeated_where_it_is_asked_for(tmp_path: Path) -> None:
    """Messages when a turn takes them, also in mid-turn; and every answer to a request of the CLI's."""
    with Child(tmp_path, "--replay-user-messages") as child:
        child.say('work [[sim tool="Bash:touch made" tokens=2]]', uuid="A")
        asked = child.until(is_prompt)
        child.say("second [[sim tokens=2]]", uuid="B")
        answer = permit(asked, behavior="allow", updatedInput=asked["request"]["input"])
        child.send(answer)
        child.until(is_result)
    kinds = [frame["uuid"] if frame.get("isReplay") else frame["type"] for frame in child.frames]
    assert [kind for kind in kinds if kind in {"A", "B", "user", "result"}] == ["A", "user", "B", "result"]
    assert answer in child.frames


def test_a_background_command_outlives_its_turn_and_is_stopped(tmp_path: Path) -> None:
    """Its output is a file, ``stop_task`` kills it and says so; a task that is not there is nobody's fault."""
    command = "echo $$; echo hi; sleep 60"
    with Child(tmp_path, TMPDIR=str(tmp_path)) as child:
        child.turn(call("Bash", command=command, description="nap", run_in_background=True))
        (started,) = systems(child.frames, "task_started")
        task = started["task_id"]
        output = eventually_sync(lambda: answer if (answer := shown(child, task)).count("\n") == 2 else None)
        pid = int(output.split()[0])
        errors = [child.ask("stop_task")["subtype"], child.ask("get_task_output")["subtype"]]
        assert child.ask("stop_task", task_id="nobody")["response"] == {}
        assert child.ask("stop_task", task_id=task)["response"] == {}
        assert not os.path.exists(f"/proc/{pid}")
        notice = systems(child.frames, "task_notification")[0]
    assert "running in background with ID" in tool_results(child.frames)[0]["content"]
    assert (notice["task_id"], notice["status"], errors) == (task, "stopped", ["error", "error"])


def shown(child: Child, task: str) -> str:
    return str(child.ask("get_task_output", task_id=task)["response"]["output"])


@pytest.mark.parametrize(("command", "status"), [("true", "completed"), ("false", "failed")])
def test_a_background_command_that_ends_begins_a_turn_of_its_own(tmp_path: Path, command: str, status: str) -> None:
    """The model hears of it: a second result, with an origin and without a message."""
    with Child(tmp_path, TMPDIR=str(tmp_path)) as child:
        child.say(call("Bash", command=f"sleep 0.2; {command}", run_in_background=True), uuid="A")
        first, second = child.until(is_result), child.until(is_result)
        notice = systems(child.frames, "task_notification")[0]
    assert (first["user_message_uuids"], "user_message_uuids" in second) == (["A"], False)
    assert (second["origin"]["kind"], second["result"]) == ("task-notification", "work0 work1 ")
    assert notice["status"] == status


def test_a_subagent_in_the_foreground_asks_and_reports(tmp_path: Path) -> None:
    """Its prompt, its tool and its permission prompt carry its marks; its report is the call's result."""
    with Child(tmp_path) as child:
        child.ask("initialize", agents={"helper": {"description": "d", "prompt": "p"}}, forwardSubagentText=True)
        prompt = 'sub [[sim tool="Bash:touch made" tokens=3]]'
        given = {"description": "do it", "prompt": prompt, "subagent_type": "helper", "run_in_background": False}
        child.say(call("Agent", **given))
        asked = child.until(is_prompt)
        child.send(permit(asked, behavior="allow", updatedInput=asked["request"]["input"]))
        end = child.until(is_result)
        assert (child.work / "made").exists()
    (started,) = systems(child.frames, "task_started")
    beside = [frame for frame in child.frames if frame.get("parent_tool_use_id")]
    assert asked["request"]["agent_id"] == started["task_id"]
    assert [frame["type"] for frame in beside] == ["user", "assistant", "user", "assistant"]
    assert {frame["parent_tool_use_id"] for frame in beside} == {started["tool_use_id"]}
    report = tool_results([frame for frame in child.frames if not frame.get("parent_tool_use_id")])[0]
    assert report["content"][0]["text"] == "sub0 sub1 sub2 "
    assert end["usage"]["input_tokens"] < end["modelUsage"]["claude-sonnet-5-5"]["inputTokens"]


def test_a_subagent_in_the_background_speaks_when_the_turn_has_ended(tmp_path: Path) -> None:
    """The session stays ``running`` until its report has had a turn; an interrupt between turns ends it."""
    given = {"description": "do it", "subagent_type": "Explore"}
    with Child(tmp_path, **STATES) as child:
        child.say(call("Task", prompt="sub [[sim tokens=2 ttft_ms=200]]", **given))
        child.until(is_result)
        spoken = child.until(lambda frame: frame["type"] == "assistant" and frame["parent_tool_use_id"])
        assert child.until(is_result)["origin"]["kind"] == "task-notification"
        child.until(lambda frame: frame.get("state") == "idle")
        states = [frame["state"] for frame in child.frames if frame.get("subtype") == "session_state_changed"]
        child.say(call("Task", prompt="sub [[sim ttft_ms=60000]]", **given))
        child.until(is_result)
        child.ask("interrupt")
        child.until(lambda frame: frame.get("state") == "idle")
        ended = systems(child.frames, "task_notification")[-1]
    assert spoken["message"]["content"][0]["text"] == "sub0 sub1 "
    assert (states, ended["status"]) == (["running", "idle"], "stopped")


def test_an_unknown_subagent_is_named(tmp_path: Path) -> None:
    """The model is told which there are."""
    with Child(tmp_path) as child:
        frames = child.turn(call("Task", description="d", prompt="p", subagent_type="nobody"))
    assert "Available agents" in tool_results(frames)[0]["content"]


def test_files_are_rewound_to_before_a_message(tmp_path: Path) -> None:
    """Each file goes back to what it was; one that was made goes away; a dry run only counts."""
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    with Child(tmp_path, CLAUDE_CODE_ENABLE_SDK_FILE_CHECKPOINTING="true") as child:
        child.ask("set_permission_mode", mode="acceptEdits")
        made, old = child.work / "made.txt", child.work / "old.txt"
        old.write_text("as it was\n")
        child.turn(call("Write", file_path=str(made), content="one\n"), uuid=first)
        child.turn(call("Write", file_path=str(made), content="two\nthree\n"), uuid=second)
        child.turn(call("Edit", file_path=str(old), old_string="was", new_string="is"), uuid=str(uuid.uuid4()))
        dry = child.ask("rewind_files", user_message_id=second, dry_run=True)["response"]
        assert (made.read_text(), old.read_text()) == ("two\nthree\n", "as it is\n")
        unknown = [child.ask("rewind_files", user_message_id=odd)["error"] for odd in ("nobody", 5, None)]
        assert child.ask("rewind_files", user_message_id=second)["response"]["canRewind"] is True
        assert (made.read_text(), old.read_text()) == ("one\n", "as it was\n")
        child.ask("rewind_files", user_message_id=first)
        assert not made.exists()
    assert (sorted(dry["filesChanged"]), dry["insertions"], dry["deletions"]) == ([str(made), str(old)], 2, 3)
    assert set(unknown) == {"No file checkpoint found for this message."}


def test_nothing_is_rewound_where_it_was_not_asked_for(tmp_path: Path) -> None:
    """A dry run says why, the real one is refused."""
    with Child(tmp_path) as child:
        child.turn("hello", uuid="A")
        dry = child.ask("rewind_files", user_message_id="A", dry_run=True)["response"]
        refused = child.ask("rewind_files", user_message_id="A")
    assert dry == {"canRewind": False, "error": "File rewinding is not enabled."}
    assert refused["error"] == "File rewinding is not enabled."


def test_a_question_is_answered_in_its_input(tmp_path: Path) -> None:
    """Unanswered it says so; leaving plan mode changes the mode; both are asked in every mode."""
    with Child(tmp_path) as child:
        for answers in ({"Which?": "blue"}, {}):
            child.say(call("AskUserQuestion", questions=[{"question": "Which?"}]))
            asked = child.until(is_prompt)
            child.send(permit(asked, behavior="allow", updatedInput={**asked["request"]["input"], "answers": answers}))
            child.until(is_result)
        child.ask("set_permission_mode", mode="plan")
        child.say(call("ExitPlanMode"))
        asked = child.until(is_prompt)
        child.send(permit(asked, behavior="allow", updatedInput={}))
        child.until(is_result)
        modes = [frame["permissionMode"] for frame in child.frames if "permissionMode" in frame and "status" in frame]
    said = [block["content"] for block in tool_results(child.frames)]
    assert ('"Which?"="blue"' in said[0], "did not answer" in said[1]) == (True, True)
    assert (asked["request"]["requires_user_interaction"], modes) == (True, ["plan", "default"])


def test_the_figures_of_a_session(tmp_path: Path) -> None:
    """Context usage grows with the conversation; the settings show what was applied, secrets included."""
    with Child(tmp_path) as child:
        child.ask("apply_flag_settings", settings={"env": {"KEY": "value"}})
        before = child.ask("get_context_usage")["response"]["totalTokens"]
        child.turn("hello [[sim tokens=500]]")
        after = child.ask("get_context_usage")["response"]
        settings = child.ask("get_settings")["response"]
    assert before < after["totalTokens"] == sum(row["tokens"] for row in after["categories"] if row["kind"] == "used")
    assert settings["effective"] == {"env": {"KEY": "value"}} == settings["sources"][0]["settings"]
