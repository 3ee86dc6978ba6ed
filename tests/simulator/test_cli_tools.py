"""Tool calls of the simulated CLI: who is asked, what runs, what the model is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.simulator.cli_child import BASE_FLAGS, Child, is_prompt, is_result, kind, permit, tool_results

TOUCH = '[[sim tool="Bash:touch made" tokens=2]]'


def prompt_of(child: Child, text: str = f"work {TOUCH}") -> dict[str, Any]:
    child.say(text)
    return child.until(is_prompt)


def test_a_prompt_has_the_real_keys(tmp_path: Path) -> None:
    """``can_use_tool`` comes after the message's stop, while the state is ``requires_action``."""
    with Child(tmp_path, CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS="1") as child:
        prompt = prompt_of(child)
        kinds = [kind(frame) for frame in child.frames]
        pending = child.ask("initialize")["pending_permission_requests"]
    assert set(prompt["request"]) == {
        "subtype", "tool_name", "display_name", "input", "description", "permission_suggestions", "blocked_path",
        "tool_use_id",
    }  # fmt: skip
    assert prompt["request"]["input"]["command"] == "touch made"
    assert prompt["request"]["blocked_path"] == str(child.work / "made")
    assert kinds.index("stream_event/message_stop") < kinds.index("control_request")
    assert child.frames[kinds.index("control_request") - 1]["state"] == "requires_action"
    assert pending == [prompt]


def test_an_allowed_call_runs(tmp_path: Path) -> None:
    """``allow`` runs the command in the working directory; the model goes on with its output."""
    with Child(tmp_path) as child:
        prompt = prompt_of(child, 'work [[sim tool="Bash:touch made; echo done" tokens=2]]')
        child.send(permit(prompt, behavior="allow", updatedInput=prompt["request"]["input"]))
        result = child.until(is_result)
    assert (child.work / "made").exists()
    assert (result["result"], result["num_turns"], result["permission_denials"]) == ("work0 work1 ", 2, [])
    assert [(block["content"], block["is_error"]) for block in tool_results(child.frames)] == [("done", False)]
    assert [kind(frame) for frame in child.frames].count("stream_event/message_start") == 2


def test_the_answer_may_change_the_input(tmp_path: Path) -> None:
    """``updatedInput`` is what runs."""
    with Child(tmp_path) as child:
        child.send(permit(prompt_of(child), behavior="allow", updatedInput={"command": "touch other"}))
        child.until(is_result)
    assert (child.work / "other").exists()
    assert not (child.work / "made").exists()


def test_a_denied_call_does_not_run(tmp_path: Path) -> None:
    """``deny`` tells the model the message and goes on; the result lists the denial."""
    with Child(tmp_path) as child:
        child.send(permit(prompt_of(child), behavior="deny", message="not today"))
        result = child.until(is_result)
    assert not (child.work / "made").exists()
    assert [(block["content"], block["is_error"]) for block in tool_results(child.frames)] == [("not today", True)]
    assert (result["subtype"], [row["tool_name"] for row in result["permission_denials"]]) == ("success", ["Bash"])


def test_a_denial_may_end_the_turn(tmp_path: Path) -> None:
    """``interrupt: true`` stops the turn as an interrupt would."""
    with Child(tmp_path) as child:
        child.send(permit(prompt_of(child), behavior="deny", message="stop", interrupt=True))
        result = child.until(is_result)
        assert (result["subtype"], result["terminal_reason"]) == ("error_during_execution", "aborted_tools")
        assert not child.result("next")["is_error"]


@pytest.mark.parametrize("answer", [{}, {"behavior": "perhaps"}, {"behavior": "deny"}])
def test_an_answer_that_does_not_allow_denies(tmp_path: Path, answer: dict[str, Any]) -> None:
    """Only ``behavior: allow`` lets a call run."""
    with Child(tmp_path) as child:
        child.send(permit(prompt_of(child), **answer))
        child.until(is_result)
    assert not (child.work / "made").exists()


