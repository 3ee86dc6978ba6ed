"""Who may run which tool: rules, modes, and the commands that ask nobody.

Pure.  A rule is ``Tool`` or ``Tool(content)``; ``mcp__server`` means all tools of that server.  For Bash the content is
a command, ``command:*`` or a pattern with ``*``; a line of several commands is allowed only if each of them is, and
denied if one of them is.  Order: deny, bypass, ask, allow, mode, read-only commands, and what is left asks.
Callers: ``simulator.tools``, ``simulator.settings``.
"""

import os
import re
from typing import Any, Final, NamedTuple

READ_ONLY_COMMANDS: Final = frozenset(
    {
        "basename", "cat", "date", "dirname", "du", "echo", "false", "file", "find", "grep", "head", "hostname", "id",
        "ls", "printf", "pwd", "sed", "sleep", "sort", "stat", "tail", "test", "tr", "true", "uname", "uniq", "wc",
        "which", "whoami",
    }
)  # fmt: skip
"""Commands that the real program runs unasked; it looks closer than their name, this table does not."""
EDITING_COMMANDS: Final = frozenset({"cp", "mkdir", "mv", "rm", "rmdir", "sed", "touch"})
READING_TOOLS: Final = frozenset({"Task", "Read", "ToolSearch", "TaskStop", "ListAgents"})
EDITING_TOOLS: Final = frozenset({"Edit", "NotebookEdit", "Write"})
_RULE: Final = re.compile(r"([^()]+)(?:\((.*)\))?", re.DOTALL)
_ANOTHER_WAY: Final = (
    "IMPORTANT: You *may* attempt to accomplish this action using other tools that might naturally be used to "
    "accomplish this goal, e.g. using head instead of cat. But you *should not* attempt to work around this "
    "denial in malicious ways, e.g. do not use your ability to run tests to execute non-test actions. You should "
    "only try to work around this restriction in reasonable ways that do not attempt to bypass the intent behind "
    "this denial. If you believe this capability is essential to complete the user's request, STOP and explain to "
    "the user what you were trying to do and why you need this permission. Let the user decide how to proceed."
)
_SEPARATORS: Final = re.compile(r"&&|\|\||[;|&\n]")


class Rules(NamedTuple):
    """Rule texts by what they do, and the directories that count as the working directory does."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()


class Decision(NamedTuple):
    """``allow``, ``ask`` or ``deny``; ``reason`` is the CLI's ``reason_type``, ``message`` what the model is told."""

    behavior: str
    reason: str
    message: str = ""


def decide(tool: str, given: dict[str, Any], mode: str, rules: Rules, cwd: str) -> Decision:
    """What happens to a tool call before anybody is asked."""
    if _is_matched(rules.deny, tool, given, every=False):
        what = f" with command {given.get('command')}" if tool == "Bash" else ""
        reason = "subcommandResults" if tool == "Bash" else "rule"
        return Decision("deny", reason, f"Permission to use {tool}{what} has been denied.")
    if mode == "bypassPermissions":
        return Decision("allow", "mode")
    must_ask = _is_matched(rules.ask, tool, given, every=False)
    if not must_ask and _is_matched(rules.allow, tool, given, every=True):
        return Decision("allow", "rule")
    if not must_ask and (mode == "auto" or _is_harmless(tool, given, mode, (cwd, *rules.directories))):
        return Decision("allow", "mode")
    if mode == "dontAsk":
        text = f"Permission to use {tool} has been denied because Claude Code is running in don't ask mode."
        return Decision("deny", "mode", f"{text} {_ANOTHER_WAY}")
    return Decision("ask", "rule" if must_ask else "other")


def rule_text(rule: Any) -> str | None:
    """A rule of a permission answer (``{toolName, ruleContent?}``) as text, None for anything else."""
    if not isinstance(rule, dict) or not isinstance(rule.get("toolName"), str):
        return None
    content = rule.get("ruleContent")
    return f"{rule['toolName']}({content})" if isinstance(content, str) and content else str(rule["toolName"])


def removed_tools(rules: tuple[str, ...]) -> set[str]:
    """Tools that ``--disallowedTools`` takes out altogether: rules that are a bare name."""
    return {rule for rule in rules if "(" not in rule}


def suggestions(tool: str, given: dict[str, Any], cwd: str) -> list[dict[str, Any]]:
    """``permission_suggestions`` of a prompt."""
    set_mode = {"type": "setMode", "mode": "acceptEdits", "destination": "session"}
    if tool != "Bash":
        return [set_mode]
    rules = [{"toolName": "Bash", "ruleContent": f"{command} *"} for command in commands(str(given.get("command", "")))]
    add = {"type": "addRules", "rules": rules, "behavior": "allow", "destination": "localSettings"}
    add_directory = {"type": "addDirectories", "directories": [cwd], "destination": "session"}
    return [add, add_directory, set_mode]


def blocked_path(tool: str, given: dict[str, Any], cwd: str) -> str | None:
    """``blocked_path`` of a prompt: the file in question; for a command its last word, as good as any guess."""
    words = str(given.get("command", "")).split() if tool == "Bash" else []
    path = given.get("file_path") or (words[-1] if words else None)
    return os.path.join(cwd, path) if isinstance(path, str) else None


def commands(line: str) -> list[str]:
    """The single commands of a shell line (quotes are not looked at: a separator in a quote splits too)."""
    return [part.strip() for part in _SEPARATORS.split(line) if part.strip()]


def _is_matched(rules: tuple[str, ...], tool: str, given: dict[str, Any], *, every: bool) -> bool:
    contents = []
    for rule in rules:
        found = _RULE.fullmatch(rule.strip())
        if found is None or not _is_tool(found[1].strip(), tool):
            continue
        if found[2] is None or found[2] == "*":
            return True
        contents.append(found[2])
    if not contents:
        return False
    values = [value for value in given.values() if isinstance(value, str)]
    if tool != "Bash":
        return any(_is_content(content, value) for content in contents for value in values)
    parts = commands(str(given.get("command", "")))
    hits = [any(_is_content(content, part) for content in contents) for part in parts]
    return bool(hits) and (all(hits) if every else any(hits))


def _is_tool(name: str, tool: str) -> bool:
    if name in {"*", tool}:
        return True
    server = name.removesuffix("*").rstrip("_")
    return name.startswith("mcp__") and tool.startswith(f"{server}__")


def _is_content(content: str, value: str) -> bool:
    prefix = content[:-2] if content.endswith((":*", " *")) else None
    if prefix is not None:
        return value == prefix or value.startswith(prefix + " ")
    pattern = ".*".join(re.escape(part) for part in content.split("*"))
    return re.fullmatch(pattern, value, re.DOTALL) is not None


def _is_harmless(tool: str, given: dict[str, Any], mode: str, places: tuple[str, ...]) -> bool:
    if tool == "Bash":
        line = str(given.get("command", ""))
        names = {command.split()[0] for command in commands(line)}
        allowed = READ_ONLY_COMMANDS | (EDITING_COMMANDS if mode == "acceptEdits" else frozenset())
        return ">" not in line and "$(" not in line and "`" not in line and bool(names) and names <= allowed
    if tool in EDITING_TOOLS:
        return mode == "acceptEdits" and _is_inside(given, places)
    return tool in READING_TOOLS and ("file_path" not in given or _is_inside(given, places))


def _is_inside(given: dict[str, Any], places: tuple[str, ...]) -> bool:
    path = os.path.normpath(os.path.join(places[0], str(given.get("file_path", ""))))
    return any(path.startswith(place + os.sep) for place in places)
