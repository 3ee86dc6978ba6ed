"""The other end of ``NOTIFY_SOCKET``: what a broker tells its supervisor.

Callers: the end-to-end tests, ``with supervisor(path) as told``.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Supervisor:
    """The other end of ``NOTIFY_SOCKET``."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._messages: list[list[str]] = []

    @property
    def messages(self) -> list[list[str]]:
        """Everything that was told so far, by lines."""
        try:
            while True:
                self._messages.append(self._socket.recv(4096).decode().split("\n"))
        except BlockingIOError:
            return self._messages

    @property
    def states(self) -> list[str]:
        """The first line of each, but for status lines and signs of life."""
        return [lines[0] for lines in self.messages if not lines[0].startswith(("STATUS=", "WATCHDOG="))]

    def count(self, line: str) -> int:
        """How often that line was told."""
        return sum(line in lines for lines in self.messages)


@contextmanager
def supervisor(path: Path) -> Iterator[Supervisor]:
    """A supervisor that listens at ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.setblocking(False)
        yield Supervisor(sock)
