"""Tools that are made of the user's answer: a question with choices, and leaving plan mode.

Caller: ``simulator.tool_use``, once the user has allowed the call.
"""

import json
from typing import TYPE_CHECKING, Any

from simulator.messages import Message
from simulator.tools import ToolResult

if TYPE_CHECKING:
    from simulator.session import Session

_UNANSWERED = "The user did not answer the questions."


def run(session: "Session", tool: str, given: Message) -> ToolResult:
    """What an allowed call amounts to."""
    if tool == "AskUserQuestion":
        return _answers(given)
    session.settings.mode = "default"
    session.system("status", status=None, permissionMode="default")
    text = "User has approved exiting plan mode. You can now proceed."
    return ToolResult(text, False, {"plan": given.get("plan"), "isAgent": False})


def _answers(given: Message) -> ToolResult:
    """The answers stand in the input, where the user's permission has put them."""
    answers: Any = given.get("answers")
    answers = answers if isinstance(answers, dict) else {}
    said = ", ".join(f"{json.dumps(question)}={json.dumps(answer)}" for question, answer in answers.items())
    text = f"Your questions have been answered: {said}. You can now continue with these answers in mind."
    shown = {"questions": given.get("questions"), "answers": answers}
    return ToolResult(text if answers else _UNANSWERED, False, shown)
