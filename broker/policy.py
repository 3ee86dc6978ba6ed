"""What a tenant may ask for, judged by the effect, whatever frame carries it.

Pure.  Callers: ``broker.session``.  Every refusal is a ``ClientError(option_not_allowed)`` that names the option and the
setting of the operator that forbids it.
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from msgspec import UNSET

from broker.config import Policy
from protocol.codes import CloseCode, ErrorCode
from protocol.controls import AddRules
from protocol.errors import ClientError
from protocol.frames import Content, Hello, TextBlock
from protocol.options import SessionOptions


def _refuse(what: str, setting: str, ref: str | None = None, close: CloseCode | None = None) -> ClientError:
    return ClientError(ErrorCode.OPTION_NOT_ALLOWED, f"{what}: not allowed (policy.{setting})", close=close, ref=ref)


def check_supported(hello: Hello) -> None:
    """Refuse what the protocol names and this version has not built; nothing is accepted and ignored."""
    unbuilt = {
        f"session.mode {hello.session.mode!r}": hello.session.mode in ("continue", "fork"),
        f"role {hello.role!r}": hello.role == "observer",
        f"view {hello.view!r}": hello.view == "messages",
    }
    for what, is_asked in unbuilt.items():
        if is_asked:
            raise ClientError(
                ErrorCode.BAD_OPTIONS, f"{what}: not supported by this version", close=CloseCode.BAD_FRAME
            )


def check_options(options: SessionOptions, policy: Policy) -> None:
    """Judge hello's options; a refusal closes with 4503."""
    if options.credentials is not UNSET:
        if policy.credentials == "server":
            raise _refuse("credentials", "credentials", close=CloseCode.NOT_ALLOWED)
        base_url = options.credentials.base_url
        if base_url is not UNSET and base_url not in policy.base_urls:
            raise _refuse("credentials.base_url", "base_urls", close=CloseCode.NOT_ALLOWED)
    if options.permission_mode is not UNSET:
        check_mode(options.permission_mode, policy, close=CloseCode.NOT_ALLOWED)
    if options.mcp_servers is not UNSET:
        for name, server in options.mcp_servers.items():
            if not may_reach(server.url, policy):
                raise _refuse(f"mcp_servers.{name}.url", "mcp_url_prefixes", close=CloseCode.NOT_ALLOWED)


def check_mode(mode: str, policy: Policy, ref: str | None = None, close: CloseCode | None = None) -> None:
    """Judge a permission mode, from hello or from a control request."""
    if mode not in policy.permission_modes:
        raise _refuse(f"permission_mode {mode!r}", "permission_modes", ref, close)


def check_content(content: Content, policy: Policy, ref: str | None) -> None:
    """Refuse text that the CLI may take for a command of its own: ``/clear`` changes the session, ``/model`` the model.

    A CLI older than 2.1.248 runs it even when the message is marked as composed by a client.
    """
    if policy.slash_commands:
        return
    texts = [content] if isinstance(content, str) else [b.text for b in content if isinstance(b, TextBlock)]
    if any(text.lstrip().startswith("/") for text in texts):
        raise _refuse("text that begins with '/'", "slash_commands", ref)


def check_updates(updates: list[AddRules], policy: Policy, ref: str) -> None:
    """Judge the permission rules that come with an answer: only for this session, only where the policy lets them."""
    for update in updates:
        if update.destination != "session":
            raise _refuse(f"updatedPermissions to {update.destination}", "session_permission_rules", ref)
        if not policy.session_permission_rules:
            raise _refuse("updatedPermissions", "session_permission_rules", ref)


def may_reach(url: str, policy: Policy) -> bool:
    """Whether an MCP server's URL may be contacted from this machine.

    Loopback, link-local, private and other special addresses are refused unless a prefix of the policy names them; a
    host *name* that resolves to one is the network's business (run the CLI behind an egress filter).
    """
    if any(url == prefix or url.startswith(prefix.rstrip("/") + "/") for prefix in policy.mcp_url_prefixes):
        return True
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return False
    is_bare = host is not None and "." not in host and ":" not in host
    if not host or is_bare or host.endswith((".localhost", ".local", ".internal")):
        return False
    return _is_public(host)


def _is_public(host: str) -> bool:
    try:
        return ip_address(host).is_global
    except ValueError:
        # Not an address in the usual notation.  Resolvers also take 0x7f.1, 017700000001 and 2130706433.
        last = host.rstrip(".").rsplit(".", 1)[-1]
        return not (last.isdigit() or last.lower().startswith("0x"))
