"""What a client may ask of its process: the ``options`` of hello, typed and checked before any process is touched.

Unknown keys are refused.  All of these are *late bound*: they keep the warm start.  A value is judged for form here and
for permission in ``broker.policy``.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

NAME = r"^[A-Za-z0-9_-]{1,64}$(?!\n)"
NO_CONTROL = r"^[^\x00-\x1f\x7f]*$(?!\n)"

MODEL = r"^[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,127}$(?!\n)"

Model = Annotated[str, Meta(pattern=MODEL, description="Alias or full name.")]
Secret = Annotated[str, Meta(min_length=1, max_length=16384, pattern=r"^[\x21-\x7e]+$(?!\n)")]
Prompt = Annotated[str, Meta(min_length=1, max_length=262144, pattern=r"^[^\x00]*$(?!\n)")]
Rule = Annotated[
    str, Meta(min_length=1, max_length=512, pattern=r"^[A-Za-z_*][A-Za-z0-9_*-]*(\([^\x00-\x1f\x7f]*\))?$(?!\n)")
]
Rules = Annotated[list[Rule], Meta(max_length=256)]
Url = Annotated[str, Meta(max_length=2048, pattern=r"^https?://[^\s\x00-\x1f\x7f]+$(?!\n)")]
HeaderName = Annotated[str, Meta(max_length=128, pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$(?!\n)")]
HeaderValue = Annotated[str, Meta(max_length=8192, pattern=NO_CONTROL)]
PermissionMode = Literal["default", "plan", "acceptEdits", "bypassPermissions", "dontAsk", "auto"]

UNSUPPORTED_OPTIONS = frozenset(
    {
        "effort", "json_schema", "settings", "tools", "fallback_model", "add_dirs", "plugin_dirs", "setting_sources",
        "max_turns", "max_budget_usd", "debug", "verbose", "ide", "betas", "resume", "continue", "fork", "lazy",
        "initialize",
    }
)  # fmt: skip
"""Named by the protocol and not built yet: refused with "not supported by this version", never ignored."""


class Credentials(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, repr_omit_defaults=True):
    """Exactly one of the three kinds.  Its text form never shows a value."""

    oauth_token: Secret | UnsetType = UNSET
    api_key: Secret | UnsetType = UNSET
    auth_token: Secret | UnsetType = UNSET
    base_url: Url | UnsetType = UNSET

    def __post_init__(self) -> None:
        if sum(value is not UNSET for value in (self.oauth_token, self.api_key, self.auth_token)) != 1:
            raise ValueError("exactly one of oauth_token, api_key, auth_token is needed")

    @property
    def kind(self) -> Literal["oauth_token", "api_key", "auth_token"]:
        """Which of the three is set."""
        if self.oauth_token is not UNSET:
            return "oauth_token"
        return "api_key" if self.api_key is not UNSET else "auth_token"

    def __repr__(self) -> str:
        return f"Credentials({self.kind}=[redacted])"


class Agent(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A subagent of the CLI.  ``mcpServers`` and ``permissionMode`` of the SDK's shape are not accepted here."""

    description: Annotated[str, Meta(min_length=1, max_length=4096)]
    prompt: Prompt
    tools: Rules | UnsetType = UNSET
    disallowedTools: Rules | UnsetType = UNSET
    model: Model | UnsetType = UNSET


class McpHttp(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="http"):
    """A streamable-HTTP MCP server.  ``headers`` may hold secrets; they are never shown in a text form."""

    url: Url
    headers: Annotated[dict[HeaderName, HeaderValue], Meta(max_length=64)] = {}

    def __repr__(self) -> str:
        return f"McpHttp(url={self.url!r}, headers=[redacted])"


class SessionOptions(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``options`` of ``broker.hello``.  Every field may be left out."""

    credentials: Credentials | UnsetType = UNSET
    model: Model | UnsetType = UNSET
    max_thinking_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] | UnsetType = UNSET
    max_output_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | UnsetType = UNSET
    system_prompt: Prompt | UnsetType = UNSET
    append_system_prompt: Prompt | UnsetType = UNSET
    agents: Annotated[dict[Annotated[str, Meta(pattern=NAME)], Agent], Meta(max_length=64)] | UnsetType = UNSET
    permission_mode: PermissionMode | UnsetType = UNSET
    allowed_tools: Rules | UnsetType = UNSET
    disallowed_tools: Rules | UnsetType = UNSET
    mcp_servers: Annotated[dict[Annotated[str, Meta(pattern=NAME)], McpHttp], Meta(max_length=32)] | UnsetType = UNSET
    permission_timeout_s: Annotated[float, Meta(gt=0, le=86400)] | UnsetType = UNSET

    def given(self) -> dict[str, Any]:
        """The options that the client set, by name."""
        return {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not UNSET}
