"""Commands, agents and skills from files: those of plugin directories, and those of the setting sources.

A command is ``commands/NAME.md``, an agent ``agents/NAME.md``, a skill ``skills/NAME/SKILL.md``, each with a head of
``key: value`` lines between ``---``.  What a plugin brings is called ``PLUGIN:NAME``.
Callers: ``simulator.session``, ``simulator.turn``, ``simulator.messages``.
"""

import json
import os
from typing import Any, Final

from simulator.flags import Flags
from simulator.transcript import config_dir

MAX_FILE_BYTES: Final = 1 << 20
Row = dict[str, Any]


class Extensions:
    """What was found, in the shapes of ``system/init`` and of the ``initialize`` answer."""

    def __init__(self) -> None:
        self.plugins: list[Row] = []
        self.errors: list[Row] = []
        self.agents: list[Row] = []
        self.skills: list[str] = []
        self.commands: dict[str, Row] = {}
        """Name -> its row; ``body`` is the text that the model gets."""

    def expand(self, text: str) -> str | None:
        """The text that a command stands for, its arguments put in; None if it is none of these."""
        name, _, rest = text.strip().removeprefix("/").partition(" ")
        found = self.commands.get(name) if text.startswith("/") else None
        return None if found is None else str(found["body"]).replace("$ARGUMENTS", rest.strip())


def load(flags: Flags, cwd: str) -> Extensions:
    """Everything that the flags name; what cannot be read is told in ``errors``, as the real program does."""
    found = Extensions()
    for index, path in enumerate(flags.plugins):
        _load_plugin(found, index, path)
    if "user" in flags.setting_sources:
        _load_folder(found, config_dir(), "")
    if "project" in flags.setting_sources:
        _load_folder(found, os.path.join(cwd, ".claude"), "")
    return found


def _load_plugin(found: Extensions, index: int, path: str) -> None:
    source = f"inline[{index}]"
    if not os.path.exists(path):
        text = f"Path not found: {path}"
        found.errors.append({"plugin": source, "type": "path-not-found", "message": text, "path": path})
        return
    manifest = os.path.join(path, ".claude-plugin", "plugin.json")
    if not os.path.exists(manifest):
        return
    name, head = os.path.basename(path.rstrip("/")), None
    try:
        head = json.loads(_read(manifest))
    except (ValueError, RecursionError) as error:
        text = f"Failed to load plugin: Plugin {name} has a corrupt manifest file at {manifest}. {error}"
        found.errors.append({"plugin": source, "type": "generic-error", "message": text, "path": path})
        return
    head = head if isinstance(head, dict) else {}
    name = str(head.get("name") or name)
    version = {"version": head["version"]} if isinstance(head.get("version"), str) else {}
    found.plugins.append({"name": name, "path": path, "source": f"{name}@inline", **version})
    _load_folder(found, path, f"{name}:")


def _load_folder(found: Extensions, folder: str, prefix: str) -> None:
    for kind in ("commands", "agents", "skills"):
        for name, path in _files(os.path.join(folder, kind)):
            head, body = _parts(_read(path))
            text = head.get("description", "")
            if kind == "agents":
                found.agents.append({"name": prefix + head.get("name", name), "description": text})
                continue
            described = f"({prefix.rstrip(':')}) {text}" if prefix else text
            row = {"name": prefix + name, "description": described, "argumentHint": "", "body": body}
            found.commands[prefix + name] = row
            found.skills += [prefix + name] if kind == "skills" else []


def _files(folder: str) -> list[tuple[str, str]]:
    """(name, path) of what is defined in a folder: ``NAME.md``, or ``NAME/SKILL.md``."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    plain = [(name[:-3], os.path.join(folder, name)) for name in names if name.endswith(".md")]
    nested = [(name, os.path.join(folder, name, "SKILL.md")) for name in names]
    return plain + [(name, path) for name, path in nested if os.path.isfile(path)]


def _parts(text: str) -> tuple[dict[str, str], str]:
    """The head of a file as keys and values, and what follows it."""
    if not text.startswith("---\n"):
        return {}, text
    head, _, body = text[4:].partition("\n---\n")
    pairs = (line.partition(":") for line in head.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}, body


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError:
        return ""
