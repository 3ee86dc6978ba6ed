"""Who may ask: the ``Host`` and ``Origin`` of a request.

Pure.  Caller: ``broker.sockets.http``, before anything else of a request is looked at.
"""

import ipaddress
import re
from collections.abc import Collection, Sequence

from broker.config.tree import is_loopback


def own_names(listen_host: str, port: int) -> frozenset[str]:
    """The ``Host`` values of a listener itself: on loopback all three usual names, else its address; at its port."""
    own = f"[{listen_host}]" if ":" in listen_host else listen_host
    names = {own, "127.0.0.1", "localhost", "[::1]"} if is_loopback(listen_host) else {own}
    return frozenset(f"{name}:{port}" for name in names) | (frozenset(names) if port == 80 else frozenset())


def host_allowed(
    values: Sequence[str], allowed: Collection[str], own: Collection[str], any_address_at: int = 0
) -> bool:
    """Whether the ``Host`` header names this broker; exactly one is needed.

    ``allowed`` entries without a port stand for every port.  ``any_address_at``: the port at which any IP address will
    do, for a listener on all interfaces (a rebound DNS name, which this check is against, is never an address).
    """
    if len(values) != 1:
        return False
    host = values[0].strip().lower()
    if (match := re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", host)) is None:
        return False
    if host in own or host in allowed or match[1] in allowed:
        return True
    return bool(any_address_at) and match[2] == str(any_address_at) and _is_address(match[1].strip("[]"))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def origin_allowed(values: Sequence[str], allowed: Collection[str], own: Collection[str]) -> bool:
    """Whether a page of this ``Origin`` may connect.  Without the header (no browser) yes; with two, no.

    ``own``: the Host values of a loopback listener, whose pages may always connect; empty for another listener.
    """
    if not values:
        return True
    return len(values) == 1 and (values[0] in allowed or values[0] in {f"http://{host}" for host in own})
