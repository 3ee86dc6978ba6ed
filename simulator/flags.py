"""The command line of the CLI: which flags exist, which take a value, and what is refused.

Every flag that the real program documents is accepted; those that change nothing here are accepted and ignored, as long
as their form is right.  Which values are refused stands in ``simulator.flag_values``.  Pure, but for ``--settings``.
Caller: ``simulator.cli``.
"""

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from simulator import flag_values
from simulator.flag_values import UsageError

PERMISSION_MODES: Final = ("acceptEdits", "auto", "bypassPermissions", "default", "dontAsk", "plan")

SWITCHES: Final = frozenset(
    {
        "print", "verbose", "version", "include-partial-messages", "include-hook-events", "replay-user-messages",
        "continue", "fork-session", "no-session-persistence", "exclude-dynamic-system-prompt-sections",
        "dangerously-skip-permissions", "allow-dangerously-skip-permissions", "strict-mcp-config", "ide", "chrome",
        "no-chrome", "init", "init-only", "maintenance", "bare", "safe-mode", "disable-slash-commands",
        "forward-subagent-text", "session-mirror", "await-initialize", "managed-settings-in-initialize", "await-claim",
        "enable-auth-status",
    }
)  # fmt: skip
ONE_VALUE: Final = frozenset(
    {
        "input-format", "output-format", "session-id", "resume-session-at", "resume-drops-turn", "model",
        "fallback-model", "system-prompt", "system-prompt-file", "append-system-prompt", "append-system-prompt-file",
        "append-subagent-system-prompt", "permission-mode", "permission-prompt-tool", "permission-prompts", "settings",
        "setting-sources", "managed-settings", "agents", "agent", "max-turns", "max-budget-usd", "task-budget",
        "json-schema", "effort", "thinking", "max-thinking-tokens", "thinking-display", "debug-file", "name",
        "autocompact", "channels", "project-config-root", "initialize-fields", "sdk-url", "plugin-url",
    }
)  # fmt: skip
MANY_VALUES: Final = frozenset(
    {
        "allowedTools", "disallowedTools", "tools", "mcp-config", "add-dir", "plugin-dir", "plugin-dir-no-mcp", "betas",
    }
)  # fmt: skip
OPTIONAL_VALUE: Final = frozenset({"resume", "debug", "worktree", "prompt-suggestions"})
_SHORT: Final = {
    "p": "print", "c": "continue", "r": "resume", "v": "version", "n": "name", "d": "debug", "w": "worktree",
}  # fmt: skip
_SPELLINGS: Final = {"allowed-tools": "allowedTools", "disallowed-tools": "disallowedTools"}
_UNSPLIT: Final = ("add-dir", "plugin-dir", "plugin-dir-no-mcp", "betas")
"""Lists whose values may hold a comma: one flag for each."""


class Flags(NamedTuple):
    """The flags that matter here.  ``resume`` is None without the flag and empty when its value is missing."""

    version: bool = False
    partial: bool = False
    replay: bool = False
    persist: bool = True
    session_id: str | None = None
    resume: str | None = None
    continue_latest: bool = False
    fork: bool = False
    model: str | None = None
    permission_mode: str = "default"
    may_bypass: bool = False
    prompts_on_stdio: bool = False
    allowed: tuple[str, ...] = ()
    disallowed: tuple[str, ...] = ()
    tools: tuple[str, ...] | None = None
    max_turns: float | None = None
    """Requests per turn; 0 is no limit, as with the real program."""
    max_budget_usd: float | None = None
    """What the process may cost in its life."""
    fallbacks: tuple[str, ...] = ()
    """Models, or aliases, that are asked in turn when ``model`` does not answer."""
    schema: str | None = None
    """``--json-schema``, as text."""
    effort: str | None = None
    betas: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    debug: str | None = None
    """The filter of ``--debug``, empty without one; None: nothing is logged."""
    debug_file: str | None = None
    resume_at: str | None = None
    """The uuid of the last message that a resumed conversation keeps."""
    settings: str | None = None
    setting_sources: tuple[str, ...] = ("user", "project", "local")
    bare: bool = False
    slash_commands: bool = True


