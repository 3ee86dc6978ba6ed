"""What a control request changes in what is bound, and what everybody is told of it."""

from broker.config.policy import Policy
from broker.options.bound import Bound
from broker.sessions.accepted import accept, alter
from protocol.controls import (
    ApplyFlagSettings,
    Control,
    GetSettings,
    McpSetServers,
    McpToggle,
    SetCredentials,
    SetMaxThinkingTokens,
    SetModel,
    SetPermissionMode,
)
from protocol.frames import State
from protocol.mcp import McpSdk, McpStdio
from protocol.options import Credentials, Permissions, Settings

POLICY = Policy(mcp_servers={"docs": McpStdio("/usr/bin/docs")})


def told(control: Control, bound: Bound) -> State | None:
    return accept(control, bound, POLICY)


def test_what_is_changed_before_the_cli_is_asked() -> None:
    """Credentials, servers and settings: what is told is made of all that holds."""
    bound = Bound()
    key = Credentials(api_key="k")
    assert alter(SetCredentials(key), bound) == {"credentials"}
    assert alter(McpSetServers({"own": McpSdk()}), bound) == {"mcp_servers"}
    assert alter(ApplyFlagSettings(Settings(effortLevel="high")), bound) == {"effort"}
    assert (bound.credentials, bound.mcp_servers, bound.effort) == (key, {"own": McpSdk()}, "high")
    assert told(SetCredentials(key), bound) == State(credentials="api_key")
    assert told(McpSetServers({}), bound) == State(mcp_servers=["docs", "own"])


def test_what_is_kept_once_the_cli_has_agreed() -> None:
    """Model, mode and thinking, for the next process and for everybody."""
    bound = Bound()
    assert told(SetModel("opus"), bound) == State(model="opus")
    assert told(SetPermissionMode("plan"), bound) == State(permission_mode="plan")
    assert told(SetMaxThinkingTokens(None), bound) == State(max_thinking_tokens=None)
    assert (bound.model, bound.permission_mode, bound.max_thinking_tokens) == ("opus", "plan", None)
    assert told(GetSettings(), bound) is None


def test_a_server_that_is_switched_off_is_remembered() -> None:
    """It is not among the servers until it is switched on again."""
    bound = Bound(mcp_servers={"own": McpSdk()})
    assert told(McpToggle("own", enabled=False), bound) == State(mcp_servers=["docs"])
    assert bound.mcp_off == {"own"}
    assert told(McpToggle("own", enabled=True), bound) == State(mcp_servers=["docs", "own"])
    assert bound.mcp_off == frozenset()


def test_settings_are_told_by_name() -> None:
    """No value but the permission mode, which has a field of its own."""
    settings = Settings(Permissions(allow=["Read"], defaultMode="plan"), outputStyle="Learning")
    assert told(ApplyFlagSettings(settings), Bound()) == State(
        settings=["permissions.allow", "permissions.defaultMode", "outputStyle"], permission_mode="plan"
    )
    assert told(ApplyFlagSettings(Settings(effortLevel="low")), Bound()) == State(settings=["effortLevel"])


def test_nobody_switches_the_operators_servers_off() -> None:
    """A tenant's own server of that name was switched off before the operator had one."""
    bound = Bound(mcp_servers={"docs": McpSdk()}, mcp_off=frozenset({"docs"}))
    assert told(McpSetServers({}), bound) == State(mcp_servers=["docs"])
