"""What a tenant may ask for, frame by frame; the effects themselves are judged in ``broker.options.effects``.

Pure but for looking at directories.  Callers: ``broker.sockets.connection``, ``broker.sessions.session``,
``broker.sessions.exchange``.  Every refusal is a ``ClientError(option_not_allowed)`` that names the option and the
setting of the operator that forbids it.
"""

import re
from typing import Any, get_args

from msgspec import UNSET
from msgspec.structs import replace

from broker.config.policy import Policy, SpecialOption
from broker.options.effects import Effects
from protocol.codes import CloseCode, ErrorCode
from protocol.content import Content, TextBlock
from protocol.controls import (
    AddRules,
    ApplyFlagSettings,
    Control,
    Initialize,
    McpSetServers,
    SetCredentials,
    SetModel,
    SetPermissionMode,
)
from protocol.errors import ClientError, ConnectionRefused
from protocol.options import SessionOptions

_COMMAND = re.compile(r"[\s\ufeff]*/")
"""What the CLI's trim() takes away before it looks for a command: white space and the byte order mark."""


SPECIAL_OPTIONS = get_args(SpecialOption)
INITIALIZE_OPTIONS = ("system_prompt", "append_system_prompt", "agents", "json_schema")


def subject(entitled: str, named: str | None) -> str:
    """Whom a connection speaks for: a token of ``*`` lets hello name the subject, another one does not."""
    if entitled == "*":
        return named or "*"
    if named is not None and named != entitled:
        raise ConnectionRefused(CloseCode.NOT_ALLOWED, "the token speaks for another subject")
    return entitled


def check_credentials(options: SessionOptions, policy: Policy, *, is_needed: bool) -> None:
    """A new conversation needs somebody's credential, and hello is where a client's comes from.

    ``is_needed``: neither the CLI nor the operator's environment brings one.
    """
    if is_needed and options.credentials is UNSET and policy.credentials == "client":
        message = "options.credentials is needed: oauth_token, api_key or auth_token"
        raise ClientError(ErrorCode.CREDENTIALS_REQUIRED, message, close=CloseCode.BIND_FAILED)


def check_options(options: SessionOptions, policy: Policy) -> SessionOptions:
    """Judge hello's options; returns them with their directories resolved.  A refusal closes with 4503."""
    _check_initialize(options)
    judge = Effects(policy, close=CloseCode.NOT_ALLOWED)
    for name in SPECIAL_OPTIONS:
        if getattr(options, name) is not UNSET and name not in policy.options:
            raise judge.refusal(name, "options")
    judge.credentials(options.credentials)
    judge.model("model", options.model)
    judge.model("fallback_model", options.fallback_model)
    judge.mode("permission_mode", options.permission_mode)
    judge.mcp_servers("mcp_servers", options.mcp_servers)
    judge.agents(options.agents)
    judge.setting_sources(options.setting_sources or [])
    resolved: dict[str, Any] = {}
    if options.settings is not UNSET:
        resolved["settings"] = judge.settings(options.settings)
    if options.add_dirs is not UNSET:
        resolved["add_dirs"] = judge.directories("add_dirs", options.add_dirs)
    if options.plugin_dirs is not UNSET:
        resolved["plugin_dirs"] = judge.plugins(options.plugin_dirs)
    return replace(options, **resolved) if resolved else options


def _check_initialize(options: SessionOptions) -> None:
    """What the client's own ``initialize`` brings, hello must not bring too."""
    for name in INITIALIZE_OPTIONS if options.initialize == "client" else ():
        if getattr(options, name) is not UNSET:
            message = f"with initialize: client, the client's own initialize brings it - at `$.options.{name}`"
            raise ClientError(ErrorCode.BAD_OPTIONS, message, close=CloseCode.BAD_FRAME)


def check_control(control: Control, policy: Policy, ref: str) -> Control:
    """Judge a client's control request; returns it with its directories resolved."""
    judge = Effects(policy, ref=ref)
    match control:
        case SetModel(model=model):
            judge.model("model", model)
        case SetPermissionMode(mode=mode):
            judge.mode("permission_mode", mode)
        case SetCredentials(credentials=credentials):
            judge.credentials(credentials)
        case McpSetServers(servers=servers):
            judge.mcp_servers("servers", servers)
        case ApplyFlagSettings(settings=settings):
            return ApplyFlagSettings(judge.settings(settings))
        case Initialize(agents=agents, hooks=hooks):
            judge.agents(agents)
            if hooks and not policy.hooks:
                raise judge.refusal("hooks", "hooks")
        case _:  # nothing that a policy could forbid
            pass
    return control


def check_content(content: Content, policy: Policy, ref: str | None) -> bool:
    """Refuse text that the CLI may take for a command of its own: ``/clear`` changes the session, ``/model`` the model.

    A CLI older than 2.1.248 runs it even when the message is marked as composed by a client.  Returns whether it is a
    command, one that is allowed.
    """
    texts = [content] if isinstance(content, str) else [b.text for b in content if isinstance(b, TextBlock)]
    is_command = any(_COMMAND.match(text) for text in texts)
    if is_command and not policy.slash_commands:
        raise Effects(policy, ref).refusal("text that begins with '/'", "slash_commands")
    return is_command


def check_updates(updates: list[AddRules], policy: Policy, ref: str) -> None:
    """Judge the permission rules that come with an answer: only for this session, only where the policy lets them."""
    judge = Effects(policy, ref)
    for update in updates:
        if update.destination != "session":
            raise judge.refusal(f"updatedPermissions to {update.destination}", "session_permission_rules")
        if not policy.session_permission_rules:
            raise judge.refusal("updatedPermissions", "session_permission_rules")
