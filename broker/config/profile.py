"""``[pool.profiles.NAME]``: a kind of process to keep ready, and the mistakes that one profile can hold.

Owner: none, a ``Profile`` is immutable.  Callers: ``broker.config.tree`` (the tree), ``broker.pool.pool`` (targets,
launch profiles).
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import asdict

from broker.config.launch_profile import OTHER, LaunchProfile, SpawnOptions
from broker.config.types import Count, FilePath, Seconds, says
from broker.errors import ConfigError
from protocol.options import DebugFilter, Model, SettingSource, ToolName

Folders = Annotated[list[FilePath], Meta(max_length=16)]


class Profile(Struct, frozen=True, forbid_unknown_fields=True):
    """How many of a kind, how long they keep, and what they are started with."""

    warm: Annotated[int, Meta(ge=0, le=10000), says("Spares to keep.")] = 4
    reserve: Annotated[int, Meta(ge=0, le=10000), says("Processes that no other profile may take.")] = 0
    max: Annotated[Count | None, says("Processes of this profile at most; unset: no own limit.")] = None
    max_age_s: Annotated[Seconds, says("A spare older than this is replaced.")] = 3600
    max_rss_mb: Annotated[int, Meta(ge=1, le=2**20), says("A spare larger than this is replaced.")] = 1024

    model: Annotated[Model, says("The model that the process is started with.")] = "sonnet"
    tools: Annotated[
        Annotated[list[ToolName], Meta(max_length=64)] | None, says("The CLI's own tools; unset: all of them.")
    ] = None
    fallback_model: Annotated[Model | None, says("Asked when the model is overloaded, unknown or fails.")] = None
    plugin_dirs: Annotated[Folders, says("Directories of plugins.")] = []
    setting_sources: Annotated[
        list[SettingSource], Meta(max_length=3), says("Settings files that are read; none by default.")
    ] = []
    max_turns: Annotated[
        Annotated[int, Meta(ge=1, le=10_000)] | None, says("Requests to the model within one message.")
    ] = None
    max_budget_usd: Annotated[
        Annotated[float, Meta(gt=0, le=1_000_000)] | None, says("What a conversation may cost.")
    ] = None
    debug: Annotated[DebugFilter | None, says("Categories of the debug log; empty: all; unset: no log.")] = None
    verbose: Annotated[bool, says("Hook events are told too.")] = False
    ide: Annotated[bool, says("Connect to an IDE on this machine, if there is one.")] = False
    bypass: Annotated[bool, says("The permission mode bypassPermissions can be set.")] = False

    @property
    def launch(self) -> LaunchProfile:
        """What its processes are started with; looks symlinks up."""
        given = asdict(self) | {"plugin_dirs": [os.path.realpath(path) for path in self.plugin_dirs]}
        return LaunchProfile(self.model, SpawnOptions(bypass=self.bypass).taking(given))


def mistakes(profiles: Mapping[str, Profile], *, may_bypass: bool) -> Iterator[ConfigError]:
    """What is wrong within a profile, or between two.  ``may_bypass``: the CLI will start with that flag."""
    known: dict[LaunchProfile, str] = {}
    for name, profile in profiles.items():
        path = f"pool.profiles.{name}"
        if name == OTHER:
            yield ConfigError(path, "is a reserved name", "another name")
        for key, count in (("warm", profile.warm), ("reserve", profile.reserve)):
            if profile.max is not None and count > profile.max:
                yield ConfigError(f"{path}.{key}", f"found {count}, above its own max", f"up to {profile.max}")
        for index, folder in enumerate(profile.plugin_dirs):
            if not Path(folder).is_dir():
                yield ConfigError(f"{path}.plugin_dirs[{index}]", "is no directory", "an existing directory")
        if profile.bypass and not may_bypass:
            yield ConfigError(
                f"{path}.bypass", "is true, but the CLI refuses it to root outside of a sandbox",
                'false, another user, or cli.env.IS_SANDBOX = "1"',
            )  # fmt: skip
        twin = known.setdefault(profile.launch, name)
        if twin != name:
            yield ConfigError(path, f"starts what pool.profiles.{twin} starts", "one of the two")
