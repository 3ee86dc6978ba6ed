"""Effects that a tenant may wish for, each judged in one place: whatever frame carries the wish, one answer.

Pure but for looking at directories.  Caller: ``broker.options.policy``, which knows the carriers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from broker.config.policy import Policy
from broker.options.directories import resolve_below
from broker.options.reach import may_reach
from protocol.codes import CloseCode, ErrorCode
from protocol.errors import ClientError
from protocol.mcp import McpHttp, McpServer, McpSse, McpStdio
from protocol.options import Agent, Credentials, PermissionMode, Settings

EXPANDED = "${"
"""In headers the CLI puts variables of its own environment in the place of ``${NAME}``: 2.1.197 any of them, also the
operator's credential, 2.1.329 those that it does not know as secrets.  Only an operator's own servers may hold it."""


LONG_CONTEXT = "[1m]"
"""A model's name that ends so sends the header of a beta."""


def _texts(server: McpServer) -> list[str]:
    match server:
        case McpHttp(url=url, headers=headers) | McpSse(url=url, headers=headers):
            return [url, *headers.values()]
        case McpStdio(command=command, args=args, env=env):
            return [command, *args, *env.values()]
        case _:
            return []


@dataclass(frozen=True, slots=True)
class Effects:
    """Judges by one policy.  ``ref`` names the frame in a refusal; ``close`` is set when a refusal ends the socket.

    Every method raises ``ClientError(option_not_allowed)`` that names the wish and the operator's setting.
    """

    policy: Policy
    ref: str | None = None
    close: CloseCode | None = None

    def refusal(self, what: str, setting: str) -> ClientError:
        """The error for ``what``, which ``policy.setting`` forbids."""
        message = f"{what}: not allowed (policy.{setting})"
        return ClientError(ErrorCode.OPTION_NOT_ALLOWED, message, close=self.close, ref=self.ref)

    def credentials(self, wish: Credentials | UnsetType) -> None:
        """Who pays, and at which address."""
        if wish is UNSET:
            return
        if self.policy.credentials == "server":
            raise self.refusal("credentials", "credentials")
        if self.policy.unscrubbed_secrets == "refuse" and wish.oauth_token is UNSET:
            raise self.refusal(f"credentials.{wish.kind}, which tools could read", "unscrubbed_secrets")
        if wish.base_url is not UNSET and wish.base_url not in self.policy.base_urls:
            raise self.refusal("credentials.base_url", "base_urls")

    def model(self, what: str, wish: str | UnsetType | None) -> None:
        """A model by name; null asks for the CLI's default, which is no choice of the operator's."""
        allowed = self.policy.models
        if wish and wish.endswith(LONG_CONTEXT) and wish not in allowed and "betas" not in self.policy.options:
            raise self.refusal(f"{what} {wish!r}", "options")
        if wish is not UNSET and allowed and not set((wish or "").split(",")) <= set(allowed):
            raise self.refusal(f"{what} {wish!r}", "models")

    def mode(self, what: str, wish: PermissionMode | UnsetType) -> None:
        """A permission mode, for the session or for one of its agents."""
        if wish is not UNSET and wish not in self.policy.permission_modes:
            raise self.refusal(f"{what} {wish!r}", "permission_modes")

    def mcp_servers(self, what: str, wish: Mapping[str, McpServer] | UnsetType) -> None:
        """Where the CLI connects to, and which programs it starts."""
        if wish is UNSET:
            return
        for name, server in wish.items():
            if any(EXPANDED in text for text in _texts(server)):
                raise self.refusal(f"{what}.{name}: {EXPANDED!r}", "mcp_servers")
            match server:
                case McpHttp(url=url) | McpSse(url=url):
                    if not may_reach(url, self.policy.mcp_url_prefixes):
                        raise self.refusal(f"{what}.{name}.url", "mcp_url_prefixes")
                case McpStdio():
                    if not self.policy.mcp_stdio:
                        raise self.refusal(f"{what}.{name}: stdio", "mcp_stdio")
                case _:  # sdk: it lives in the client
                    pass

    def agents(self, wish: Mapping[str, Agent] | UnsetType | None) -> None:
        """Subagents: their model, mode and servers are judged as the session's own."""
        for name, agent in (wish or {}).items():
            if agent.model != "inherit":
                self.model(f"agents.{name}.model", agent.model)
            self.mode(f"agents.{name}.permissionMode", agent.permissionMode)
            for server in agent.mcpServers or []:
                if not isinstance(server, str):
                    self.mcp_servers(f"agents.{name}.mcpServers", server)

    def setting_sources(self, wish: Sequence[str]) -> None:
        """Files of the session, which the agent itself may write: they may name hooks, that is programs."""
        if wish and not self.policy.hooks:
            raise self.refusal("setting_sources, whose files may hold hooks", "hooks")

    def settings(self, wish: Settings) -> Settings:
        """Settings of the CLI; returns them with their directories resolved."""
        permissions = wish.permissions
        if permissions is UNSET:
            return wish
        self.mode("settings.permissions.defaultMode", permissions.defaultMode)
        if permissions.additionalDirectories is UNSET:
            return wish
        self.more_directories(permissions.additionalDirectories)
        found = self.directories("settings.permissions.additionalDirectories", permissions.additionalDirectories)
        return replace(wish, permissions=replace(permissions, additionalDirectories=found))

    def more_directories(self, wish: Sequence[str]) -> None:
        """Directories that are named by a setting are those of the option that it imitates."""
        if wish and "add_dirs" not in self.policy.options:
            raise self.refusal("settings.permissions.additionalDirectories", "options")

    def directories(self, what: str, wish: Sequence[str]) -> list[str]:
        """Directories to work in; returns what they really are."""
        return self._below(what, wish, self.policy.add_dir_roots, "add_dir_roots")

    def plugins(self, wish: Sequence[str]) -> list[str]:
        """Directories of plugins, whose code the CLI runs; returns what they really are."""
        return self._below("plugin_dirs", wish, self.policy.plugin_roots, "plugin_roots")

    def _below(self, what: str, wish: Sequence[str], roots: Sequence[str], setting: str) -> list[str]:
        found = [resolve_below(path, roots) for path in wish]
        for path, real in zip(wish, found, strict=True):
            if real is None:
                raise self.refusal(f"{what} {path[:256]!r}", setting)
        return [real for real in found if real is not None]