def test_an_error_answer_denies(tmp_path: Path) -> None:
    """An error instead of an answer is told to the model."""
    with Child(tmp_path) as child:
        body = {"subtype": "error", "request_id": prompt_of(child)["request_id"], "error": "boom"}
        child.send({"type": "control_response", "response": body})
        child.until(is_result)
    assert tool_results(child.frames)[0]["content"] == "Tool permission request failed: Error: boom"


def test_end_of_input_closes_the_prompt(tmp_path: Path) -> None:
    """With stdin closed nobody can answer: the call fails and the turn is finished."""
    with Child(tmp_path) as child:
        prompt_of(child)
        assert child.finish() == 0
    assert "stream closed" in tool_results(child.frames)[0]["content"]
    assert child.frames[-1]["result"] == "work0 work1 "


def test_a_session_rule_holds_for_this_process_only(tmp_path: Path) -> None:
    """``addRules`` with destination ``session``: the next such call runs unasked, and nothing is written."""
    rules = [{"toolName": "Bash", "ruleContent": "touch:*"}]
    update = {"type": "addRules", "rules": rules, "behavior": "allow", "destination": "session"}
    with Child(tmp_path) as child:
        child.send(permit(prompt_of(child), behavior="allow", updatedPermissions=[update]))
        child.until(is_result)
        assert not child.result('again [[sim tool="Bash:touch more"]]')["is_error"]
    assert (child.work / "more").exists()
    assert not (child.config / "settings.json").exists()


def test_a_user_settings_rule_is_written_and_read_again(tmp_path: Path) -> None:
    """``addRules`` with destination ``userSettings`` writes ``settings.json``; a later process obeys it if it may."""
    rules = [{"toolName": "Bash"}]
    update = {"type": "addRules", "rules": rules, "behavior": "allow", "destination": "userSettings"}
    with Child(tmp_path) as child:
        child.send(permit(prompt_of(child), behavior="allow", updatedPermissions=[update]))
        child.until(is_result)
        assert not child.result('again [[sim tool="Bash:touch more"]]')["is_error"]
    assert json.loads((child.config / "settings.json").read_text()) == {"permissions": {"allow": ["Bash"]}}
    with Child(tmp_path, "--setting-sources=user") as child:
        child.turn('again [[sim tool="Bash:touch third"]]')
    assert (child.work / "third").exists()
    with Child(tmp_path) as child:
        assert prompt_of(child)


def test_rules_of_the_settings_decide(tmp_path: Path) -> None:
    """Allowed runs unasked, denied fails unasked, the rest asks; a line is denied for one of its commands."""
    rules = {"allow": ["Bash(touch:*)"], "deny": ["Bash(mkdir:*)"]}
    with Child(tmp_path) as child:
        child.ask("apply_flag_settings", settings={"permissions": rules})
        child.turn(f"work {TOUCH}")
        child.turn('work [[sim tool="Bash:touch x && mkdir never"]]')
        assert prompt_of(child, 'work [[sim tool="Bash:touch x; curl y"]]')
    assert (child.work / "made").exists()
    assert not (child.work / "never").exists()
    assert "has been denied" in tool_results(child.frames)[1]["content"]
    assert "permission_denied" in [frame.get("subtype") for frame in child.frames]


@pytest.mark.parametrize(
    ("mode", "call", "happens"),
    [
        ("default", "Bash:ls", "runs"), ("default", "Bash:touch made", "asks"), ("default", "Write:f", "asks"),
        ("default", "Read:f", "runs"), ("acceptEdits", "Bash:touch made", "runs"), ("acceptEdits", "Write:f", "runs"),
        ("acceptEdits", "Bash:curl x", "asks"), ("plan", "Bash:touch made", "asks"),
        ("dontAsk", "Bash:touch made", "fails"), ("bypassPermissions", "Bash:touch made", "runs"),
    ],
)  # fmt: skip
def test_modes_decide_what_rules_leave_open(tmp_path: Path, mode: str, call: str, happens: str) -> None:
    """The permission mode says who is asked."""
    with Child(tmp_path, f"--permission-mode={'manual' if mode == 'default' else mode}", IS_SANDBOX="1") as child:
        (child.work / "f").write_text("hello")
        child.say(f'work [[sim tool="{call}"]]')
        last = child.until(lambda frame: is_prompt(frame) or is_result(frame))
    failed = [block.get("is_error", False) for block in tool_results(child.frames)]
    assert happens == ("asks" if is_prompt(last) else "fails" if failed == [True] else "runs")


