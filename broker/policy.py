"""What a tenant may ask for, judged by the effect, whatever frame carries it.

Pure.  Callers: ``broker.session``.  Every refusal is a ``ClientError(option_not_allowed)`` that names the option and
the setting of the operator that forbids it.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, urlsplit

from msgspec import UNSET

from broker.config import Policy
from protocol.codes import CloseCode, ErrorCode
from protocol.controls import AddRules
from protocol.errors import ClientError, ConnectionRefused
from protocol.frames import Content, Hello, TextBlock
from protocol.options import SessionOptions

_COMMAND = re.compile(r"[\s\ufeff]*/")
"""What the CLI's trim() takes away before it looks for a command: white space and the byte order mark."""
_BRACKETED = re.compile(r"\[[^\]]*\](:\d*)?")
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")
_HERE = (".localhost", ".localdomain", ".local", ".internal")
_DOTS = re.compile(r"/(\.|%2e){1,2}(/|$)", re.IGNORECASE)
_UNICAST = IPv6Network("2000::/3")
_SPECIAL = (IPv4Network("192.0.0.0/24"), IPv4Network("224.0.0.0/4"), IPv6Network("2002::/16"))
"""Addresses that ``is_global`` lets through: a cloud's metadata lives in the first; 6to4 hides an IPv4 address."""


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
    if any(_COMMAND.match(text) for text in texts):
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
    parts = _plain(url)
    if parts is None:
        return False
    if not _DOTS.search(parts.path) and any(_is_below(url, prefix) for prefix in policy.mcp_url_prefixes):
        return True
    host = parts.hostname or ""
    if _BRACKETED.fullmatch(parts.netloc):
        return _is_public(host)
    name = host.removesuffix(".")
    if not _NAME.fullmatch(name) or name.endswith(_HERE):
        return False
    # Resolvers take 0x7f.1, 017700000001 and 2130706433 for addresses too: what ends in a number must be a plain one.
    last = name.rpartition(".")[2]
    return _is_public(name) if last.isdigit() or last.startswith("0x") else True


def _plain(url: str) -> SplitResult | None:
    """The parts of a URL that every parser reads alike, else None: browsers and the CLI take ``\\`` for ``/``, decode
    ``%31`` in a host and map other scripts' digits and dots to ASCII."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return parts if url.isascii() and "\\" not in url and not set("@%") & set(parts.netloc) else None


def _is_below(url: str, prefix: str) -> bool:
    return url == prefix or url.startswith(prefix.rstrip("/") + "/")


def _is_public(host: str) -> bool:
    try:
        address: IPv4Address | IPv6Address = ip_address(host)
    except ValueError:
        return False
    is_unicast = address.version == 4 or address in _UNICAST
    return address.is_global and is_unicast and not any(address in network for network in _SPECIAL)
