"""What files were before each user message changed them, so that ``rewind_files`` can bring that back.

Only what the tools for files change is kept, as with the real program, which wants to be asked for it when it starts:
``CLAUDE_CODE_ENABLE_SDK_FILE_CHECKPOINTING``.  Bound: the last 100 messages, and 64 MiB of old contents.
Owner: ``simulator.session``.  Callers: ``simulator.tool_use``, ``simulator.turn``, ``simulator.controls``.
"""

import os
from typing import Any, Final

MAX_MESSAGES: Final = 100
MAX_BYTES: Final = 64 * 1024 * 1024
CHANGING: Final = ("Write", "Edit", "NotebookEdit")
NOT_ENABLED: Final = "File rewinding is not enabled."
UNKNOWN: Final = "No file checkpoint found for this message."


class Checkpoints:
    """Message uuid -> path -> old content, None for a file that was not there."""

    def __init__(self) -> None:
        self.is_enabled = os.environ.get("CLAUDE_CODE_ENABLE_SDK_FILE_CHECKPOINTING") in {"1", "true"}
        self._kept: dict[str, dict[str, bytes | None]] = {}
        self._bytes = 0

    def begin(self, uuid: str) -> None:
        """A user message begins a turn or joins one."""
        if self.is_enabled and uuid:
            self._kept[uuid] = {}
            while len(self._kept) > MAX_MESSAGES:
                del self._kept[next(iter(self._kept))]

    def keep(self, tool: str, given: dict[str, Any]) -> None:
        """A tool is about to change a file."""
        path = given.get("file_path")
        if tool not in CHANGING or not isinstance(path, str) or not self._kept:
            return
        path = os.path.abspath(path)
        latest = self._kept[next(reversed(self._kept))]
        if path not in latest:
            latest[path] = _content(path)
            self._bytes += len(latest[path] or b"")
            while self._bytes > MAX_BYTES and len(self._kept) > 1:
                gone = self._kept.pop(next(iter(self._kept)))
                self._bytes -= sum(len(content or b"") for content in gone.values())

    def problem(self, uuid: Any) -> str | None:
        """Why there is no way back to before the message, None if there is one."""
        if not self.is_enabled:
            return NOT_ENABLED
        return None if isinstance(uuid, str) and uuid in self._kept else UNKNOWN

    def changes(self, uuid: str) -> dict[str, bytes | None]:
        """What the files must become: each as it was at its first change since the message."""
        found: dict[str, bytes | None] = {}
        for one in list(self._kept)[list(self._kept).index(uuid) :]:
            for path, content in self._kept[one].items():
                found.setdefault(path, content)
        return {path: content for path, content in found.items() if _content(path) != content}

    def rewind(self, uuid: str) -> None:
        """Bring the files back; raises ``OSError``."""
        for path, content in self.changes(uuid).items():
            if content is None:
                os.unlink(path)
            else:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(content)

    def sizes(self, uuid: str) -> tuple[int, int]:
        """Lines that a rewind would insert, and delete."""
        import difflib  # noqa: PLC0415 - 10 ms, for a question that is seldom asked

        inserted = deleted = 0
        for path, content in self.changes(uuid).items():
            old, new = (_content(path) or b"").splitlines(), (content or b"").splitlines()
            for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
                deleted += b - a if kind in {"delete", "replace"} else 0
                inserted += d - c if kind in {"insert", "replace"} else 0
        return inserted, deleted


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None
