"""A record of every line that went in and out, for tests that compare what was said with what arrived.

``SIMULATOR_LEDGER=FILE``: one JSON object per line, appended with a single ``write`` each, so that many processes can
share the file.  A record holds ``pid``, ``start`` (clock ticks since boot, so that pid and start never repeat),
``cwd``, ``dir_inode`` (of the working directory), ``dir`` (``in``, ``out`` or ``meta``), ``n`` (1, 2, ... per
direction), ``bytes`` and ``sha256`` of the line without its ``\\n``, and ``line`` itself if it has at most 4,096 bytes
(bytes that are not UTF-8 are replaced).  The ``meta`` record at the start holds ``argv`` and the ``env`` names that
begin with ``CLAUDE`` or ``ANTHROPIC``, with their values: never use it with a real credential.

Owner: ``simulator.cli``.  Callers: ``simulator.intake``, ``simulator.output``.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any, Final

MAX_LINE: Final = 4096


def open_ledger() -> "Ledger | None":
    """The ledger that the environment asks for."""
    path = os.environ.get("SIMULATOR_LEDGER")
    return Ledger(path) if path else None


class Ledger:
    """An open ledger file.  Raises ``OSError`` when the file cannot be opened or written."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._sha256 = _sha256()
        self._counts = {"in": 0, "out": 0}
        where = os.getcwd()
        identity = {"pid": os.getpid(), "start": _start_ticks(), "cwd": where, "dir_inode": os.stat(where).st_ino}
        self._head = json.dumps(identity)[:-1]

    def meta(self, argv: list[str]) -> None:
        """Record how this process was started."""
        env = {name: value for name, value in os.environ.items() if name.startswith(("CLAUDE", "ANTHROPIC"))}
        self._append({"dir": "meta", "argv": argv, "env": env})

    def line(self, direction: str, line: bytes) -> None:
        """Record one line without its ``\\n``."""
        self._counts[direction] += 1
        row: dict[str, Any] = {
            "dir": direction,
            "n": self._counts[direction],
            "sha256": self._sha256(line).hexdigest(),
            "bytes": len(line),
        }
        if len(line) <= MAX_LINE:
            row["line"] = line.decode(errors="replace")
        self._append(row)

    def _append(self, row: dict[str, Any]) -> None:
        os.write(self._fd, f"{self._head}, {json.dumps(row)[1:]}\n".encode())


def _sha256() -> Callable[[bytes], Any]:
    """SHA-256 without OpenSSL where the interpreter has its own: importing ``hashlib`` costs 10 ms and 3 MB."""
    try:
        module = importlib.import_module("_sha2" if sys.version_info >= (3, 12) else "_sha256")
    except ImportError:
        module = importlib.import_module("hashlib")
    found: Callable[[bytes], Any] = module.sha256
    return found


def _start_ticks() -> int:
    with open("/proc/self/stat", "rb") as file:
        # The name may hold spaces and parentheses: what counts comes after the last one.
        return int(file.read().rpartition(b")")[2].split()[19])
