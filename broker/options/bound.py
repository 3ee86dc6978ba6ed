"""Everything that a process of a session has to be told: hello's options and every accepted change since.

Pure.  Owner: one ``broker.sessions.exchange.Exchange``.  Held in memory for as long as the session lives, so that a
restored process receives all of it; never stored.  How it is told stands in ``broker.options.binding``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from broker.config.launch_profile import SpawnOptions
from broker.options.declared import Hooks, cli_hooks
from broker.options.mcp import cli_agents
from protocol.controls import Initialize
from protocol.mcp import McpSdk, McpServer
from protocol.options import Credentials, Debug, Permissions, SessionOptions, Settings

PUBLIC_API = "https://api.anthropic.com"
"""Where the CLI sends its requests when nobody names another place."""

NO_RULES = Permissions()

_PLAIN = (
    "credentials", "model", "permission_mode", "max_thinking_tokens", "max_output_tokens", "betas", "effort",
    "allowed_tools", "disallowed_tools", "add_dirs", "mcp_servers",
)  # fmt: skip
"""Options that are kept as they were given, under their own names."""
_INITIALIZE = {
    "system_prompt": "systemPrompt", "append_system_prompt": "appendSystemPrompt", "agents": "agents",
    "json_schema": "jsonSchema",
}  # fmt: skip
"""Options that only the one ``initialize`` of a process can set, and what they are called in it."""
OWN_PROMPT = {"systemPromptSnapshot": False}
"""For a branch: a CLI that takes up a transcript goes on with the system prompt recorded there, unless it is told."""


@dataclass(slots=True)
class Bound:
    """Values are replaced, never changed in place: a copy stays what it was.

    ``default_base_url``: the operator's, which holds again when a credential comes without one of its own.
    """

    default_base_url: str = PUBLIC_API
    credentials: Credentials | None = None
    had_own_base_url: bool = False
    is_paid: bool = False
    """The credential is the server's."""
    model: str | None = None
    permission_mode: str | None = None
    max_thinking_tokens: int | None = None
    max_output_tokens: int | None = None
    betas: list[str] | None = None
    effort: str | None = None
    output_style: str | None = None
    allowed_tools: list[str] | None = None
    disallowed_tools: list[str] | None = None
    add_dirs: list[str] | None = None
    rules: Permissions = NO_RULES
    """``settings.permissions``, beside the three above."""
    mcp_servers: dict[str, McpServer] = field(default_factory=dict)
    mcp_off: frozenset[str] = frozenset()
    initialize: dict[str, Any] = field(default_factory=dict)
    hooks: Hooks = field(default_factory=dict)
    initialize_by: Literal["broker", "client"] = "broker"
    is_initialize_known: bool = True
    """False while the client's own ``initialize`` is awaited."""
    spawn: SpawnOptions = field(default_factory=SpawnOptions)
    """What each of its processes is started with, beside a model."""
    tells_debug: bool = False
    """Clients get the CLI's debug log as frames."""

    def copy(self) -> "Bound":
        """The same for now, and untouched by later changes."""
        return replace(self)

    def take_back(self, fields: Iterable[str], before: "Bound", after: "Bound | None" = None) -> None:
        """The CLI has refused these: what held before holds on; not where another value than ``after``'s, the refused
        one, holds already."""
        for name in fields:
            if after is None or getattr(self, name) == getattr(after, name):
                setattr(self, name, getattr(before, name))

    # -- taking over --

    def merge(self, options: SessionOptions, *, with_initialize: bool) -> frozenset[str]:
        """Take over the options that are given; returns the names of the late-bound ones that changed.

        An option wins over the key of ``settings`` that says the same.
        """
        given = options.given()
        if "permission_mode" in self.spawn.differing(given):  # no process of this session can have that one
            del given["permission_mode"]
        if "debug" in given and self.spawn.debug is not None:
            self.tells_debug = given["debug"].frames if isinstance(given["debug"], Debug) else True
        changed = set(self.merge_settings(options.settings)) if options.settings is not UNSET else set()
        for name in _PLAIN:
            if name in given and given[name] != getattr(self, name):
                setattr(self, name, given[name])
                changed.add(name)
        if "credentials" in given:
            self.is_paid = False
        self._note_base_url()
        if with_initialize:
            self.initialize = self.initialize | _initialize_fields(given)
            self.initialize_by = given.get("initialize", self.initialize_by)
            self.is_initialize_known = self.initialize_by == "broker"
        return frozenset(changed)

    def take_spawn(self, options: SessionOptions) -> None:
        """Take over what is fixed when a process starts; before the first one is asked for."""
        given = options.given()
        if options.settings is not UNSET and options.settings.permissions is not UNSET:
            given.setdefault("permission_mode", options.settings.permissions.defaultMode)
        self.spawn = self.spawn.taking(given)

    def merge_settings(self, settings: Settings) -> frozenset[str]:
        """Take over the settings that are given, key by key; returns the names of the options that changed.

        ``settings`` stands for the permission rules in them, ``output_style`` for the one that is no option.
        """
        changed: set[str] = set()
        permissions = Permissions() if settings.permissions is UNSET else settings.permissions
        given = {name: value for name in _RULES if (value := getattr(permissions, name)) is not UNSET}
        rules = msgspec.structs.replace(self.rules, **given)
        if rules != self.rules:
            self.rules = rules
            changed.add("settings")
        if settings.outputStyle is not UNSET and settings.outputStyle != self.output_style:
            self.output_style = settings.outputStyle
            changed.add("output_style")
        if settings.effortLevel is not UNSET and settings.effortLevel != self.effort:
            self.effort = settings.effortLevel
            changed.add("effort")
        # The CLI takes no notice of a late `defaultMode`: what is meant is the mode.
        if permissions.defaultMode is not UNSET and permissions.defaultMode != self.permission_mode:
            self.permission_mode = permissions.defaultMode
            changed.add("permission_mode")
        return frozenset(changed)

    def set_credentials(self, credentials: Credentials) -> None:
        """Another credential, of the client; the kinds are told apart when it is told."""
        self.credentials, self.is_paid = credentials, False
        self._note_base_url()

    def _note_base_url(self) -> None:
        if self.credentials is not None and self.credentials.base_url is not UNSET:
            self.had_own_base_url = True

    def set_initialize(self, request: Initialize) -> dict[str, McpServer]:
        """The client's own ``initialize``: hooks apart, its MCP servers among the session's.  Returns these."""
        fields = msgspec.to_builtins(request, builtin_types=())
        for name in ("subtype", "hooks", "sdkMcpServers"):
            fields.pop(name, None)
        if isinstance(request.systemPrompt, str):
            fields["systemPrompt"] = [request.systemPrompt]
        fields["agents"] = request.agents
        branch = {name: value for name, value in self.initialize.items() if name in OWN_PROMPT}
        self.initialize = {name: value for name, value in fields.items() if value is not None} | branch
        self.hooks = request.hooks or {}
        names = [] if request.sdkMcpServers is UNSET else request.sdkMcpServers
        servers: dict[str, McpServer] = {name: McpSdk() for name in names}
        self.mcp_servers = self.mcp_servers | servers
        self.is_initialize_known = True
        return servers

    def differing(self, options: SessionOptions) -> list[str]:
        """The given options that only ``initialize`` or a start could set and that differ from what was set."""
        given = options.given()
        wanted = _initialize_fields(given)
        names = [name for name, key in _INITIALIZE.items() if key in wanted and self.initialize.get(key) != wanted[key]]
        if given.get("initialize", self.initialize_by) != self.initialize_by:
            names.append("initialize")
        return names + self.spawn.differing(given)

    # -- as the CLI knows it --

    @property
    def permissions(self) -> dict[str, list[str]]:
        """The whole ``permissions`` of the settings layer: the CLI replaces it as a whole."""
        parts = {
            "allow": (self.allowed_tools, self.rules.allow),
            "deny": (self.disallowed_tools, self.rules.deny),
            "ask": (None, self.rules.ask),
            "additionalDirectories": (self.add_dirs, self.rules.additionalDirectories),
        }
        return {
            name: list(dict.fromkeys([*(option or []), *(setting or [])]))
            for name, (option, setting) in parts.items()
            if option is not None or setting is not UNSET
        }

    @property
    def initialize_request(self) -> dict[str, Any]:
        """The process's one ``initialize``."""
        hooks = {"hooks": cli_hooks(self.hooks)} if self.hooks else {}
        agents = {"agents": cli_agents(self.initialize["agents"])} if "agents" in self.initialize else {}
        return {"subtype": "initialize", **self.initialize, **agents, **hooks}


_RULES = ("allow", "deny", "ask", "additionalDirectories")


def _initialize_fields(given: dict[str, Any]) -> dict[str, Any]:
    fields = {key: given[name] for name, key in _INITIALIZE.items() if name in given}
    if "systemPrompt" in fields:
        fields["systemPrompt"] = [fields["systemPrompt"]]
    return fields
