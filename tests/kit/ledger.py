"""What the simulated CLIs wrote down, read for comparison with what clients were sent.

Callers: the end-to-end tests.  ``rows`` are those of ``Broker.ledger_rows``; see ``simulator.ledger`` for their fields.
"""

import json
from collections.abc import Iterable
from typing import Any

from bench.ledger import Cli, cli, conversations, is_forwarded, is_from_cli, line_digest, seq_of

__all__ = ["Cli", "Row", "cli", "from_cli", "meant_for_clients", "processes_of", "said_to_cli", "seq_of", "user_ids"]

Row = dict[str, Any]


def said_to_cli(rows: Iterable[Row], kind: str | None = None) -> list[tuple[Cli, dict[str, Any]]]:
    """The messages on stdin, of one type or of all, in the order in which they were read."""
    found = ((cli(row), json.loads(row["line"])) for row in rows if row["dir"] == "in" and "line" in row)
    return [(process, message) for process, message in found if kind is None or message.get("type") == kind]


def user_ids(rows: Iterable[Row]) -> list[str]:
    """The ids of the user messages that reached a CLI, in order."""
    return [message["uuid"] for _, message in said_to_cli(rows, "user")]


def processes_of(rows: Iterable[Row], cli_session_id: str) -> list[Cli]:
    """The processes that were started for one conversation, in order."""
    return [cli(row) for row in rows if row["dir"] == "meta" and cli_session_id in conversations(row)]


def meant_for_clients(rows: Iterable[Row], cli_session_id: str) -> list[str]:
    """SHA-256 of every line of a conversation that its clients are to see without ``verbose``, in order."""
    rows = list(rows)
    own = set(processes_of(rows, cli_session_id))
    return [row["sha256"] for row in rows if row["dir"] == "out" and cli(row) in own and is_forwarded(row)]


def from_cli(texts: Iterable[str]) -> list[str]:
    """SHA-256 of the lines that frames are made of, for those that came from a CLI, in order."""
    return [line_digest(text) for text in texts if seq_of(text) is not None and is_from_cli(text)]
