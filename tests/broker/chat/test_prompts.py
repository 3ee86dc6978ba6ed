"""What the CLI asks a person at a terminal, and what the typed line answers; and what is said beside it."""

from typing import Any

import pytest

from broker.chat.notes import note_of
from broker.chat.prompts import MAX_SHOWN, answer, is_question, question


def asked(subtype: str = "can_use_tool", **fields: Any) -> dict[str, Any]:
    return {"type": "control_request", "request_id": "r1", "request": {"subtype": subtype, **fields}}


BASH = asked(tool_name="Bash", input={"command": "ls"})
CHOICE = {"question": "Which colour?", "options": [{"label": "red"}, {"label": "blue"}]}
ONE = asked(tool_name="AskUserQuestion", input={"questions": [CHOICE]})
TWO = asked(tool_name="AskUserQuestion", input={"questions": [CHOICE, {"question": "Why?"}]})
FORM = asked("elicitation", mcp_server_name="acme", message="Your name?", requested_schema={"type": "object"})


def response(frame: dict[str, Any], line: str) -> dict[str, Any]:
    """The payload of the answer, whose envelope names the request."""
    made = answer(frame, line)
    assert made["type"] == "control_response"
    assert (made["response"]["subtype"], made["response"]["request_id"]) == ("success", "r1")
    found: dict[str, Any] = made["response"]["response"]
    return found


def test_a_tool_is_allowed_by_yes_only() -> None:
    """Everything else, the empty line too, is no."""
    assert question(BASH).splitlines() == ['Bash {"command":"ls"}', "allow? [y/N]"]
    for line in ("y", " YES "):
        assert response(BASH, line) == {"behavior": "allow", "updatedInput": {"command": "ls"}}
    for line in ("", "n", "yep", "no"):
        assert response(BASH, line)["behavior"] == "deny"


def test_questions_of_the_agent_are_answered_in_words() -> None:
    """One question takes the whole line, several are divided by semicolons, nothing refuses."""
    assert question(ONE).startswith("Which colour? (red, blue)\nanswer")
    assert response(ONE, "a; b")["updatedInput"]["answers"] == {"Which colour?": "a; b"}
    assert response(TWO, "red; because")["updatedInput"]["answers"] == {"Which colour?": "red", "Why?": "because"}
    assert response(TWO, "red")["updatedInput"]["answers"] == {"Which colour?": "red"}
    assert response(ONE, "")["behavior"] == "deny"


def test_a_form_is_answered_as_json() -> None:
    """An object accepts, the empty line declines, anything else is asked again."""
    assert question(FORM).startswith("acme asks: Your name?\n")
    assert response(FORM, '{"name":"Ann"}') == {"action": "accept", "content": {"name": "Ann"}}
    assert response(FORM, " ") == {"action": "decline"}
    for line in ("Ann", "[1]", "{", "[" * 50_000):
        with pytest.raises(ValueError, match=r".+"):
            answer(FORM, line)


def test_what_is_for_programs_is_no_question() -> None:
    """Hooks and MCP messages are answered by code."""
    assert is_question(BASH)
    assert is_question(FORM)
    assert not is_question(asked("hook_callback"))
    assert not is_question(asked("mcp_message"))


def test_a_long_input_is_cut() -> None:
    """A tool's input of a megabyte does not fill the screen."""
    assert len(question(asked(tool_name="Write", input={"content": "x" * 10**6}))) < MAX_SHOWN + 100


def test_notes() -> None:
    """One line or a few for what is neither text nor a question; nothing for the rest."""
    said = {"type": "user", "message": {"content": "hi"}}
    reply = {"type": "assistant", "message": {"content": [{"type": "text", "text": "ho"}, {"type": "tool_use"}]}}
    notes: list[tuple[dict[str, Any], str]] = [
        ({"type": "broker.waiting", "position": 2, "reason": "pool"}, "waiting for a process, place 2 (pool)"),
        ({"type": "broker.message", "state": "started", "by": "other", "content": "hi"}, "other: hi"),
        ({"type": "broker.message", "state": "started", "by": "me", "content": "hi"}, ""),
        ({"type": "broker.message", "state": "queued", "id": "m-1", "by": "me"}, "queued as m-1"),
        ({"type": "broker.state", "model": "opus", "seq": 3}, "model=opus"),
        ({"type": "broker.debug", "line": "[MCP] x", "seq": 4}, "debug: [MCP] x"),
        ({"type": "broker.history", "frames": [said, reply], "more": True},
         "(there is more)\nuser: hi\nassistant: ho [tool_use]"),
        ({"type": "broker.history", "frames": [], "more": False}, "nothing was said yet"),
        ({"type": "control_response", "response": {"subtype": "error", "error": "no"}}, "refused: no"),
        ({"type": "control_response", "response": {"subtype": "success", "response": {"a": 1}}}, '{"a":1}'),
        ({"type": "control_response", "response": {"subtype": "success"}}, ""),
        ({"type": "control_response", "response": {"subtype": "success", "response": {"mcpServers": [
            {"name": "acme", "status": "failed", "error": "401"}]}}}, "acme failed 401"),
        ({"type": "stream_event"}, ""),
    ]  # fmt: skip
    for frame, note in notes:
        assert note_of(frame, "me") == note
