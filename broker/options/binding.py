"""What a session has bound to lines for the CLI: how a warm process becomes a tenant's, and how changes are told.

Pure.  Callers: ``broker.sessions.bind`` writes all lines in one burst and waits for the answers that guard safety;
``broker.sessions.changes`` tells a live process what changed.  What works late, and how, was measured on Claude Code
2.1.197 and 2.1.329: the OAuth token is taken from ``update_environment_variables`` and from nothing else; every other
variable only from ``apply_flag_settings``.  A variable that was set stays set until it is set to something else: an
empty text takes a credential away, but an empty base URL means the public API, so another one is written out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from msgspec import UNSET

from broker.options.bound import NO_RULES, Bound
from broker.options.mcp import cli_servers
from protocol.cli import control_line, environment_line
from protocol.mcp import McpServer
from protocol.options import Credentials

_counter = count(1)

PERMISSIONS = frozenset({"allowed_tools", "disallowed_tools", "add_dirs", "settings"})
ENVIRONMENT = frozenset({"credentials", "max_output_tokens", "betas"})
STYLE = frozenset({"effort", "output_style"})


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the burst.

    ``option`` names it in a refusal; ``names`` are the options that it tells, ``fields`` where ``Bound`` keeps them.
    ``request_id`` None: the CLI answers nothing.  ``gates``: what waits for its answer.  ``blame``: options by key.
    """

    option: str
    line: bytes = field(repr=False)
    request_id: str | None
    names: frozenset[str] = frozenset()
    fields: tuple[str, ...] = ()
    gates: Literal["welcome", "message", "nothing"] = "welcome"
    blame: Mapping[str, str] = field(default_factory=dict)

    def refusal(self, error: str) -> str:
        """What is told when the CLI refuses it: its words behind the options, only those meant where it names a key."""
        meant = [options for key, options in self.blame.items() if re.search(rf"\b{key}\b", error)]
        return f"{', '.join(dict.fromkeys(meant)) or self.option}: {error[:256]}"


@dataclass(slots=True)
class _Layer:
    """What one ``apply_flag_settings`` holds, and which options are in it."""

    settings: dict[str, Any] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    by_key: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, value: Any, options: list[str], fields: tuple[str, ...]) -> None:
        self.settings[key] = value
        self.options += options
        self.fields += fields
        self.by_key[key] = ", ".join(options)


@dataclass(frozen=True, slots=True)
class Spawned:
    """What a process is from its start, and what the operator gives to every session."""

    model: str
    mcp_timeout_s: float
    operator_servers: Mapping[str, McpServer]
    models: Sequence[str] = ()
    """All that the policy allows; none: any.  The agent may name a model too, when it starts a subagent."""


def credential_steps(credentials: Credentials) -> tuple[bytes | None, dict[str, str]]:
    """The environment line (OAuth) and the settings' ``env`` (the rest) that hand over a credential."""
    env: dict[str, str] = {}
    if credentials.base_url is not UNSET:
        env["ANTHROPIC_BASE_URL"] = credentials.base_url
    if credentials.api_key is not UNSET:
        env["ANTHROPIC_API_KEY"] = credentials.api_key
    if credentials.auth_token is not UNSET:
        env["ANTHROPIC_AUTH_TOKEN"] = credentials.auth_token
    if credentials.oauth_token is UNSET:
        return None, env
    return _oauth_line(credentials.oauth_token), env


def _oauth_line(token: str) -> bytes:
    return environment_line({"CLAUDE_CODE_OAUTH_TOKEN": token})


def expected_key_source(credentials: Credentials | None) -> str | None:
    """The ``apiKeySource`` that the first ``system/init`` must name; None when there is nothing to compare."""
    if credentials is None:
        return None
    return "ANTHROPIC_API_KEY" if credentials.kind == "api_key" else "none"


def burst(bound: Bound, spawned: Spawned, changed: frozenset[str] | None = None) -> list[Step]:
    """The lines of a bind, in order: credential first, since a model may be checked with it; MCP servers last, since
    the CLI reads nothing more until they are connected or given up.

    ``changed`` names the options that are told to a live process: then only these are, and ``initialize`` is not.
    """
    return _Burst(bound, spawned, changed).steps()


