"""Conversations on disk: where they lie, how they are taken up again, how late they are written.

``$CLAUDE_CONFIG_DIR/projects/<working directory, every other character than a letter or digit as ->/<session
id>.jsonl``. The file of a new conversation appears 0.2 s after its first user line or at the first result, whichever
comes first, as the real program's does (100-270 ms): a process killed before that leaves nothing to resume.  Later
lines go out at once.  A process that ends in order leaves a ``cost-state`` line behind; one that is killed does not.

Owner: ``simulator.session``.  Callers: ``simulator.session``, ``simulator.cli``.
"""

import json
import os
import re
import time
import zlib
from typing import Any, Final

from simulator.ids import new_uuid, timestamp

FIRST_WRITE_DELAY_S: Final = 0.2
MAX_FOLDER_NAME: Final = 200
_OTHER: Final = re.compile(r"[^A-Za-z0-9]")
_COST: Final = "cost-state"
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NOT_WRITTEN_BY_A_PERSON: Final = ("[Request interrupted by user", "<local-command-")


class NoConversation(Exception):
    """There is no transcript under the session id."""


def is_uuid(text: str) -> bool:
    return _UUID.fullmatch(text) is not None


def config_dir() -> str:
    """Where the CLI keeps its files."""
    return os.environ.get("CLAUDE_CONFIG_DIR") or os.path.join(os.path.expanduser("~"), ".claude")


def project_dir(cwd: str) -> str:
    """The folder of the conversations that were held in ``cwd``."""
    name = _OTHER.sub("-", cwd)
    if len(name) > MAX_FOLDER_NAME:
        name = f"{name[:MAX_FOLDER_NAME]}-{zlib.crc32(cwd.encode()):x}"
    return os.path.join(config_dir(), "projects", name)


def find(session_id: str, cwd: str) -> str | None:
    """The file of a conversation: in the project of ``cwd`` first, then in every other one."""
    if not is_uuid(session_id):
        return None
    projects = os.path.join(config_dir(), "projects")
    folders = [project_dir(cwd)]
    if os.path.isdir(projects):
        folders += [entry.path for entry in os.scandir(projects) if entry.is_dir()]
    paths = (os.path.join(folder, f"{session_id}.jsonl") for folder in folders)
    return next((path for path in paths if os.path.isfile(path)), None)


def latest(cwd: str) -> str | None:
    """The session id of the latest conversation in ``cwd``."""
    folder = project_dir(cwd)
    if not os.path.isdir(folder):
        return None
    files = [entry for entry in os.scandir(folder) if entry.name.endswith(".jsonl") and is_uuid(entry.name[:-6])]
    return max(files, key=lambda entry: entry.stat().st_mtime_ns).name[:-6] if files else None


class Transcript:
    """One conversation.  ``earlier`` counts what the user has said in it, ``characters`` its length."""

    def __init__(self, session_id: str, cwd: str, version: str, *, persist: bool = True) -> None:
        self.session_id = session_id
        self.earlier = 0
        self.characters = 0
        self.cost_state: dict[str, Any] = {}
        """What the last process that ended in order had spent."""
        self.due: float | None = None
        """When the first lines must be on disk (``time.monotonic``); None once they are, or if there are none."""
        self.known: set[str] = set()
        """Uuids of the conversation that a process has resumed: a message with one of them is not heard."""
        self._persist = persist
        self._path = os.path.join(project_dir(cwd), f"{session_id}.jsonl")
        self._is_written = False
        self._waiting: list[dict[str, Any]] = []
        self._parent: str | None = None
        self._common = {"userType": "external", "entrypoint": "sdk-cli", "cwd": cwd, "version": version}

    def take_up(self, session_id: str, cwd: str, last: str | None = None) -> None:
        """Remember the conversation ``session_id``; under another id of one's own it is a fork.

        ``last`` is the uuid of the last message to be remembered.  A last line that was torn by a kill is skipped.
        Raises ``NoConversation``, also where there is no message to remember.
        """
        path = find(session_id, cwd)
        if path is None:
            raise NoConversation(session_id)
        with open(path, "rb") as file:
            entries = [entry for line in file if (entry := _entry(line)) is not None]
        states = [entry for entry in entries if entry.get("type") == _COST]
        self.cost_state = states[-1] if states else {}
        entries = [entry for entry in entries if entry.get("type") != _COST]
        uuids = [entry.get("uuid") for entry in entries]
        if not entries or (last is not None and last not in uuids):
            raise NoConversation(session_id)
        if last is not None:
            entries = entries[: uuids.index(last) + 1]
        for entry in entries:
            self._remember(entry)
        if session_id == self.session_id:
            self._path, self._is_written = path, True
            self.known = {str(entry.get("uuid")) for entry in entries}
        else:
            self._waiting = [{**entry, "sessionId": self.session_id} for entry in entries]

    def user(self, message: dict[str, Any], uuid: str, now: float) -> None:
        """Add a message of the user, a tool result or an interruption."""
        self._add("user", message, uuid)
        if not self._is_written and self.due is None and self._persist:
            self.due = now + FIRST_WRITE_DELAY_S

    def assistant(self, message: dict[str, Any], uuid: str) -> None:
        """Add one finished block of the assistant."""
        self._add("assistant", message, uuid)

    def flush(self) -> None:
        """Write whatever waits.  Raises ``OSError`` when the disk refuses."""
        waiting, self._waiting, self.due = self._waiting, [], None
        if not waiting or not self._persist:
            return
        if not self._is_written:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        self._is_written = True
        self._append(waiting)

    def _append(self, entries: list[dict[str, Any]]) -> None:
        data = b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in entries)
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def end(self, costs: dict[str, Any]) -> None:
        """Write whatever waits, and what was spent.  Raises ``OSError``."""
        self.flush()
        self.note_costs(costs)

    def note_costs(self, costs: dict[str, Any]) -> None:
        """Write what was spent behind what is written, where there is anything to go on with.  Raises ``OSError``."""
        if self._is_written and self._persist and costs:
            self._append([{"type": _COST, "sessionId": self.session_id, **costs}])

    def sooner(self, seconds: float | None) -> float | None:
        """``seconds``, or the time until the first lines are due if that is shorter."""
        if self.due is None:
            return seconds
        left = max(0.0, self.due - time.monotonic())
        return left if seconds is None else min(seconds, left)

    def flush_if_due(self) -> None:
        """Write the first lines once their time has come."""
        if self.due is not None and time.monotonic() >= self.due:
            self.flush()

    def _add(self, kind: str, message: dict[str, Any], uuid: str) -> None:
        entry: dict[str, Any] = {
            "parentUuid": self._parent,
            "isSidechain": False,
            "type": kind,
            "message": message,
            "uuid": uuid or new_uuid(),
            "timestamp": timestamp(),
            "sessionId": self.session_id,
            **self._common,
        }
        self._remember(entry)
        self._waiting.append(entry)
        if self._is_written:
            self.flush()

    def _remember(self, entry: dict[str, Any]) -> None:
        message = entry.get("message")
        if not isinstance(message, dict):
            return
        self._parent = entry.get("uuid")
        text = text_of(message.get("content"))
        self.characters += len(text)
        if entry.get("type") == "user" and text and not text.startswith(_NOT_WRITTEN_BY_A_PERSON):
            self.earlier += 1


def text_of(content: Any) -> str:
    """What a message's content says: a string, or its text blocks, one per line."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [block.get("text") for block in content if isinstance(block, dict) and block.get("type") == "text"]
    return "\n".join(text for text in texts if isinstance(text, str))


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
