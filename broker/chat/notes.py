"""What ``broker chat`` says beside the conversation: frames that are neither text nor a question, in one line or a few.

Pure.  Caller: ``broker.chat.terminal``.
"""

from typing import Any

import msgspec

Frame = dict[str, Any]
MAX_SHOWN = 4000


def note_of(frame: Frame, instance: str) -> str:
    """A note for a person, or nothing.  ``instance`` is this client's own: its messages were typed here."""
    match frame:
        case {"type": "broker.waiting"}:
            return f"waiting for a process, place {frame['position']} ({frame['reason']})"
        case {"type": "broker.message", "state": "queued"}:
            return f"queued as {frame['id']}"
        case {"type": "broker.message", "state": "started"} if frame["by"] != instance:
            return f"{frame['by'] or 'somebody'}: {_text_of(frame['content'])}"
        case {"type": "broker.state"}:
            changed = {key: value for key, value in frame.items() if key not in ("type", "seq", "total")}
            return " ".join(f"{key}={_plain(value)}" for key, value in changed.items())
        case {"type": "broker.debug"}:
            return f"debug: {frame['line']}"
        case {"type": "broker.history"}:
            lines = [f"{each['type']}: {_text_of(each['message']['content'])}" for each in frame["frames"]]
            return "\n".join(["(there is more)"] * frame["more"] + lines) or "nothing was said yet"
        case {"type": "control_response", "response": {"subtype": "success"}}:
            return _response(frame["response"].get("response"))
        case {"type": "control_response"}:
            return f"refused: {frame['response'].get('error')}"
        case {"type": "system", "subtype": "model_fallback" | "informational", "content": str(content)}:
            return content
        case _:
            return ""


def _response(response: Any) -> str:
    if isinstance(response, dict) and isinstance(response.get("mcpServers"), list):
        rows = [f"{s.get('name')} {s.get('status')} {s.get('error') or ''}".rstrip() for s in response["mcpServers"]]
        return "\n".join(rows) or "no MCP servers"
    return _plain(response) if response else ""


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return " ".join(str(block.get("text") or f"[{block.get('type')}]") for block in blocks if isinstance(block, dict))


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."