class _Burst:
    """Collects the steps of one burst."""

    def __init__(self, bound: Bound, spawned: Spawned, changed: frozenset[str] | None) -> None:
        self._bound = bound
        self._spawned = spawned
        self._changed = changed
        self._steps: list[Step] = []
        self._layer = _Layer()

    def steps(self) -> list[Step]:
        """All of them, in order."""
        bound = self._bound
        self._environment()
        self._settings()
        self._apply()
        if self._changed is None and bound.is_initialize_known:
            self._ask("initialize", bound.initialize_request, ("initialize", "hooks"))
        model = bound.model or self._spawned.model
        if self._wants("model") and (model != self._spawned.model or self._changed is not None):
            self._ask("model", {"subtype": "set_model", "model": model})
        is_read = bool(bound.spawn.setting_sources) and self._changed is None
        if self._wants("permission_mode") and (self._has("permission_mode") or is_read):  # files may name another one
            mode = bound.permission_mode or "default"
            self._ask("permission_mode", {"subtype": "set_permission_mode", "mode": mode})
        if self._wants("max_thinking_tokens") and self._has("max_thinking_tokens"):
            tokens = bound.max_thinking_tokens
            self._ask("max_thinking_tokens", {"subtype": "set_max_thinking_tokens", "max_thinking_tokens": tokens})
        self._servers()
        return self._steps

    def _wants(self, *options: str) -> bool:
        return self._changed is None or not self._changed.isdisjoint(options)

    def _ask(
        self,
        option: str,
        request: dict[str, Any],
        fields: tuple[str, ...] = (),
        names: frozenset[str] = frozenset(),
        gates: Literal["welcome", "message", "nothing"] = "welcome",
        blame: Mapping[str, str] | None = None,
    ) -> None:
        request_id = f"bind-{next(_counter)}-{option.partition(',')[0]}"
        line = control_line(request_id, request)
        names, fields = names or frozenset({option}), fields or (option,)
        self._steps.append(Step(option, line, request_id, names, fields, gates, blame or {}))

    def _environment(self) -> None:
        """The credential, and what else is a variable: all of them, whichever changed."""
        bound, is_change = self._bound, self._changed is not None
        line, env = (None, {}) if bound.credentials is None else credential_steps(bound.credentials)
        told = ["credentials"] if env and self._wants("credentials") else []
        if bound.credentials is not None and is_change:  # the other kinds go, and another credential's address
            line = line or _oauth_line("")
            env = {"ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": ""} | env
            if bound.had_own_base_url:
                env = {"ANTHROPIC_BASE_URL": bound.default_base_url} | env
            told = ["credentials"] if self._wants("credentials") else []
        if line is not None and self._wants("credentials"):
            self._steps.append(Step("credentials", line, None))
        if self._has("max_output_tokens"):
            env["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(bound.max_output_tokens or "")
            told += ["max_output_tokens"] if self._wants("max_output_tokens") else []
        if self._has("betas"):
            env["ANTHROPIC_BETAS"] = ",".join(bound.betas or [])
            told += ["betas"] if self._wants("betas") else []
        if cli_servers(bound.mcp_servers, self._spawned.operator_servers):
            env["MCP_TIMEOUT"] = str(round(self._spawned.mcp_timeout_s * 1000))
            told += ["mcp_servers"] if self._wants("mcp_servers") else []
        if told:
            self._layer.add("env", env, told, ("credentials", "max_output_tokens", "betas"))

    def _settings(self) -> None:
        """Rules and directories; effort and style."""
        bound = self._bound
        options = ("allowed_tools", "disallowed_tools", "add_dirs")
        told = [name for name in options if self._has(name)]
        told += ["settings"] if bound.rules != NO_RULES or self._is_changed("settings") else []
        if told and self._wants(*PERMISSIONS):
            self._layer.add("permissions", bound.permissions, told, (*options, "rules"))
        if self._spawned.models and self._changed is None:
            models = sorted({*self._spawned.models, self._spawned.model})
            self._layer.add("availableModels", models, ["model"], ())
        if self._has("effort") and self._wants("effort"):
            self._layer.add("effortLevel", bound.effort, ["effort"], ("effort",))
        if self._has("output_style") and self._wants("output_style"):
            self._layer.add("outputStyle", bound.output_style, ["settings"], ("output_style",))

    def _is_changed(self, option: str) -> bool:
        return self._changed is not None and option in self._changed

    def _has(self, option: str) -> bool:
        """Whether there is something to tell: a value, or that there is none any more."""
        return getattr(self._bound, option) is not None or self._is_changed(option)

    def _apply(self) -> None:
        """All settings in one request: the CLI takes about as long for one as for several, each time."""
        layer = self._layer
        if not layer.settings:
            return
        names = ENVIRONMENT | PERMISSIONS | STYLE
        request = {"subtype": "apply_flag_settings", "settings": layer.settings}
        told = names if self._changed is None else names & self._changed
        self._ask(", ".join(dict.fromkeys(layer.options)), request, tuple(layer.fields), told, blame=layer.by_key)

    def _servers(self) -> None:
        if not self._wants("mcp_servers"):
            return
        bound = self._bound
        servers = cli_servers(bound.mcp_servers, self._spawned.operator_servers)
        if servers or self._changed is not None:
            self._ask("mcp_servers", {"subtype": "mcp_set_servers", "servers": servers}, gates="message")
        for name in sorted(bound.mcp_off & servers.keys() - self._spawned.operator_servers.keys()):
            request = {"subtype": "mcp_toggle", "serverName": name, "enabled": False}
            self._ask("mcp_off", request, gates="nothing")
