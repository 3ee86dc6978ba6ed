"""Hooks of the simulated CLI: registered, asked through the host, obeyed."""

from pathlib import Path
from typing import Any

import pytest

from tests.simulator.cli_child import Child, Frame, is_init, is_result, tool_results

TOUCH = 'work [[sim tool="Bash:touch made"]]'


def group(*ids: str, **more: Any) -> list[Frame]:
    return [{"hookCallbackIds": list(ids), "timeout": 10, **more}]


def asked(child: Child) -> Frame:
    """The next question to a hook."""
    return child.until(lambda frame: frame.get("request", {}).get("subtype") == "hook_callback")


def answer(child: Child, question: Frame, response: Any) -> None:
    """Answer it; a text is an error."""
    body = {"subtype": "success", "request_id": question["request_id"], "response": response}
    if isinstance(response, str):
        body = {"subtype": "error", "request_id": question["request_id"], "error": response}
    child.send({"type": "control_response", "response": body})


def decided(**decision: Any) -> Frame:
    return {"hookSpecificOutput": {"hookEventName": "PreToolUse", **decision}}


@pytest.mark.parametrize(
    ("response", "runs", "asks"),
    [
        (decided(permissionDecision="deny", permissionDecisionReason="no"), False, False),
        (decided(permissionDecision="allow"), True, False),
        (decided(permissionDecision="ask"), False, True),
        ({"decision": "block", "reason": "no"}, False, False),
        ({"decision": "approve"}, True, False),
        ({}, False, True),
        ({"continue": False}, False, True),
        ("broken", False, True),
        (decided(permissionDecision="perhaps"), False, True),
        ({"decision": ["block"]}, False, True),
        ([], False, True),
    ],
)
def test_a_hook_before_a_tool_decides_or_leaves_it_to_the_user(
    tmp_path: Path, response: Any, runs: bool, asks: bool
) -> None:
    """Only a proper answer decides; whatever is none, an error among it, counts as empty, and the user is asked."""
    with Child(tmp_path) as child:
        child.ask("initialize", hooks={"PreToolUse": group("h", matcher="Bash")})
        child.say(TOUCH)
        question = asked(child)
        answer(child, question, response)
        last = child.until(lambda frame: is_result(frame) or frame.get("request", {}).get("subtype") == "can_use_tool")
        assert question["request"]["input"]["tool_input"]["command"] == "touch made"
        assert is_result(last) is not asks
        assert (child.work / "made").exists() is runs


@pytest.mark.parametrize("response", ["broken", {"decision": "perhaps"}, None, {"continue": 5}])
def test_a_hook_that_must_not_fail_blocks_when_it_does(tmp_path: Path, response: Any) -> None:
    """``onFailure: block``: an error or an invalid answer keeps the tool from running, though a rule allows it."""
    with Child(tmp_path) as child:
        child.ask("initialize", hooks={"PreToolUse": group("h", onFailure="block")})
        child.ask("apply_flag_settings", settings={"permissions": {"allow": ["Bash(touch:*)"]}})
        child.say(TOUCH)
        answer(child, asked(child), response)
        result = child.until(is_result)
        (block,) = tool_results(child.frames)
        assert not (child.work / "made").exists()
    assert "onFailure" in block["content"]
    assert [row["tool_name"] for row in result["permission_denials"]] == ["Bash"]


def test_a_silent_hook_blocks_after_its_timeout(tmp_path: Path) -> None:
    """The question is withdrawn, the tool does not run, the turn goes on."""
    with Child(tmp_path) as child:
        child.ask("initialize", hooks={"PreToolUse": [{"hookCallbackIds": ["h"], "timeout": 0.2}]})
        child.ask("apply_flag_settings", settings={"permissions": {"allow": ["Bash(touch:*)"]}})
        frames = child.turn(TOUCH)
        assert not (child.work / "made").exists()
    withdrawn = [frame["request_id"] for frame in frames if frame["type"] == "control_cancel_request"]
    questions = [frame["request_id"] for frame in frames if frame["type"] == "control_request"]
    assert withdrawn == questions
    assert "did not respond before its timeout" in tool_results(frames)[0]["content"]
    assert frames[-1]["subtype"] == "success"


def test_rules_beat_a_hook_that_allows(tmp_path: Path) -> None:
    """A deny rule denies and an ask rule asks, whatever a hook allows."""
    with Child(tmp_path) as child:
        child.ask("initialize", hooks={"PreToolUse": group("h")})
        for behavior in ("deny", "ask"):
            child.ask("apply_flag_settings", settings={"permissions": {behavior: ["Bash(touch:*)"]}})
            child.say(TOUCH)
            answer(child, asked(child), decided(permissionDecision="allow"))
            if behavior == "ask":
                prompt = child.until(lambda frame: frame["type"] == "control_request")
                answer(child, prompt, {"behavior": "deny", "message": "no"})
            child.until(is_result)
        assert not (child.work / "made").exists()


