"""What a conversation has bound, judged by a policy that has changed since."""

from pathlib import Path
from typing import Any

import pytest

from broker.config.policy import Policy
from broker.options.bound import Bound
from broker.options.standing import check_bound
from protocol.codes import CloseCode, ErrorCode
from protocol.controls import HookMatcher
from protocol.errors import ClientError
from protocol.mcp import McpHttp, McpStdio
from protocol.options import Agent, Credentials, Permissions, SessionOptions, Settings

DEFAULT = Policy()
STDIO = McpStdio("/bin/true")
WISHES: dict[str, tuple[dict[str, Any], Policy]] = {
    "permission_modes": ({"permission_mode": "bypassPermissions"}, DEFAULT),
    "mcp_stdio": ({"mcp_servers": {"own": STDIO}}, DEFAULT),
    "mcp_url_prefixes": ({"mcp_servers": {"own": McpHttp("http://127.0.0.1:9/")}}, DEFAULT),
    "models": ({"model": "opus"}, Policy(models=["haiku"])),
    "base_urls": ({"credentials": Credentials(api_key="k", base_url="https://x.example")}, DEFAULT),
    "unscrubbed_secrets": ({"credentials": Credentials(api_key="k")}, Policy(unscrubbed_secrets="refuse")),
    "add_dir_roots": ({"add_dirs": ["/"]}, Policy(options=["add_dirs"])),
    "plugin_roots": ({"plugin_dirs": ["/"]}, Policy(options=["plugin_dirs"])),
    "options": ({"debug": ""}, DEFAULT),
}
OTHERS: list[tuple[dict[str, Any], Policy, str]] = [
    ({"fallback_model": "opus"}, Policy(models=["haiku"]), "models"),
    ({"tools": []}, Policy(options=[]), "options"),
    ({"betas": ["b-1"]}, DEFAULT, "options"),
    ({"agents": {"a": Agent("d", "p", mcpServers=[{"own": STDIO}])}}, DEFAULT, "mcp_stdio"),
    ({"settings": Settings(Permissions(additionalDirectories=["/"]))}, Policy(options=["add_dirs"]), "add_dir_roots"),
    ({"settings": Settings(Permissions(additionalDirectories=["/"]))}, Policy(add_dir_roots=["/"]), "options"),
    ({"setting_sources": ["local"]}, Policy(options=["setting_sources"], hooks=False), "hooks"),
    ({"model": "sonnet[1m]"}, DEFAULT, "options"),
]


def bound(**options: Any) -> Bound:
    made, given = Bound(), SessionOptions(**options)
    made.take_spawn(given)
    made.merge(given, with_initialize=True)
    return made


def refused(made: Bound, policy: Policy, setting: str) -> None:
    with pytest.raises(ClientError) as caught:
        check_bound(made, policy)
    assert (caught.value.code, caught.value.close) == (ErrorCode.OPTION_NOT_ALLOWED, CloseCode.NOT_ALLOWED)
    assert caught.value.message.endswith(f"(policy.{setting})")


@pytest.mark.parametrize("setting", WISHES)
def test_each_setting_forbids_what_it_would_have_forbidden(setting: str) -> None:
    """By name, as at hello."""
    options, policy = WISHES[setting]
    refused(bound(**options), policy, setting)


@pytest.mark.parametrize(("options", "policy", "setting"), OTHERS)
def test_other_carriers_of_the_same(options: dict[str, Any], policy: Policy, setting: str) -> None:
    """What hides in agents and settings is found, too."""
    refused(bound(**options), policy, setting)


def test_a_process_that_could_bypass_is_refused_in_any_mode() -> None:
    """The start allows the mode, whichever is set now."""
    made = bound(permission_mode="bypassPermissions")
    made.permission_mode = "default"
    refused(made, DEFAULT, "permission_modes")


def test_hooks() -> None:
    """Hooks that a client declared, where none may be any more."""
    made = bound()
    made.hooks = {"Stop": [HookMatcher(["h"])]}
    check_bound(made, DEFAULT)
    refused(made, Policy(hooks=False), "hooks")


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    """Nothing at all, the server's own credential, and everything where the policy allows it."""
    check_bound(Bound(), Policy(models=["haiku"], options=[], permission_modes=[], hooks=False))
    check_bound(bound(credentials=Credentials(api_key="k")), Policy(credentials="server"))
    made = bound(
        permission_mode="bypassPermissions", mcp_servers={"own": STDIO}, model="opus", add_dirs=[str(tmp_path)]
    )
    check_bound(
        made,
        Policy(
            permission_modes=["bypassPermissions"],
            mcp_stdio=True,
            models=["opus"],
            options=["add_dirs"],
            add_dir_roots=[str(tmp_path)],
        ),
    )


def test_a_server_that_pays_no_more() -> None:
    """Its credential is not spent any longer: the client has to bring one."""
    made = bound(credentials=Credentials(oauth_token="own"))
    made.is_paid = True
    check_bound(made, Policy(credentials="server"))
    with pytest.raises(ClientError) as caught:
        check_bound(made, DEFAULT)
    assert (caught.value.code, caught.value.close) == (ErrorCode.CREDENTIALS_REQUIRED, CloseCode.BIND_FAILED)
    made.merge(SessionOptions(credentials=Credentials(oauth_token="mine")), with_initialize=False)
    check_bound(made, DEFAULT)
