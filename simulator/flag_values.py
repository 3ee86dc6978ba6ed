"""Values of flags that the CLI refuses at its start, and those that it only complains of.

Pure.  What is refused here ends the real 2.1.329 as well, with the same words on stderr and the exit code 1.
Callers: ``simulator.flags``, ``simulator.cli``.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from simulator import structured

_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
_BETAS: Final = ("context-1m-2025-08-07",)
# Flag -> what the usage text calls its value, and what is allowed.
_CHOICES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "permission-mode": ("mode", ("acceptEdits", "auto", "bypassPermissions", "manual", "dontAsk", "plan")),
    "input-format": ("format", ("text", "stream-json")),
    "output-format": ("format", ("text", "json", "stream-json")),
    "thinking": ("mode", ("enabled", "adaptive", "disabled")),
    "thinking-display": ("display", ("summarized", "omitted", "highlights")),
}
_NUMERIC: Final = {"max-turns": "turns", "max-thinking-tokens": "tokens", "max-budget-usd": "amount"}
_NUMBER: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", re.ASCII)
_SOURCES: Final = ("user", "project", "local")


class UsageError(Exception):
    """A command line that the program refuses: its text goes to stderr, the exit code is 1."""


def check(values: Mapping[str, str]) -> None:
    """Look at the values of a command line, by flag, empty for those without one; raises ``UsageError``."""
    for name, (what, choices) in _CHOICES.items():
        value = values.get(name)
        # "default" is the older name of a mode and the only value of a kind beside those that are listed.
        if value is not None and value not in (*choices, *(("default",) if name == "permission-mode" else ())):
            allowed = f"Allowed choices are {', '.join(choices)}."
            raise UsageError(f"error: option '--{name} <{what}>' argument '{value}' is invalid. {allowed}")
    for name, what in _NUMERIC.items():
        if name in values and (problem := _problem(name, values[name])):
            raise UsageError(f"error: option '--{name} <{what}>' argument '{values[name]}' is invalid. {problem}")
    for source in filter(None, values.get("setting-sources", "").split(",")):
        if source not in _SOURCES:
            text = f"Invalid setting source: {source}. Valid options are: {', '.join(_SOURCES)}"
            raise UsageError(f"Error processing --setting-sources: {text}")
    _check_objects(values)
    if values.get("input-format") != "stream-json" or values.get("output-format") != "stream-json":
        raise UsageError("Error: the simulator speaks --input-format=stream-json and --output-format=stream-json only.")
    if "verbose" not in values:
        raise UsageError("Error: When using --print, --output-format=stream-json requires --verbose")
    if "resume-session-at" in values and "resume" not in values:
        raise UsageError("Error: --resume-session-at requires --resume")
    if "session-id" in values and ("resume" in values or "continue" in values) and "fork-session" not in values:
        raise UsageError("Error: --session-id with --continue or --resume also needs --fork-session.")


def number(text: str) -> float:
    """A number as JavaScript reads one, near enough; NaN for what is none."""
    return float(text) if _NUMBER.fullmatch(text) else math.nan


def warnings(effort: str | None, betas: tuple[str, ...], *, is_subscriber: bool) -> Iterator[str]:
    """Lines for stderr about values that are ignored; the process starts all the same.

    ``is_subscriber``: it was started with an OAuth token.
    """
    if effort is not None and effort not in _EFFORTS:
        valid = f"Valid values: {', '.join(_EFFORTS)}."
        yield f"Warning: Unknown --effort value '{effort}' — ignoring it and using the default effort. {valid}"
    if betas and is_subscriber:
        yield "Warning: Custom betas are only available for API key users. Ignoring provided betas."
        return
    for beta in betas:
        if beta not in _BETAS:
            known = f"Only the following betas are supported: {', '.join(_BETAS)}"
            yield f"Warning: Beta header '{beta}' is not allowed. {known}"


def schema(text: str | None) -> dict[str, Any] | None:
    """``--json-schema``; raises ``UsageError`` for what is none."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"Error: --json-schema is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError("Error: --json-schema must be a JSON object")
    problem = structured.problem(value)
    if problem is not None:
        raise UsageError(f"Error: --json-schema is not a valid JSON Schema: {problem}")
    return value


def _problem(name: str, text: str) -> str | None:
    value = number(text)
    if name == "max-budget-usd":
        return None if 0 < value < math.inf else "--max-budget-usd must be a number greater than 0"
    return "must be a number" if math.isnan(value) else None


def _check_objects(values: Mapping[str, str]) -> None:
    schema(values.get("json-schema"))
    if values.get("agents"):
        try:
            json.loads(values["agents"])
        except (ValueError, RecursionError) as error:
            raise UsageError(f"Error: Invalid --agents configuration:\ninvalid JSON: {error}") from error
