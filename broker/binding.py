"""What a session has bound to lines for the CLI: how a warm process becomes a tenant's, and how changes are told.

Pure.  Callers: ``broker.bind`` writes all lines in one burst and waits for the answers that guard safety;
``broker.changes`` tells a live process what changed.  What works late, and how, was measured on Claude Code 2.1.197 and
2.1.329: the OAuth token is taken from ``update_environment_variables`` and from nothing else; every other variable only
from ``apply_flag_settings``.  A variable that was set stays set until it is set to something else: an empty text takes
a credential away, but an empty base URL means the public API, so another one is written out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from msgspec import UNSET

from broker.bound import NO_RULES, Bound
from broker.mcp import cli_servers
from protocol.cli import control_line, environment_line
from protocol.mcp import McpServer
from protocol.options import Credentials

_counter = count(1)

PERMISSIONS = frozenset({"allowed_tools", "disallowed_tools", "add_dirs", "settings"})
ENVIRONMENT = frozenset({"credentials", "max_output_tokens", "betas"})
STYLE = frozenset({"effort", "output_style"})
STYLE_OPTIONS = {"effortLevel": "effort", "outputStyle": "settings"}


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the burst.

    ``option`` names it in a refusal; ``names`` are the options that it tells, ``fields`` where ``Bound`` keeps them.
    ``request_id`` None: the CLI answers nothing.  ``gates``: what waits for its answer.
    """

    option: str
    line: bytes = field(repr=False)
    request_id: str | None
    names: frozenset[str] = frozenset()
    fields: tuple[str, ...] = ()
    gates: Literal["welcome", "message", "nothing"] = "welcome"


@dataclass(frozen=True, slots=True)
class Spawned:
    """What a process is from its start, and what the operator gives to every session."""

    model: str
    mcp_timeout_s: float
    operator_servers: Mapping[str, McpServer]


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

    def steps(self) -> list[Step]:
        """All of them, in order."""
        bound = self._bound
        self._environment()
        self._settings()
        if self._changed is None and bound.is_initialize_known:
            self._ask("initialize", bound.initialize_request, ("initialize", "hooks"))
        model = bound.model or self._spawned.model
        if self._wants("model") and (model != self._spawned.model or self._changed is not None):
            self._ask("model", {"subtype": "set_model", "model": model})
        if self._wants("permission_mode") and self._has("permission_mode"):
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
    ) -> None:
        request_id = f"bind-{next(_counter)}-{option.partition(',')[0]}"
        line = control_line(request_id, request)
        self._steps.append(Step(option, line, request_id, names or frozenset({option}), fields or (option,), gates))

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
            self._apply(told, {"env": env}, ("credentials", "max_output_tokens", "betas"), ENVIRONMENT)

    def _settings(self) -> None:
        """Rules and directories; effort and style.  Each alone, so that a refusal names its option."""
        bound = self._bound
        options = ("allowed_tools", "disallowed_tools", "add_dirs")
        told = [name for name in options if self._has(name)]
        told += ["settings"] if bound.rules != NO_RULES or self._is_changed("settings") else []
        if told and self._wants(*PERMISSIONS):
            self._apply(told, {"permissions": bound.permissions}, (*options, "rules"), PERMISSIONS)
        style = {}
        if self._has("effort"):
            style["effortLevel"] = bound.effort
        if self._has("output_style"):
            style["outputStyle"] = bound.output_style
        if style and self._wants(*STYLE):
            told = [STYLE_OPTIONS[key] for key in style]
            self._apply(told, style, ("effort", "output_style"), STYLE)

    def _is_changed(self, option: str) -> bool:
        return self._changed is not None and option in self._changed

    def _has(self, option: str) -> bool:
        """Whether there is something to tell: a value, or that there is none any more."""
        return getattr(self._bound, option) is not None or self._is_changed(option)

    def _apply(
        self, options: list[str], settings: dict[str, Any], fields: tuple[str, ...], names: frozenset[str]
    ) -> None:
        request = {"subtype": "apply_flag_settings", "settings": settings}
        self._ask(", ".join(options), request, fields, names if self._changed is None else names & self._changed)

    def _servers(self) -> None:
        if not self._wants("mcp_servers"):
            return
        bound = self._bound
        servers = cli_servers(bound.mcp_servers, self._spawned.operator_servers)
        if servers or self._changed is not None:
            self._ask("mcp_servers", {"subtype": "mcp_set_servers", "servers": servers}, gates="message")
        for name in sorted(bound.mcp_off & servers.keys()):
            request = {"subtype": "mcp_toggle", "serverName": name, "enabled": False}
            self._ask("mcp_off", request, gates="nothing")
