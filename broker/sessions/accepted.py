"""What a control request changes in what is bound, and what everybody is told of it.

Pure.  Caller: ``broker.sessions.exchange``.  Some changes are made before the CLI is asked (``alter``: the line for the
CLI is made of all that holds then), others once it has agreed (``accept``).
"""

from msgspec import UNSET, Struct

from broker.config.policy import Policy
from broker.options.bound import Bound
from protocol.controls import (
    ApplyFlagSettings,
    Control,
    McpSetServers,
    McpToggle,
    SetCredentials,
    SetMaxThinkingTokens,
    SetModel,
    SetPermissionMode,
)
from protocol.frames import State
from protocol.options import Permissions, Settings

BY_OPTION: dict[str, type[Control]] = {
    "model": SetModel, "permission_mode": SetPermissionMode, "max_thinking_tokens": SetMaxThinkingTokens,
}  # fmt: skip
"""Control requests that are remembered once the CLI has agreed, by the option of hello that says the same."""


def alter(control: SetCredentials | ApplyFlagSettings | McpSetServers, bound: Bound) -> frozenset[str]:
    """Change what is bound; returns the names of the options that the CLI is to be told."""
    match control:
        case SetCredentials(credentials=credentials):
            bound.set_credentials(credentials)
            return frozenset({"credentials"})
        case ApplyFlagSettings(settings=settings):
            return bound.merge_settings(settings)
        case McpSetServers(servers=servers):
            bound.mcp_servers = servers
            return frozenset({"mcp_servers"})


def accept(control: Control, bound: Bound, policy: Policy) -> State | None:
    """The CLI has agreed: remember it for the next process; returns what everybody is told, if anything."""
    match control:
        case SetModel(model=model):
            bound.model = model
            return State(model=model)
        case SetPermissionMode(mode=mode):
            bound.permission_mode = mode
            return State(permission_mode=mode)
        case SetMaxThinkingTokens(max_thinking_tokens=tokens):
            bound.max_thinking_tokens = tokens
            return State(max_thinking_tokens=tokens)
        case SetCredentials(credentials=credentials):
            return State(credentials=credentials.kind)
        case ApplyFlagSettings(settings=settings):
            return _state_of(settings)
        case McpSetServers():
            return _servers(bound, policy)
        case McpToggle(serverName=name, enabled=enabled):
            bound.mcp_off = bound.mcp_off - {name} if enabled else bound.mcp_off | {name}
            return _servers(bound, policy)
        case _:
            return None


def _servers(bound: Bound, policy: Policy) -> State:
    """The names of the servers that are switched on."""
    return State(mcp_servers=sorted({*(bound.mcp_servers.keys() - bound.mcp_off), *policy.mcp_servers}))


def _state_of(settings: Settings) -> State:
    """The names of the settings that were given, and the permission mode if it was among them."""
    permissions = Permissions() if settings.permissions is UNSET else settings.permissions
    names = [f"permissions.{name}" for name in _given(permissions)]
    names += [name for name in _given(settings) if name != "permissions"]
    return State(settings=names, permission_mode=permissions.defaultMode)


def _given(struct: Struct) -> list[str]:
    return [name for name in struct.__struct_fields__ if getattr(struct, name) is not UNSET]
