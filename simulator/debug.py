"""The debug log: ``--debug=FILTER`` and ``--debug-file=PATH``.

Lines go to the file and never to stderr; ``latest`` beside it is a link to it, and without a path it lies in the
configuration directory.  A filter names tags, ``mcp,hooks`` or ``!mcp``; one that mixes both kinds is none.  No
credential and no text of a person is ever written.  Where a folder or a file cannot be made, nothing is logged.
Owner: ``simulator.session``.  Callers: ``simulator.session``, ``simulator.turn``, ``simulator.conversation``.
"""

import os
from typing import Final

from simulator.ids import random_uuid, timestamp
from simulator.transcript import config_dir

AT_START: Final = (
    ("", "MDM settings load completed in 0ms"),
    ("init", "configureGlobalMTLS complete"),
    ("mcp", "--mcp-config servers running fully async (nonblocking)"),
    ("startup", "Running setup()..."),
)
_SHOWN: Final = {"mcp": "[MCP] ", "init": "[init] ", "startup": "[STARTUP] ", "hooks": "Hooks: ", "": ""}


class DebugLog:
    """The log of one process; ``pattern`` None means that nothing is logged."""

    def __init__(self, pattern: str | None, path: str | None) -> None:
        words = [word.strip().lower() for word in (pattern or "").split(",") if word.strip()]
        kept = {word for word in words if not word.startswith("!")}
        dropped = {word[1:] for word in words if word.startswith("!")}
        is_mixed = bool(kept and dropped)
        self._kept = set() if is_mixed else kept
        self._dropped = set() if is_mixed else dropped
        self._wanted = path or os.path.join(config_dir(), "debug", f"{random_uuid()}.txt")
        self._is_on = pattern is not None
        self._fd: int | None = None
        for tag, text in AT_START if self._is_on else ():
            self.line(tag, text)

    def line(self, tag: str, text: str) -> None:
        """Log ``text`` under ``tag``, empty for none, if the filter lets it through; it is on disk at once."""
        if not self._is_on or tag in self._dropped or (self._kept and tag not in self._kept):
            return
        shown = _SHOWN.get(tag, f"[{tag}] ")
        try:
            os.write(self._open(), f"{timestamp()} [DEBUG] {shown}{text}\n".encode(errors="replace"))
        except OSError:
            self._is_on = False

    def _open(self) -> int:
        if self._fd is None:
            folder = os.path.dirname(self._wanted) or "."
            os.makedirs(folder, exist_ok=True)
            self._fd = os.open(self._wanted, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            link = os.path.join(folder, "latest")
            if os.path.islink(link) or os.path.lexists(link):
                os.unlink(link)
            os.symlink(self._wanted, link)
        return self._fd
