"""The simulator's ledger (``simulator.ledger``) read for a comparison with what clients were sent.  Pure.

Callers: ``bench.chaos`` while a run goes on, the end-to-end tests through ``tests.kit.ledger``.
"""

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple

from protocol.cli import Peek, peek
from protocol.traces import trace_name

Row = Mapping[str, Any]
_SEQ: Final = re.compile(r',"seq":(\d+)\}$')
_CONVERSATION: Final = re.compile(r"--(?:session-id|resume)=(.+)", re.DOTALL)
_BETWEEN_CLI_AND_HOST: Final = ("control_response", "keep_alive")
"""What a CLI says to its host alone: no client sees it."""


class Cli(NamedTuple):
    """One process: its pid, when it started, the inode of its working directory."""

    pid: int
    start: int
    inode: int


def cli(row: Row) -> Cli:
    """The process that wrote ``row``."""
    return Cli(row["pid"], row["start"], row["dir_inode"])


def conversations(row: Row) -> list[str]:
    """The conversations that a ``meta`` row's process was started for: one, or with a branch two."""
    found = (_CONVERSATION.fullmatch(argument) for argument in row["argv"])
    return [match[1] for match in found if match is not None]


def is_forwarded(row: Row) -> bool:
    """Whether clients are to see this line of a CLI, without ``verbose``."""
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


def is_from_cli(text: str) -> bool:
    """Whether a frame that carries a seq is a line of a CLI, and not the broker's own."""
    return not text.startswith('{"type":"broker.')


def line_digest(text: str) -> str:
    """SHA-256 of the line that a frame is made of, as the ledger has it."""
    return sha256((_SEQ.sub("", text) + "}").encode()).hexdigest()
