"""Launch profiles: everything about a process that is fixed when it starts, canonical and hashed; the pool's key.

Pure.  Callers: ``broker.config.profile`` (what the operator configured), ``broker.options.binding`` (what a hello asks
for), ``broker.pool.pool`` (which of the configured ones fits) and ``broker.processes.launcher`` (flags).
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from protocol.options import SPAWN_OPTIONS, Debug, SettingSource

OTHER = "other"
"""The pool of processes whose profile nobody configured; the name is reserved in the configuration."""
HASH_CHARS = 12
LEAST_BUDGET_USD = 1e-6
_SOURCES: tuple[SettingSource, ...] = ("user", "project", "local")


class SpawnOptions(Struct, frozen=True, omit_defaults=True):
    """The options that are fixed at spawn, without the model, which can still be changed.

    Equal wishes have one form: order and repetition say nothing to the CLI, so ``taking`` takes them away.  ``debug``
    is the filter: None is off, empty is everything.  ``bypass``: the permission mode ``bypassPermissions`` may be set.
    """

    tools: tuple[str, ...] | None = None
    fallback_model: str | None = None
    plugin_dirs: tuple[str, ...] = ()
    setting_sources: tuple[str, ...] = ()
    max_turns: int | None = None
    max_budget_usd: float | None = None
    debug: str | None = None
    verbose: bool = False
    ide: bool = False
    bypass: bool = False

    def taking(self, given: Mapping[str, Any]) -> "SpawnOptions":
        """These, with what is ``given``: options by name, of which those fixed at spawn are read, and whether
        ``permission_mode`` is one that has to be allowed then.  Directories are real paths already."""
        found = {name: _plain(name, given[name]) for name in SPAWN_OPTIONS if given.get(name) is not None}
        if given.get("permission_mode") == "bypassPermissions":
            found["bypass"] = True
        return replace(self, **found)

    def differing(self, given: Mapping[str, Any]) -> list[str]:
        """Which of the ``given`` options, named as in hello, a process that was started with these cannot have."""
        wanted = self.taking(given)
        names = [name for name in SPAWN_OPTIONS if getattr(wanted, name) != getattr(self, name)]
        return names + (["permission_mode"] if wanted.bypass != self.bypass else [])


def _plain(name: str, value: Any) -> Any:
    match name:
        case "debug":
            text = value.filter if isinstance(value, Debug) else value
            return ",".join(sorted({part for part in text.split(",") if part}))
        case "setting_sources":
            return tuple(source for source in _SOURCES if source in value)
        case "max_budget_usd":
            return float(value)
        case _:
            return tuple(sorted(set(value))) if isinstance(value, list | tuple) else value


class LaunchProfile(Struct, frozen=True, omit_defaults=True):
    """What a process is started with."""

    model: str
    options: SpawnOptions = SpawnOptions()

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits, equal for equal profiles in every broker of this version."""
        text = msgspec.json.encode(self, order="deterministic")
        return hashlib.sha256(text).hexdigest()[:HASH_CHARS]

    def flags(self, debug_file: str) -> list[str]:
        """The command line: each value in one argument with its flag's name, so that it is never read as a flag.

        ``debug_file`` is named only when the profile asks for it.  Flags that repeat take one value each: Claude Code
        splits no list of directories.
        """
        o = self.options
        found = [f"--model={self.model}", f"--setting-sources={','.join(o.setting_sources)}"]
        if o.tools is not None:
            found.append(f"--tools={','.join(o.tools)}")
        single = {
            "fallback-model": o.fallback_model,
            "max-turns": o.max_turns,
            "max-budget-usd": o.max_budget_usd,
            "debug": o.debug or None,
            "debug-file": None if o.debug is None else debug_file,
        }
        found += [f"--{name}={value}" for name, value in single.items() if value is not None]
        found += [f"--plugin-dir={path}" for path in o.plugin_dirs]
        switches = {
            "include-hook-events": o.verbose,
            "ide": o.ide,
            "allow-dangerously-skip-permissions": o.bypass,
        }
        return found + [f"--{name}" for name, is_on in switches.items() if is_on]


class Choice(NamedTuple):
    """A profile, and the pool it is counted in: a configured name, or ``other``."""

    pool: str
    profile: LaunchProfile

    @property
    def is_configured(self) -> bool:
        """Whether spares of it may be kept."""
        return self.pool != OTHER

    def having_spent(self, usd: float) -> "Choice":
        """The same for a conversation that has cost ``usd`` already: each process of the CLI counts from zero.

        A budget that is spent leaves the least one that the CLI takes: it is checked after a request to the model.
        """
        options = self.profile.options
        if not usd or options.max_budget_usd is None:
            return self
        left = replace(options, max_budget_usd=max(LEAST_BUDGET_USD, round(options.max_budget_usd - usd, 9)))
        return self._replace(profile=replace(self.profile, options=left))


def choose(configured: Mapping[str, LaunchProfile], model: str | None, options: SpawnOptions) -> Choice:
    """The configured profile that starts with ``options``, best with ``model`` too; else an unknown one.

    Without a wished model, or where no profile starts with it, ``default`` is preferred, then the first: the model is
    told to the process later.  ``configured`` is not empty.
    """
    usual = "default" if "default" in configured else next(iter(configured))
    fitting = {name: profile for name, profile in configured.items() if profile.options == options}
    with_model = [name for name, profile in fitting.items() if profile.model == model]
    names = with_model or [name for name in (usual, *fitting) if name in fitting]
    if names:
        return Choice(names[0], fitting[names[0]])
    return Choice(OTHER, LaunchProfile(model or configured[usual].model, options))