def test_all_hooks_are_asked_at_once_and_the_strictest_wins(tmp_path: Path) -> None:
    """Matchers choose by name, list, pattern or anything; one that is no pattern never matches."""
    groups = [
        *group("name", matcher="Bash"), *group("list", matcher="Read|Bash"), *group("pattern", matcher="B.*h"),
        *group("star", matcher="*"), *group("none"), *group("other", matcher="Read"), *group("broken", matcher="("),
        *group("case", matcher="bash"),
    ]  # fmt: skip
    with Child(tmp_path) as child:
        child.ask("initialize", hooks={"PreToolUse": groups})
        child.say(TOUCH)
        questions = [asked(child) for _ in range(5)]
        names = [question["request"]["callback_id"] for question in questions]
        for question, decision in zip(questions, ("allow", "ask", "deny", "allow", "allow"), strict=True):
            answer(child, question, decided(permissionDecision=decision, permissionDecisionReason=decision))
        child.until(is_result)
        assert not (child.work / "made").exists()
    assert names == ["name", "list", "pattern", "star", "none"]


@pytest.mark.parametrize("hooks", ["x", [], {"Stop": "x"}, {"Stop": [{}]}, {"Stop": [{"hookCallbackIds": "a"}]}])
def test_malformed_hooks_are_refused(tmp_path: Path, hooks: Any) -> None:
    """The answer says what hooks are made of, and a proper ``initialize`` can follow."""
    with Child(tmp_path) as child:
        assert "hooks must map hook events" in child.ask("initialize", hooks=hooks)["error"]
        assert child.ask("initialize", hooks={"Stop": group("h")})["response"]["hooks_applied"] is True


def test_a_later_initialize_replaces_all_hooks(tmp_path: Path) -> None:
    """Also with none."""
    with Child(tmp_path) as child:
        child.ask("initialize", hooks={"PreToolUse": group("one")})
        child.ask("initialize", hooks={"PreToolUse": group("two")})
        child.say('work [[sim tool="Bash:echo hi"]]')
        question = asked(child)
        answer(child, question, {})
        child.until(is_result)
        child.ask("initialize")
        frames = child.turn('work [[sim tool="Bash:echo hi"]]')
    assert question["request"]["callback_id"] == "two"
    assert not [frame for frame in frames if frame["type"] == "control_request"]


def test_a_hook_rewrites_a_call_and_hears_its_result(tmp_path: Path) -> None:
    """``updatedInput`` is what runs; PostToolUse hears it, PostToolUseFailure hears of a failure."""
    hooks = {name: group(name) for name in ("PreToolUse", "PostToolUse", "PostToolUseFailure")}
    endings = []
    with Child(tmp_path) as child:
        child.ask("initialize", hooks=hooks)
        for command, name in (("echo instead", "PostToolUse"), ("false", "PostToolUseFailure")):
            child.say(TOUCH)
            rewritten = decided(permissionDecision="allow", updatedInput={"command": command})
            answer(child, asked(child), rewritten)
            heard = asked(child)
            answer(child, heard, {"continue": False} if command == "false" else {})
            endings.append(child.until(is_result)["terminal_reason"])
            assert heard["request"]["callback_id"] == name
            assert heard["request"]["input"]["tool_input"] == {"command": command}
        assert not (child.work / "made").exists()
    assert endings == ["completed", "hook_stopped"]


def test_a_prompt_is_blocked_stopped_or_timed_out(tmp_path: Path) -> None:
    """The result says why, no model is asked, and the next prompt passes."""
    with Child(tmp_path) as child:
        child.ask("initialize", hooks={"UserPromptSubmit": [{"hookCallbackIds": ["h"], "timeout": 0.3}]})
        texts = []
        for response in ({"decision": "block", "reason": "not that"}, {"continue": False, "stopReason": "x"}, None, {}):
            child.say("hello [[sim tokens=2]]")
            question = asked(child)
            if response is not None:
                answer(child, question, response)
            texts.append(child.until(is_result)["result"])
        inits = [frame for frame in child.frames if is_init(frame)]
    for text, expected in zip(texts, ("not that", "stopped by hook: x", "timed out after 300ms", ""), strict=True):
        assert expected in text
    assert (texts[3], len(inits)) == ("hello0 hello1 ", 4)


def test_a_hook_sends_the_model_on(tmp_path: Path) -> None:
    """What a Stop hook says is answered as if the user had said it, in the same turn."""
    with Child(tmp_path) as child:
        child.ask("initialize", hooks={"Stop": group("h")})
        child.say("hello [[sim tokens=2]]")
        first = asked(child)
        answer(child, first, {"decision": "block", "reason": "once more [[sim text=done]]"})
        second = asked(child)
        answer(child, second, {})
        result = child.until(is_result)
    assert [question["request"]["input"]["stop_hook_active"] for question in (first, second)] == [False, True]
    assert (result["result"], result["num_turns"]) == ("done", 2)
