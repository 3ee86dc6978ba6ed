"""What a client may ask of its process: the ``options`` of hello, typed and checked before any process is touched.

Unknown keys are refused.  A value is judged for form here and for permission in ``broker.options.policy``.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from protocol.json_schema import JsonSchema
from protocol.mcp import MCP_NAME, McpName, McpServer, McpServers, Url

NAME = MCP_NAME
MODEL = r"^[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,127}$(?!\n)"
MODELS = r"^[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,127}(,[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,127}){0,7}$(?!\n)"

Model = Annotated[str, Meta(pattern=MODEL, description="Alias or full name.")]
Models = Annotated[str, Meta(pattern=MODELS, description="Aliases or full names, tried in this order.")]
Secret = Annotated[str, Meta(min_length=1, max_length=16384, pattern=r"^[\x21-\x7e]+$(?!\n)")]
Prompt = Annotated[str, Meta(min_length=1, max_length=262144, pattern=r"^[^\x00]*$(?!\n)")]
Rule = Annotated[
    str, Meta(min_length=1, max_length=512, pattern=r"^[A-Za-z_*][A-Za-z0-9_*-]*(\([^\x00-\x1f\x7f]*\))?$(?!\n)")
]
Rules = Annotated[list[Rule], Meta(max_length=256)]
ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$(?!\n)")]
Directory = Annotated[
    str, Meta(max_length=4096, pattern=r"^/[^\x00-\x1f\x7f]*$(?!\n)", description="An absolute path.")
]
Directories = Annotated[list[Directory], Meta(max_length=16)]
Beta = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$(?!\n)", examples=["context-1m-2025-08-07"])]
DebugFilter = Annotated[
    str,
    Meta(max_length=256, pattern=r"^([A-Za-z0-9_!][A-Za-z0-9_!,:.-]*)?$(?!\n)", description='As "api,!statsig".'),
]
Effort = Literal["low", "medium", "high", "xhigh", "max"]
SettingSource = Literal["user", "project", "local"]
PermissionMode = Literal["default", "plan", "acceptEdits", "bypassPermissions", "dontAsk", "auto"]


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
    """A subagent of the CLI, in the SDK's shape.  ``mcpServers``: names of the session's, or servers of its own."""

    description: Annotated[str, Meta(min_length=1, max_length=4096)]
    prompt: Prompt
    tools: Rules | UnsetType = UNSET
    disallowedTools: Rules | UnsetType = UNSET
    model: Model | UnsetType = UNSET
    mcpServers: Annotated[list[McpName | dict[McpName, McpServer]], Meta(max_length=32)] | UnsetType = UNSET
    permissionMode: PermissionMode | UnsetType = UNSET
    maxTurns: Annotated[int, Meta(ge=1, le=10_000)] | UnsetType = UNSET


Agents = Annotated[dict[Annotated[str, Meta(pattern=NAME)], Agent], Meta(max_length=64)]


class Permissions(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``settings.permissions``: rules, and two keys that obey the policy of the option which they imitate."""

    allow: Rules | UnsetType = UNSET
    deny: Rules | UnsetType = UNSET
    ask: Rules | UnsetType = UNSET
    defaultMode: PermissionMode | UnsetType = UNSET
    additionalDirectories: Directories | UnsetType = UNSET


class Settings(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The part of the CLI's settings that a tenant may give."""

    permissions: Permissions | UnsetType = UNSET
    effortLevel: Effort | UnsetType = UNSET
    outputStyle: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _-]{0,63}$(?!\n)")] | UnsetType = UNSET


class Debug(Struct, frozen=True, forbid_unknown_fields=True):
    """The CLI's debug log: which categories (empty: all), and whether clients get it as ``broker.debug`` frames."""

    filter: DebugFilter = ""
    frames: bool = True


class SessionOptions(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``options`` of ``broker.hello``.  Every field may be left out.

    Three groups: bound late, fixed when a process starts (the launch profile), and for the broker itself.
    """

    credentials: Credentials | UnsetType = UNSET
    model: Model | UnsetType = UNSET
    max_thinking_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] | UnsetType = UNSET
    max_output_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | UnsetType = UNSET
    effort: Effort | UnsetType = UNSET
    system_prompt: Prompt | UnsetType = UNSET
    append_system_prompt: Prompt | UnsetType = UNSET
    agents: Agents | UnsetType = UNSET
    json_schema: JsonSchema | UnsetType = UNSET
    permission_mode: PermissionMode | UnsetType = UNSET
    allowed_tools: Rules | UnsetType = UNSET
    disallowed_tools: Rules | UnsetType = UNSET
    settings: Settings | UnsetType = UNSET
    mcp_servers: McpServers | UnsetType = UNSET

    tools: Annotated[list[ToolName], Meta(max_length=64)] | UnsetType = UNSET
    fallback_model: Models | UnsetType = UNSET
    add_dirs: Directories | UnsetType = UNSET
    plugin_dirs: Directories | UnsetType = UNSET
    setting_sources: Annotated[list[SettingSource], Meta(max_length=3)] | UnsetType = UNSET
    max_turns: Annotated[int, Meta(ge=1, le=10_000)] | UnsetType = UNSET
    max_budget_usd: Annotated[float, Meta(gt=0, le=1_000_000)] | UnsetType = UNSET
    debug: DebugFilter | Debug | UnsetType = UNSET
    verbose: bool | UnsetType = UNSET
    ide: bool | UnsetType = UNSET
    betas: Annotated[list[Beta], Meta(max_length=16)] | UnsetType = UNSET

    permission_timeout_s: Annotated[float, Meta(gt=0, le=86400)] | UnsetType = UNSET
    lazy: bool | UnsetType = UNSET
    initialize: Literal["broker", "client"] | UnsetType = UNSET

    def given(self) -> dict[str, Any]:
        """The options that the client set, by name."""
        return {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not UNSET}


SPAWN_OPTIONS = (
    "tools", "fallback_model", "plugin_dirs", "setting_sources", "max_turns", "max_budget_usd", "debug", "verbose",
    "ide",
)  # fmt: skip
"""Fixed when a process starts: together with the model, the launch profile."""
