"""Read, Write and Edit, done for real: what they do to the file and what they answer.

Relative paths count from the working directory, missing folders are made, as with the real program.
Callers: ``simulator.tools``, ``simulator.tool_use``.
"""

import os
from typing import Any, Final, NamedTuple

MAX_FILE_BYTES: Final = 10_000_000
CONTEXT_LINES: Final = 3
_NEEDED: Final = {
    "Read": ("file_path",),
    "Write": ("file_path", "content"),
    "Edit": ("file_path", "old_string", "new_string"),
}
TOOLS: Final = frozenset(_NEEDED)
_CURRENT: Final = " (file state is current in your context — no need to Read it back)"


class Refused(Exception):
    """The call cannot be done; the text is what the model is told."""


class Answer(NamedTuple):
    """What the model is told, and the ``tool_use_result`` that the user interface would show."""

    content: str
    shown: dict[str, Any]


def problem(tool: str, given: dict[str, Any]) -> str | None:
    """What is wrong with a call before anybody is asked whether it may run."""
    for name in _NEEDED.get(tool, ()):
        if not isinstance(given.get(name), str):
            issue = f"The required parameter `{name}` is missing"
            return f"InputValidationError: {tool} failed due to the following issue:\n{issue}"
    if tool == "Edit":
        try:
            if given["old_string"] not in _load(given["file_path"]):
                return f"String to replace not found in file.\nString: {given['old_string']}"
        except Refused as error:
            return str(error)
    return None


def run(tool: str, given: dict[str, Any]) -> Answer:
    """Do what an allowed call asks for; raises ``Refused``."""
    try:
        return {"Read": _read, "Write": _write, "Edit": _edit}[tool](given)
    except OSError as error:
        raise Refused(f"{error.strerror}, '{given['file_path']}'") from error


def _read(given: dict[str, Any]) -> Answer:
    lines = _load(given["file_path"]).split("\n")
    start = max(1, _count(given.get("offset"), 1))
    chosen = lines[start - 1 :][: _count(given.get("limit"), len(lines))]
    numbered = "\n".join(f"{start + number}\t{line}" for number, line in enumerate(chosen))
    file = {
        "filePath": given["file_path"], "content": "\n".join(chosen), "numLines": len(chosen), "startLine": start,
        "totalLines": len(lines),
    }  # fmt: skip
    return Answer(numbered, {"type": "text", "file": file})


def _write(given: dict[str, Any]) -> Answer:
    path, content = given["file_path"], given["content"]
    original = _load(path) if os.path.lexists(path) else None
    _store(path, content)
    said = f"File created successfully at: {path}"
    if original is not None:
        said = f"The file {path} has been updated successfully."
    patch = [] if original is None else _patch(original, content)
    shown = {"type": "create" if original is None else "update", "filePath": path, "content": content}
    return Answer(said + _CURRENT, {**shown, "structuredPatch": patch, "originalFile": original, "userModified": False})


def _edit(given: dict[str, Any]) -> Answer:
    path, old, new, everywhere = given["file_path"], given["old_string"], given["new_string"], given.get("replace_all")
    original = _load(path)
    changed = original.replace(old, new, -1 if everywhere else 1)
    _store(path, changed)
    how = ". All occurrences were successfully replaced." if everywhere else " successfully."
    shown = {
        "filePath": path, "oldString": old, "newString": new, "originalFile": original,
        "structuredPatch": _patch(original, changed), "userModified": False, "replaceAll": bool(everywhere),
    }  # fmt: skip
    return Answer(f"The file {path} has been updated{how}{_CURRENT}", shown)


def _load(path: str) -> str:
    if os.path.isdir(path):
        raise Refused(f"EISDIR: illegal operation on a directory, read '{path}'")
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        where = f"Note: your current working directory is {os.getcwd()}."
        raise Refused(f"File does not exist. {where}") from error


def _store(path: str, content: str) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", encoding="utf-8", errors="replace", newline="") as file:
        file.write(content)


def _patch(old_text: str, new_text: str) -> list[dict[str, Any]]:
    """The one hunk between the first and the last line that differ."""
    if old_text == new_text:
        return []
    old, new = old_text.removesuffix("\n").split("\n"), new_text.removesuffix("\n").split("\n")
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    start, behind = max(0, head - CONTEXT_LINES), min(tail, CONTEXT_LINES)
    gone, come = old[head : len(old) - tail], new[head : len(new) - tail]
    lines = [f" {line}" for line in old[start:head]] + [f"-{line}" for line in gone] + [f"+{line}" for line in come]
    lines += [f" {line}" for line in old[len(old) - tail :][:behind]]
    around = head - start + behind
    sizes = {"oldLines": len(gone) + around, "newLines": len(come) + around}
    return [{"oldStart": start + 1, "newStart": start + 1, **sizes, "lines": lines}]


def _count(value: Any, usual: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else usual