def parse(arguments: Sequence[str]) -> Flags:
    """Read a command line without the program's name; raises ``UsageError``."""
    found = _scan(arguments)
    if "version" in found:
        return Flags(version=True)
    flag_values.check({name: _one(found, name) or "" for name in found})
    mode = _one(found, "permission-mode") or "default"
    if "dangerously-skip-permissions" in found:
        mode = "bypassPermissions"
    sources = _one(found, "setting-sources")
    turns, budget = _one(found, "max-turns"), _one(found, "max-budget-usd")
    debug_file = _one(found, "debug-file") or None
    return Flags(
        partial="include-partial-messages" in found,
        replay="replay-user-messages" in found,
        persist="no-session-persistence" not in found,
        session_id=_one(found, "session-id"),
        resume=_one(found, "resume"),
        continue_latest="continue" in found,
        fork="fork-session" in found,
        model=_one(found, "model") or None,
        permission_mode="default" if mode == "manual" else mode,
        may_bypass=mode == "bypassPermissions" or "allow-dangerously-skip-permissions" in found,
        prompts_on_stdio=_one(found, "permission-prompt-tool") == "stdio",
        allowed=_list(found, "allowedTools"),
        disallowed=_list(found, "disallowedTools"),
        tools=_list(found, "tools") if "tools" in found else None,
        max_turns=None if turns is None else flag_values.number(turns),
        max_budget_usd=None if budget is None else flag_values.number(budget),
        fallbacks=tuple(name for name in (_one(found, "fallback-model") or "").split(",") if name),
        schema=_one(found, "json-schema"),
        effort=_one(found, "effort"),
        betas=_list(found, "betas"),
        directories=_list(found, "add-dir"),
        plugins=_list(found, "plugin-dir"),
        # The file alone is enough.
        debug="" if debug_file and "debug" not in found else _one(found, "debug"),
        debug_file=debug_file,
        resume_at=_one(found, "resume-session-at"),
        settings=_one(found, "settings"),
        setting_sources=Flags().setting_sources if sources is None else tuple(s for s in sources.split(",") if s),
        bare="bare" in found,
        slash_commands="disable-slash-commands" not in found,
    )


def flag_settings(flags: Flags) -> dict[str, Any]:
    """The settings layer of ``--settings``: JSON, or a file that holds it; raises ``UsageError``."""
    if not flags.settings:
        return {}
    text = flags.settings
    try:
        if not text.lstrip().startswith("{"):
            with open(text, encoding="utf-8") as file:
                text = file.read()
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"Error processing settings: {error}") from error
    if not isinstance(value, dict):
        raise UsageError("Error processing settings: not an object")
    return value


def _scan(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Every flag with the values it was given; positional arguments are skipped, as a prompt that nobody reads."""
    found: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            continue
        name, equals, value = _name(word)
        values = found.setdefault(name, [])
        if name in SWITCHES:
            if equals:
                raise UsageError(f"error: unknown option '{word}'")
        elif equals:
            values.append(value)
        elif name in ONE_VALUE:
            if not rest:
                raise UsageError(f"error: option '--{name} <value>' argument missing")
            values.append(rest.pop(0))
        else:
            most = 1 if name in OPTIONAL_VALUE else len(rest)
            while rest and most > 0 and not rest[0].startswith("-"):
                values.append(rest.pop(0))
                most -= 1
            if not values and name in MANY_VALUES:
                raise UsageError(f"error: option '--{name} <values...>' argument missing")
    return found


def _name(word: str) -> tuple[str, str, str]:
    head, equals, value = word.partition("=")
    name = head[2:] if head.startswith("--") else _SHORT.get(head[1:], "")
    name = _SPELLINGS.get(name, name)
    if name not in SWITCHES | ONE_VALUE | MANY_VALUES | OPTIONAL_VALUE:
        raise UsageError(f"error: unknown option '{head}'")
    return name, equals, value


def _one(found: dict[str, list[str]], name: str) -> str | None:
    """The last value of a flag, empty if it has none, None if the flag is not there."""
    values = found.get(name)
    return None if values is None else values[-1] if values else ""


def _list(found: dict[str, list[str]], name: str) -> tuple[str, ...]:
    """Values of a list flag: repeated, separated by blanks or by commas that do not stand in parentheses."""
    if name in _UNSPLIT:
        return tuple(found.get(name, ()))
    items: list[str] = []
    for value in found.get(name, []):
        depth, item = 0, ""
        for char in value + ",":
            depth += (char == "(") - (char == ")")
            if char == "," and depth <= 0:
                items.append(item.strip())
                item = ""
            else:
                item += char
    return tuple(item for item in items if item)