def test_without_a_prompt_channel_an_ask_is_a_denial(tmp_path: Path) -> None:
    """Without ``--permission-prompt-tool=stdio`` nobody is asked."""
    with Child(tmp_path, base=tuple(flag for flag in BASE_FLAGS if "prompt-tool" not in flag)) as child:
        result = child.result(f"work {TOUCH}")
    assert len(result["permission_denials"]) == 1
    assert not (child.work / "made").exists()


def test_flags_carry_rules_and_tools(tmp_path: Path) -> None:
    """``--allowedTools``, ``--disallowedTools`` and ``--tools``, in both spellings and forms."""
    allowed, denied = ("--allowedTools", "Bash(touch:*)", "Read"), "--disallowed-tools=WebFetch,Bash(rm:*)"
    with Child(tmp_path, *allowed, denied, "--tools=Bash,WebFetch") as child:
        frames = child.turn(f"work {TOUCH}")
        assert next(frame for frame in frames if frame.get("subtype") == "init")["tools"] == ["Bash"]
        child.turn('work [[sim tool="Write:x"]]')
    assert (child.work / "made").exists()
    assert "No such tool available: Write" in tool_results(child.frames)[1]["content"]


def test_a_tool_sees_settings_variables_but_no_oauth_token(tmp_path: Path) -> None:
    """An API key of the settings' ``env`` is visible to a command, an OAuth token is not; the scrub hides both."""
    script = "echo [$CLAUDE_CODE_OAUTH_TOKEN] [$ANTHROPIC_API_KEY] [$MORE]"
    seen = []
    for scrub in ("", "1"):
        with Child(tmp_path, "--allowedTools=Bash", CLAUDE_CODE_SUBPROCESS_ENV_SCRUB=scrub) as child:
            child.ask("apply_flag_settings", settings={"env": {"ANTHROPIC_API_KEY": "dummy-key", "MORE": "1"}})
            child.turn(f'work [[sim tool="Bash:{script}"]]')
            seen.append(tool_results(child.frames)[0]["content"])
    assert seen == ["[] [dummy-key] [1]", "[] [] [1]"]


def test_a_failing_command_is_an_error_result(tmp_path: Path) -> None:
    """The exit code and both outputs are told."""
    with Child(tmp_path, "--allowedTools=Bash") as child:
        assert not child.result('work [[sim tool="Bash:echo out; echo err >&2; exit 3"]]')["is_error"]
    assert tool_results(child.frames)[0]["content"] == "Exit code 3\nout\nerr"


def test_output_is_bounded(tmp_path: Path) -> None:
    """A command that says a lot does not make the line grow without end."""
    with Child(tmp_path, "--allowedTools=Bash") as child:
        child.turn("work [[sim tool=\"Bash:head -c 3000000 /dev/zero | tr '\\\\0' x\"]]")
    assert tool_results(child.frames)[0]["content"] == "x" * 30_000


def test_a_command_ends_with_its_own_process(tmp_path: Path) -> None:
    """A background process that holds the pipe does not keep the call open, and a slow one ends at its limit."""
    with Child(tmp_path, "--allowedTools=Bash") as child:
        child.turn('work [[sim tool="Bash:sleep 60 & echo done"]]')
        limited = json.dumps({"command": "sleep 60", "timeout": 100}).replace('"', '\\"')
        child.turn(f'work [[sim tool="Bash:{limited}"]]')
    assert [block["content"] for block in tool_results(child.frames)] == ["done", "Command timed out after 0.1s"]


def test_turns_are_limited(tmp_path: Path) -> None:
    """``--max-turns=1`` ends after the tool's result."""
    with Child(tmp_path, "--max-turns=1", "--allowedTools=Bash") as child:
        result = child.result(f"work {TOUCH}")
    assert (result["subtype"], result["is_error"]) == ("error_max_turns", True)
    assert result["errors"] == ["Reached maximum number of turns (1)"]
