"""Start a program as systemd's socket activation does: listening sockets from file descriptor 3 on.

Callers: tests, ``running_broker(..., **activated([listener]))``.
"""

import socket
import sys
from collections.abc import Sequence
from typing import TypedDict

# LISTEN_PID is the program's own, which only the child itself can know: it sets it and then becomes the program.
_PREFIX = """
import fcntl, os, sys
names, fds, *argv = sys.argv[1:]
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in fds.split(",")]
for at, fd in enumerate(high, 3):
    os.dup2(fd, at)
    os.close(fd)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": names}
os.execvp(argv[0], argv)
"""


class Activation(TypedDict):
    """Arguments of ``running_broker``."""

    prefix: Sequence[str]
    pass_fds: Sequence[int]


def activated(sockets: Sequence[socket.socket], names: str = "") -> Activation:
    """Hand ``sockets`` over, with these ``LISTEN_FDNAMES``."""
    fds = [sock.fileno() for sock in sockets]
    return {"prefix": (sys.executable, "-c", _PREFIX, names, ",".join(map(str, fds))), "pass_fds": fds}


def listening(address: str = "127.0.0.1") -> socket.socket:
    """A TCP socket that listens on a free port."""
    return socket.create_server((address, 0), backlog=1024)
