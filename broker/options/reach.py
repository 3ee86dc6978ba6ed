"""Whether an MCP server's URL may be contacted from this machine: judged by its text, as every parser reads it.

Pure.  Caller: ``broker.options.policy``.
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, urlsplit

_BRACKETED = re.compile(r"\[[^\]]*\](:\d*)?")
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")
_HERE = (".localhost", ".localdomain", ".local", ".internal")
_DOTS = re.compile(r"/(\.|%2e){1,2}(/|$)", re.IGNORECASE)
_UNICAST = IPv6Network("2000::/3")
_SPECIAL = (IPv4Network("192.0.0.0/24"), IPv4Network("224.0.0.0/4"), IPv6Network("2002::/16"))
"""Addresses that ``is_global`` lets through: a cloud's metadata lives in the first; 6to4 hides an IPv4 address."""


def may_reach(url: str, prefixes: Sequence[str]) -> bool:
    """Whether an MCP server's URL may be contacted from this machine.

    Loopback, link-local, private and other special addresses are refused unless one of ``prefixes`` names them; a
    host *name* that resolves to one is the network's business (run the CLI behind an egress filter).
    """
    parts = _plain(url)
    if parts is None:
        return False
    if not _DOTS.search(parts.path) and any(_is_below(url, prefix) for prefix in prefixes):
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
