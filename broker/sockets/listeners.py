"""Listening sockets that were opened by whoever started the broker: systemd's socket activation (sd_listen_fds(3)).

Such a socket outlives the broker: what connects between two brokers waits in its backlog and is not refused.  Caller:
``broker.__main__``, before anything else; ``broker.sockets.server`` and ``broker.sockets.admin`` listen on what is
found here.
"""

import os
import socket
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from broker.config.tree import endpoint
from broker.errors import ConfigError

FIRST_FD = 3
"""SD_LISTEN_FDS_START."""
Listener = socket.socket
ADMIN = "admin"
"""The name of the admin listener's socket (``FileDescriptorName=``)."""
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
MOST = 2


@dataclass(frozen=True, slots=True)
class Listeners:
    """The sockets that were handed over; None: the broker binds its own."""

    public: socket.socket | None = None
    admin: socket.socket | None = None

    @property
    def flags(self) -> dict[str, str]:
        """Their addresses as settings, above all others: the configuration is judged by what is really open."""
        found = {"server.listen": self.public, "admin.listen": self.admin}
        return {key: _address(sock) for key, sock in found.items() if sock is not None}


def take(environ: MutableMapping[str, str], pid: int, first_fd: int = FIRST_FD) -> Listeners:
    """The sockets that ``environ`` tells process ``pid`` of; its variables are removed, so that no child sees them.

    With two sockets the one named ``admin``, else the second, is the admin listener.  Raises ``ConfigError`` when one
    of them is no listening TCP socket, or when nobody can tell which is which.
    """
    told = {name: environ.pop(name, "") for name in VARIABLES}
    if told["LISTEN_PID"] != str(pid) or not told["LISTEN_FDS"]:
        return Listeners()
    count = int(told["LISTEN_FDS"]) if told["LISTEN_FDS"].isdecimal() else -1
    if not 0 <= count <= MOST:
        raise ConfigError("LISTEN_FDS", f"found {told['LISTEN_FDS'][:32]!a}", f"from 0 to {MOST}: public, admin")
    names = told["LISTEN_FDNAMES"].split(":") if told["LISTEN_FDNAMES"] else []
    if count == MOST and len(names) == MOST and names[0] == names[1]:
        raise ConfigError("LISTEN_FDNAMES", f"both sockets are named {names[0][:32]!a}", f"one of them named {ADMIN}")
    sockets = [_listener(first_fd + index) for index in range(count)]
    if ADMIN in names[:count]:
        admin = sockets.pop(names.index(ADMIN))
        return Listeners(sockets[0] if sockets else None, admin)
    return Listeners(*sockets)


def _listener(fd: int) -> socket.socket:
    where = f"LISTEN_FDS (file descriptor {fd})"
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ConfigError(where, "is no socket", "a listening TCP socket")
        os.set_inheritable(fd, False)
        # The protocol is written out: with 0 the loop would not set TCP_NODELAY on what it accepts.
        with socket.socket(fileno=os.dup(fd)) as found:
            family, kind = found.family, found.type
            listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigError(where, f"cannot be used: {error.strerror}", "a listening TCP socket") from None
    if family not in (socket.AF_INET, socket.AF_INET6) or kind != socket.SOCK_STREAM or not listens:
        raise ConfigError(where, "is a socket of another kind, or does not listen", "a listening TCP socket")
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=fd)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is accepted inherits it, on any loop
    return listener


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    host = host.partition("%")[0]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def place(listen: str, sock: socket.socket | None) -> dict[str, Any]:
    """Where to listen, as arguments of ``loop.create_server``."""
    if sock is not None:
        return {"sock": sock}
    host, port = endpoint(listen)
    return {"host": host, "port": port}
