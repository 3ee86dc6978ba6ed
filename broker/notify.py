"""What a service supervisor is told of the broker's state: the protocol of sd_notify(3), over a datagram socket.

Owner: ``broker.app``.  Without ``NOTIFY_SOCKET`` nothing is sent.  A message that cannot be sent is lost: a supervisor
that does not listen must not end sessions.
"""

import contextlib
import socket
import time
from collections.abc import MutableMapping
from dataclasses import dataclass

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
MAX_STATUS_CHARS = 200


@dataclass(frozen=True, slots=True)
class Notify:
    """The supervisor.  ``address``: a path, ``@name`` for an abstract socket, or empty for nobody.

    ``watchdog_s``: how often at the latest it wants to hear that the broker lives; 0 for never.
    """

    address: str = ""
    watchdog_s: float = 0.0

    @classmethod
    def take(cls, environ: MutableMapping[str, str], pid: int) -> "Notify":
        """What ``environ`` tells process ``pid`` of; its variables are removed, so that no child sees them."""
        address, interval, watched = (environ.pop(name, "") for name in VARIABLES)
        is_watched = interval.isdecimal() and watched in ("", str(pid))
        return cls(address if address[:1] in ("/", "@") else "", int(interval) / 1e6 if is_watched else 0.0)

    def ready(self, status: str) -> None:
        """The ports are open and a process is warm, or a reload is over."""
        self._send("READY=1", _status(status))

    def stopping(self, status: str) -> None:
        """The broker is on its way out."""
        self._send("STOPPING=1", _status(status))

    def reloading(self, status: str) -> None:
        """The configuration is read again; ``ready`` follows."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", _status(status))

    def status(self, status: str) -> None:
        """One line for an operator."""
        self._send(_status(status))

    def alive(self) -> None:
        """The event loop turns."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self.address:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode("utf-8", "surrogateescape"), address)


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())[:MAX_STATUS_CHARS]
