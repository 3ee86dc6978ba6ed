"""Questions of the CLI to a person at a terminal: what is asked, and what a typed line answers.

Pure.  Caller: ``broker.chat.terminal``.
"""

from typing import Any

import msgspec

Frame = dict[str, Any]
YES = ("y", "yes")
MAX_SHOWN = 2000


def is_question(frame: Frame) -> bool:
    """Whether a person can answer this request of the CLI; hooks and MCP messages are for programs."""
    return frame["request"]["subtype"] in ("can_use_tool", "elicitation")


def question(frame: Frame) -> str:
    """What to show, ending with how to answer."""
    request = frame["request"]
    if request["subtype"] == "elicitation":
        schema = request.get("requested_schema")
        wanted = f"\n{_shown(schema)}" if schema else ""
        return f"{request['mcp_server_name']} asks: {request['message']}{wanted}\nanswer as JSON, or empty to decline"
    if request["tool_name"] == "AskUserQuestion":
        lines = [_choices(asked) for asked in request["input"].get("questions", [])]
        return "\n".join([*lines, "answer (one line; with several questions divide by ;), or empty to refuse"])
    return f"{request['tool_name']} {_shown(request['input'])}\nallow? [y/N]"


def answer(frame: Frame, line: str) -> Frame:
    """The ``control_response`` frame for a typed line.  Raises ``ValueError`` where JSON is needed and this is none."""
    request, line = frame["request"], line.strip()
    response: Frame
    if request["subtype"] == "elicitation":
        content = _json(line) if line else None
        if line and not isinstance(content, dict):
            raise ValueError("an object is needed")
        response = {"action": "accept", "content": content} if line else {"action": "decline"}
    elif request["tool_name"] == "AskUserQuestion" and line:
        asked = [each.get("question", "") for each in request["input"].get("questions", [])]
        said = [part.strip() for part in line.split(";")] if len(asked) > 1 else [line]
        answers = dict(zip(asked, said, strict=False))
        response = {"behavior": "allow", "updatedInput": {**request["input"], "answers": answers}}
    elif request["tool_name"] != "AskUserQuestion" and line.lower() in YES:
        response = {"behavior": "allow", "updatedInput": request["input"]}
    else:
        response = {"behavior": "deny", "message": "denied by the user"}
    body = {"subtype": "success", "request_id": frame["request_id"], "response": response}
    return {"type": "control_response", "response": body}


def _json(line: str) -> Any:
    try:
        return msgspec.json.decode(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _choices(asked: Frame) -> str:
    options = ", ".join(str(option.get("label", "")) for option in asked.get("options", []))
    return f"{asked.get('question', '')} ({options})"


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."
