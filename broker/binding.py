"""Options to bind lines: what a warm process is told so that it becomes a tenant's.

Pure.  Caller: ``broker.session``, which writes all lines in one burst and waits for the answers that guard safety.
What works late, and how, was measured on Claude Code 2.1.197 and 2.1.329: the OAuth token is taken from
``update_environment_variables`` and from nothing else; every other variable only from ``apply_flag_settings``.
"""

from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct

from protocol.cli import control_line, environment_line
from protocol.controls import DECODE_ERRORS
from protocol.options import Credentials, McpHttp, SessionOptions

_counter = count(1)


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the burst.  ``request_id`` None: the CLI answers nothing.  ``option`` names it in a refusal."""

    option: str
    line: bytes = field(repr=False)
    request_id: str | None
    gates_welcome: bool = True


@dataclass(slots=True)
class Bound:
    """Everything that a process of this session has to be told: hello's options and every accepted change since.

    Held in memory for as long as the session lives, so that a restored process receives all of it.  Never stored.
    """

    credentials: Credentials | None = None
    model: str | None = None
    permission_mode: str | None = None
    max_thinking_tokens: int | None = None
    env: dict[str, str] = field(default_factory=dict)
    permissions: dict[str, list[str]] = field(default_factory=dict)
    initialize: dict[str, Any] = field(default_factory=dict)
    mcp_servers: dict[str, McpHttp] = field(default_factory=dict)

    def merge(self, options: SessionOptions, *, with_initialize: bool) -> frozenset[str]:
        """Take over the options that are given; returns the names of the late-bound ones that changed."""
        given = options.given()
        changed: set[str] = set()
        for name in ("credentials", "model", "permission_mode", "max_thinking_tokens", "mcp_servers"):
            if name in given and given[name] != getattr(self, name):
                setattr(self, name, given[name])
                changed.add(name)
        if "max_output_tokens" in given:
            tokens = str(given["max_output_tokens"])
            if self.env.get("CLAUDE_CODE_MAX_OUTPUT_TOKENS") != tokens:
                self.env["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = tokens
                changed.add("max_output_tokens")
        for rule, name in (("allow", "allowed_tools"), ("deny", "disallowed_tools")):
            if name in given and self.permissions.get(rule) != given[name]:
                self.permissions[rule] = given[name]
                changed.add(name)
        if with_initialize:
            self.initialize |= _initialize_fields(given)
        return frozenset(changed)

    def copy(self) -> "Bound":
        """The same for now, and untouched by later changes."""
        return replace(self, env=dict(self.env), permissions=dict(self.permissions), initialize=dict(self.initialize))

    def take_back(self, option: str, before: "Bound") -> None:
        """The CLI has refused ``option``, named as in a ``Step``: what held before holds on."""
        for name in _FIELDS.get(option, (option,)):
            setattr(self, name, getattr(before, name))

    def differing(self, options: SessionOptions) -> list[str]:
        """The given options that only ``initialize`` could set and that differ from what was set."""
        wanted = _initialize_fields(options.given())
        names = {"systemPrompt": "system_prompt", "appendSystemPrompt": "append_system_prompt", "agents": "agents"}
        return [names[key] for key, value in wanted.items() if self.initialize.get(key) != value]


_FIELDS = {
    "allowed_tools": ("permissions", "credentials", "env"),
    "credentials": ("credentials", "env"),
    "max_output_tokens": ("env",),
}
"""What a step carries, where it is not the field of its name: one ``apply_flag_settings`` holds several options."""


def _initialize_fields(given: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "system_prompt" in given:
        fields["systemPrompt"] = [given["system_prompt"]]
    if "append_system_prompt" in given:
        fields["appendSystemPrompt"] = given["append_system_prompt"]
    if "agents" in given:
        fields["agents"] = given["agents"]
    return fields


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
    return environment_line({"CLAUDE_CODE_OAUTH_TOKEN": credentials.oauth_token}), env


def expected_key_source(credentials: Credentials | None) -> str | None:
    """The ``apiKeySource`` that the first ``system/init`` must name; None when there is nothing to compare."""
    if credentials is None:
        return None
    return "ANTHROPIC_API_KEY" if credentials.kind == "api_key" else "none"


def burst(bound: Bound, profile_model: str, *, is_changed_only: frozenset[str] | None = None) -> list[Step]:
    """The lines of a bind, in order: credential first, since a model may be checked with it.

    ``is_changed_only`` names the options that a new hello changed on a live process: then only these are sent and
    ``initialize`` is not.
    """

    def wanted(option: str) -> bool:
        return is_changed_only is None or option in is_changed_only

    steps: list[Step] = []

    def ask(option: str, request: dict[str, Any], *, gates_welcome: bool = True) -> None:
        request_id = f"bind-{next(_counter)}-{option}"
        steps.append(Step(option, control_line(request_id, request), request_id, gates_welcome))

    line, env = (None, {}) if bound.credentials is None else credential_steps(bound.credentials)
    if line is not None and wanted("credentials"):
        steps.append(Step("credentials", line, None))
    if bound.credentials is not None and is_changed_only is not None:
        env = {"ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": ""} | env
    # The CLI replaces `env` and `permissions` as a whole: a part of one would take the rest away.
    settings: dict[str, Any] = {}
    names: list[str] = []
    if bound.permissions and (wanted("allowed_tools") or wanted("disallowed_tools")):
        settings["permissions"] = bound.permissions
        names.append("allowed_tools")
    if (env and wanted("credentials")) or (bound.env and wanted("max_output_tokens")):
        settings["env"] = env | bound.env
        names.append("credentials" if env and wanted("credentials") else "max_output_tokens")
    if settings:
        ask(names[0], {"subtype": "apply_flag_settings", "settings": settings})
    if is_changed_only is None:
        ask("initialize", {"subtype": "initialize", **bound.initialize})
    model = bound.model or profile_model
    if wanted("model") and (model != profile_model or is_changed_only is not None):
        ask("model", {"subtype": "set_model", "model": model})
    if bound.permission_mode is not None and wanted("permission_mode"):
        ask("permission_mode", {"subtype": "set_permission_mode", "mode": bound.permission_mode})
    if bound.max_thinking_tokens is not None and wanted("max_thinking_tokens"):
        tokens = bound.max_thinking_tokens
        ask("max_thinking_tokens", {"subtype": "set_max_thinking_tokens", "max_thinking_tokens": tokens})
    if wanted("mcp_servers") and (bound.mcp_servers or is_changed_only is not None):
        ask("mcp_servers", {"subtype": "mcp_set_servers", "servers": bound.mcp_servers}, gates_welcome=False)
    return steps


class _McpAnswer(Struct, frozen=True):
    errors: dict[str, str] = {}


_mcp_answer = msgspec.json.Decoder(_McpAnswer)


def mcp_errors(response: Raw) -> dict[str, str]:
    """The servers that did not connect, by name; at most 256 characters each."""
    try:
        found = _mcp_answer.decode(response)
    except DECODE_ERRORS:
        return {"*": "an answer of unknown form"}
    return {name: text[:256] for name, text in found.errors.items()}
