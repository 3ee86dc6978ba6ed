"""A network namespace that has only loopback, for everything that runs the real CLI: it can then reach nothing else.

Caller: ``bench.__main__``, before anything is started: it replaces itself by the same command inside the namespace.
"""

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

MARK: Final = "BENCH_LOOPBACK_ONLY"
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_UP: Final = 0x1


class NoNamespace(Exception):
    """This system allows none, or the one we are in has more than loopback."""


def ensure(arguments: Sequence[str]) -> None:
    """Return inside such a namespace; outside of one this call does not return.  Raises ``NoNamespace``."""
    if os.environ.get(MARK):
        _raise_loopback()
        others = [name for name in _interfaces_up() if name != "lo"]
        if others:
            raise NoNamespace(f"{MARK} is set, but these interfaces are up too: {', '.join(others)}")
        return
    _enter(arguments)


def _enter(arguments: Sequence[str]) -> NoReturn:
    unshare = shutil.which("unshare")
    if unshare is None:
        raise NoNamespace("unshare is missing (Debian: apt-get install util-linux)")
    for flags in ("-n", "-rn"):  # -n needs root, -rn user namespaces
        if subprocess.run([unshare, flags, "true"], capture_output=True, check=False).returncode == 0:
            environ = {**os.environ, MARK: "1"}
            argv = [unshare, flags, "--", sys.executable, "-m", "bench", *arguments]
            sys.stdout.flush()
            os.execve(unshare, argv, environ)  # noqa: S606 - ourselves, in another namespace
    raise NoNamespace("this system allows no network namespace, neither as root nor as a user")


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        flags = _flags(control, "lo")
        if not flags & _UP:
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _UP))


def _interfaces_up() -> list[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        return [name for _, name in socket.if_nameindex() if _flags(control, name) & _UP]


def _flags(control: socket.socket, name: str) -> int:
    answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16s16x", name.encode()))
    return int(struct.unpack_from("H", answer, 16)[0])
