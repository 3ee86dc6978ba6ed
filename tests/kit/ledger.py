"""What the simulated CLIs wrote down, read for comparison with what clients were sent.

Callers: the end-to-end tests.  ``rows`` are those of ``Broker.ledger_rows``; see ``simulator.ledger`` for their fields.
"""

import json
import re
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, NamedTuple

from protocol.cli import Peek, peek
from protocol.traces import trace_name

Row = dict[str, Any]
_SEQ = re.compile(r',"seq":(\d+)\}$')
_BETWEEN_CLI_AND_HOST = ("control_response", "keep_alive")
"""What a CLI says to its host alone: no client sees it."""


class Cli(NamedTuple):
    """One process: its pid, when it started, the inode of its working directory."""

    pid: int
    start: int
    inode: int


def cli(row: Row) -> Cli:
    """The process that wrote ``row``."""
    return Cli(row["pid"], row["start"], row["dir_inode"])


def said_to_cli(rows: Iterable[Row], kind: str | None = None) -> list[tuple[Cli, dict[str, Any]]]:
    """The messages on stdin, of one type or of all, in the order in which they were read."""
    found = ((cli(row), json.loads(row["line"])) for row in rows if row["dir"] == "in" and "line" in row)
    return [(process, message) for process, message in found if kind is None or message.get("type") == kind]


def user_ids(rows: Iterable[Row]) -> list[str]:
    """The ids of the user messages that reached a CLI, in order."""
    return [message["uuid"] for _, message in said_to_cli(rows, "user")]


def processes_of(rows: Iterable[Row], cli_session_id: str) -> list[Cli]:
    """The processes that were started for one conversation, in order."""
    flags = (f"--session-id={cli_session_id}", f"--resume={cli_session_id}")
    return [cli(row) for row in rows if row["dir"] == "meta" and any(flag in row["argv"] for flag in flags)]


def meant_for_clients(rows: Iterable[Row], cli_session_id: str) -> list[str]:
    """SHA-256 of every line of a conversation that its clients are to see without ``verbose``, in order."""
    rows = list(rows)
    own = set(processes_of(rows, cli_session_id))
    return [row["sha256"] for row in rows if row["dir"] == "out" and cli(row) in own and _is_forwarded(row)]


def _is_forwarded(row: Row) -> bool:
    if "line" not in row:
        return True  # only long lines are not written out, and none of those are between CLI and host
    line = row["line"].encode()
    found = peek(line)
    assert isinstance(found, Peek)
    return found.type not in _BETWEEN_CLI_AND_HOST and trace_name(found, line) is None


def seq_of(text: str) -> int | None:
    """The number at the very end of a frame, as the broker splices it; None for a frame of the connection."""
    found = _SEQ.search(text)
    return int(found[1]) if found else None


def from_cli(texts: Iterable[str]) -> list[str]:
    """SHA-256 of the lines that frames are made of, for those that came from a CLI, in order."""
    numbered = (text for text in texts if seq_of(text) is not None and not text.startswith('{"type":"broker.'))
    return [sha256((_SEQ.sub("", text) + "}").encode()).hexdigest() for text in numbered]
