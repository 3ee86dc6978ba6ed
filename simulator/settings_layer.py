"""One layer of settings, a file or an object that was sent: is it sound?

Pure, but for ``read``.  Callers: ``simulator.settings``, ``simulator.controls``.
"""

import json
from typing import Any, Final

BEHAVIORS: Final = ("allow", "deny", "ask")
_MODES: Final = ("acceptEdits", "auto", "bypassPermissions", "default", "dontAsk", "manual", "plan")
_TEXTS: Final = ("model", "outputStyle", "apiKeyHelper")


class SettingsError(ValueError):
    """A settings object that the CLI refuses as a whole."""


def problems(layer: dict[str, Any]) -> list[str]:
    """The names of the settings that have no sense; unknown ones are not looked at."""
    return [name for name, value in layer.items() if value is not None and not _is_sound(name, value)]


def sound(layer: dict[str, Any]) -> dict[str, Any]:
    """``layer`` without them, which is how the program starts with it."""
    wrong = problems(layer)
    return {name: value for name, value in layer.items() if name not in wrong}


def read(path: str) -> dict[str, Any]:
    """A settings file, empty if there is none that can be read."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return sound(value) if isinstance(value, dict) else {}


def _is_sound(name: str, value: Any) -> bool:
    if name == "env":
        return isinstance(value, dict)
    if name == "permissions":
        return _are_permissions(value)
    if name == "fallbackModel":
        return _is_list_of_texts(value)
    return name not in _TEXTS or isinstance(value, str)


def _are_permissions(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    lists = (value.get(name) for name in (*BEHAVIORS, "additionalDirectories"))
    return all(map(_is_list_of_texts, lists)) and value.get("defaultMode") in (None, *_MODES)


def _is_list_of_texts(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))
