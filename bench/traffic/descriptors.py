"""File descriptors for as many sockets as a load has, here and in what is started from here.

Callers: ``bench.connect``, ``bench.peers``, ``bench.traffic.target``.
"""

import resource
from typing import Final

from bench.children import ChildFailed

ROOM: Final = 1500
"""Beside the sockets: a broker keeps some for processes and files, and refuses sockets before they are gone."""


def make_room(sockets: int) -> None:
    """Raise the soft limit as far as that needs.  Raises ``ChildFailed`` when the system allows fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = sockets + ROOM
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ChildFailed(f"{wanted} descriptors are needed and the system allows {hard} (ulimit -Hn): ask for less")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
