"""What a conversation has bound, judged again: a process is never given what the policy that holds now forbids.

Pure but for looking at directories.  Callers: ``broker.sessions.opening``, before a hello branches off a conversation
or takes up one without a process, and ``broker.sessions.tenure``, before each process.  What hello itself asks for is
judged in ``broker.options.policy``.
"""

from typing import cast, get_args

from msgspec import UNSET

from broker.config.policy import Policy, SpecialOption
from broker.options.bound import Bound
from broker.options.effects import Effects
from protocol.codes import CloseCode, ErrorCode
from protocol.errors import ClientError
from protocol.options import PermissionMode


def check_bound(bound: Bound, policy: Policy) -> None:
    """Raises ``ClientError(option_not_allowed)``, which closes with 4503 and names the option and the setting.

    Where the server pays, the credential is its own: every hello binds it.
    """
    judge = Effects(policy, close=CloseCode.NOT_ALLOWED)
    for name in get_args(SpecialOption):
        if name not in policy.options and _special(bound, name):
            raise judge.refusal(name, "options")
    if bound.credentials is not None and policy.credentials == "client":
        if bound.is_paid:
            message = "options.credentials is needed: the server does not pay any more (policy.credentials)"
            raise ClientError(ErrorCode.CREDENTIALS_REQUIRED, message, close=CloseCode.BIND_FAILED)
        judge.credentials(bound.credentials)
    if bound.model is not None:
        judge.model("model", bound.model)
    if bound.spawn.fallback_model is not None:
        judge.model("fallback_model", bound.spawn.fallback_model)
    if bound.permission_mode is not None:
        judge.mode("permission_mode", cast("PermissionMode", bound.permission_mode))
    if bound.spawn.bypass:  # the mode could be set without asking again
        judge.mode("permission_mode", "bypassPermissions")
    judge.directories("add_dirs", bound.add_dirs or [])
    if bound.rules.additionalDirectories is not UNSET:
        judge.more_directories(bound.rules.additionalDirectories)
        judge.directories("settings.permissions.additionalDirectories", bound.rules.additionalDirectories)
    judge.plugins(bound.spawn.plugin_dirs)
    judge.setting_sources(bound.spawn.setting_sources)
    judge.mcp_servers("mcp_servers", bound.mcp_servers)
    judge.agents(bound.initialize.get("agents"))
    if bound.hooks and not policy.hooks:
        raise judge.refusal("hooks", "hooks")


def _special(bound: Bound, name: str) -> bool:
    """Whether an option that has to be allowed by name is in use."""
    value = getattr(bound if name in ("add_dirs", "betas") else bound.spawn, name)
    return value is not None if name in ("tools", "debug") else bool(value)
