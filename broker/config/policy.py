"""What an operator lets tenants do: ``[policy]`` of the configuration, and of one tenant in ``tenants.toml``.

Owner: none, a ``Policy`` is immutable.  It is judged by in ``broker.options.policy``; every key is named in its
refusals.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from protocol.mcp import McpServers
from protocol.options import Directories, Model, PermissionMode

BaseUrl = Annotated[str, Meta(pattern=r"^https?://[^/\s?#@]+(/[^\s?#]*)?$(?!\n)", examples=["https://api.example.com"])]
UrlPrefix = Annotated[
    str,
    Meta(pattern=r"^https?://[^/\s?#@]+/[^\s?#]*$(?!\n)", examples=["http://127.0.0.1:9000/ (a / after the host)"]),
]
SpecialOption = Literal[
    "tools", "fallback_model", "add_dirs", "plugin_dirs", "setting_sources", "max_turns", "max_budget_usd", "debug",
    "verbose", "ide", "betas",
]  # fmt: skip


def _says(text: str) -> Meta:
    return Meta(description=text)


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """What a tenant may set; ``tenants.toml`` may override it per tenant."""

    credentials: Annotated[Literal["client", "server"], _says("Who brings the credential.")] = "client"
    unscrubbed_secrets: Annotated[
        Literal["warn", "refuse"], _says("API keys and bearer tokens where the agent's tools can read them.")
    ] = "warn"
    base_urls: Annotated[list[BaseUrl], _says("API base URLs that may be set, exact.")] = []
    models: Annotated[list[Model], _says("Models that clients and agents may name, exact; empty: any.")] = []
    slash_commands: Annotated[bool, _says("May a message begin with /.")] = False
    permission_modes: Annotated[list[PermissionMode], _says("Permission modes that may be set.")] = field(
        default_factory=lambda: ["default", "plan", "acceptEdits"]
    )
    session_permission_rules: Annotated[bool, _says("May a permission answer add rules to the session.")] = False
    options: Annotated[list[SpecialOption], _says("Options that may be used, beside the ordinary ones.")] = field(
        default_factory=lambda: ["tools", "fallback_model", "max_turns", "max_budget_usd"]
    )
    add_dir_roots: Annotated[Directories, _says("Folders below which a session may add directories.")] = []
    plugin_roots: Annotated[Directories, _says("Folders below which a session may load plugins.")] = []
    mcp_servers: Annotated[McpServers, _says("The operator's own MCP servers, given to every session.")] = {}
    mcp_url_prefixes: Annotated[
        list[UrlPrefix], _says("MCP URLs that may be set although they are loopback or private.")
    ] = []
    mcp_stdio: Annotated[bool, _says("May a tenant name MCP servers that are programs on this machine.")] = False
    hooks: Annotated[bool, _says("May a client declare hooks (options.initialize = client).")] = True


def in_force(policy: Policy, *, is_scrubbed: bool) -> Policy:
    """``policy`` as it holds on this machine: where tools cannot read credentials, none is refused for that."""
    return replace(policy, unscrubbed_secrets="warn") if is_scrubbed else policy
